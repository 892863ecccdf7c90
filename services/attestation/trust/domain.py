"""Certificates by which TPMs are known."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID


@dataclass(frozen=True, slots=True)
class TrustRoot:
    """A certificate by which TPMs are known."""

    id: UUID
    sha256: bytes
    certificate: bytes
    subject: str
    not_before: datetime
    not_after: datetime
    created_at: datetime
