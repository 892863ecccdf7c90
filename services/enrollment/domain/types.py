"""Enrollment tokens and devices."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

TOKEN_LIFE: Final = timedelta(days=90)
"""How long an enrollment token admits devices when its creator does not say."""
MAX_TOKEN_LIFE: Final = timedelta(days=3653)
FIRST_TOKEN_LIFE: Final = MAX_TOKEN_LIFE
"""Ten years: the first start's token must not die while its administrator still learns; it can
be revoked at any time."""


class Status(StrEnum):
    """Where a device stands."""

    PENDING = "pending"
    PREPARED = "prepared"
    ACTIVE = "active"
    REJECTED = "rejected"
    DECOMMISSIONED = "decommissioned"


@dataclass(frozen=True, slots=True)
class EnrollmentToken:
    """What admits devices to an organisation; its secret is known only to those who got it."""

    id: UUID
    tenant_id: UUID
    name: str
    created_at: datetime
    expires_at: datetime
    max_uses: int
    uses: int
    serial_count: int
    require_approval: bool
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None

    def status(self, at: datetime) -> str:
        """`revoked`, `expired`, `used_up` or `active`."""
        if self.revoked_at is not None:
            return "revoked"
        if at >= self.expires_at:
            return "expired"
        if self.max_uses and self.uses >= self.max_uses:
            return "used_up"
        return "active"

    def audit(self) -> dict[str, Any]:
        """What audit entries say of it."""
        return {
            "name": self.name,
            "orgId": str(self.tenant_id),
            "expiresAt": _text(self.expires_at),
            "maxUses": self.max_uses,
            "uses": self.uses,
            "serialCount": self.serial_count,
            "requireApproval": self.require_approval,
            "revokedAt": _text(self.revoked_at),
        }


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a device says of itself when it enrolls."""

    model: str = ""
    cpu_model: str = ""
    cpu_count: int = 0
    total_ram_bytes: int = 0
    has_tpm: bool = False


@dataclass(frozen=True, slots=True)
class Device:
    """A registered device."""

    id: UUID
    tenant_id: UUID
    serial: str
    hardware: Hardware
    status: Status
    token_version: int
    enrollment_token_id: UUID | None
    fingerprint: bytes | None
    created_at: datetime
    enrolled_at: datetime | None = None
    decommissioned_at: datetime | None = None
    reenrollment_allowed_until: datetime | None = None
    reenrollment_refused_at: datetime | None = None
    refusal_told_at: datetime | None = None

    def may_reenroll(self, at: datetime) -> bool:
        """Whether an administrator's word lets it enroll again now."""
        until = self.reenrollment_allowed_until
        return until is not None and at < until

    def audit(self) -> dict[str, Any]:
        """What audit entries say of it."""
        token = self.enrollment_token_id
        return {
            "serial": self.serial,
            "model": self.hardware.model,
            "orgId": str(self.tenant_id),
            "status": self.status.value,
            "tokenVersion": self.token_version,
            "enrollmentTokenId": str(token) if token else None,
            "reenrollmentAllowedUntil": _text(self.reenrollment_allowed_until),
        }


def _text(at: datetime | None) -> str | None:
    return at.isoformat().replace("+00:00", "Z") if at else None
