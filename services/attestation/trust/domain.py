"""Certificates by which TPMs are known."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
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


class Source(StrEnum):
    """Where endorsement keys are from."""

    LISTED = "LISTED"
    """The organisation's list."""
    BOUND = "BOUND"
    """The TPMs that its devices are bound to."""


class ListedKey(NamedTuple):
    """A serial number and the SHA-256 of an endorsement key."""

    serial: str
    ek_sha256: bytes
