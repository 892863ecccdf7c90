"""Devices that run a policy although none is in force."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Orphan:
    """A device that runs a version of an organisation that has no policy in force."""

    device_id: UUID
    tenant_id: UUID
    version: int
    policy_id: UUID | None
    policy_name: str | None
    reported_at: datetime
