"""Enrollment's types and rules; no infrastructure."""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum, StrEnum
from typing import Any, Final
from uuid import UUID

from servicekit.errors import (
    Code,
    DomainError,
    already_exists,
    failed_precondition,
    invalid_field,
    jittered,
    permission_denied,
)

TOKEN_LIFE: Final = timedelta(days=90)
"""How long an enrollment token admits devices when its creator does not say."""
MAX_TOKEN_LIFE: Final = timedelta(days=3653)
FIRST_TOKEN_LIFE: Final = MAX_TOKEN_LIFE
"""Ten years: the first start's token must not die while its administrator still learns; it can
be revoked at any time."""
MIN_SECRET: Final = 32
REENROLLMENT_WINDOW: Final = timedelta(hours=24)
TELL_REFUSALS_EVERY: Final = timedelta(hours=1)
APPROVAL_RETRY_SECONDS: Final = 60.0

# What firmware reports when nobody wrote a serial number into it (compared without case). Many
# devices share these: taken for an identity, they would make one device of a whole delivery.
_PLACEHOLDERS: Final = frozenset(
    {
        "to be filled by o.e.m.",
        "to be filled by oem",
        "default string",
        "system serial number",
        "chassis serial number",
        "not specified",
        "not applicable",
        "not available",
        "unknown",
        "none",
        "null",
        "n/a",
        "oem",
        "invalid",
    }
)


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


# Secrets


def new_secret() -> str:
    """The secret of an enrollment token: 256 random bits, safe in a URL."""
    return secrets.token_urlsafe(32)


def secret_hash(secret: str) -> bytes:
    """What is stored of a secret, and looked up.

    A plain hash is enough, and no lock-out is needed: 256 random bits cannot be guessed, neither
    through the API nor from the hash.
    """
    return hashlib.sha256(secret.encode()).digest()


@dataclass(frozen=True, slots=True)
class PreSharedKey:
    """What an administrator puts into an agent's configuration, without its secret itself."""

    tenant_code: str
    secret_hash: bytes


def parse_pre_shared_key(text: str) -> PreSharedKey:
    """Reads `<tenant code>:<secret>`; blanks around it, as copying leaves them, do not count.

    Raises:
        DomainError: PERMISSION_DENIED when it is not of that form.
    """
    code, colon, secret = text.strip().partition(":")
    if not colon or not code or not secret:
        raise wrong_key()
    return PreSharedKey(code, secret_hash(secret))


def wrong_key() -> DomainError:
    """The key admits nobody: an unknown code, a wrong secret, or one of another organisation.

    These look the same, so that nobody learns which codes exist.
    """
    return permission_denied("ENROLLMENT_REFUSED", "the pre-shared key is not valid")


# Serial numbers


def clean_serial(serial: str, field: str = "serial") -> str:
    """The serial number as it is stored and compared: exactly, but for blanks around it.

    Raises:
        DomainError: INVALID_ARGUMENT when it names no single device.
    """
    cleaned = serial.strip()
    if not cleaned:
        raise invalid_field(field, "is required")
    if cleaned.casefold() in _PLACEHOLDERS or not cleaned.strip("0"):
        raise invalid_field(
            field, "is a placeholder that many devices share, not a serial number of this device"
        )
    return cleaned


def clean_serials(serials: list[str]) -> list[str]:
    """The serial numbers of an enrollment token's list, each once, in order.

    Raises:
        DomainError: INVALID_ARGUMENT when one of them can be no device's serial number.
    """
    cleaned: dict[str, None] = {}
    for index, serial in enumerate(serials):
        field = f"serials[{index}]"
        if any(c < " " or c == "\x7f" for c in serial):
            raise invalid_field(field, "must not contain control characters")
        cleaned[clean_serial(serial, field)] = None
    return list(cleaned)


# The decision


@dataclass(frozen=True, slots=True)
class Application:
    """A device that asks to be admitted."""

    key: PreSharedKey
    serial: str
    hardware: Hardware

    def fingerprint(self, token_id: UUID) -> bytes:
        """Equal for a retry of the same enrollment, and for nothing else."""
        hardware = self.hardware
        facts = (
            str(token_id),
            self.serial,
            hardware.model,
            hardware.cpu_model,
            hardware.cpu_count,
            hardware.total_ram_bytes,
            hardware.has_tpm,
        )
        return hashlib.sha256(json.dumps(facts).encode()).digest()


class Outcome(Enum):
    """What becomes of an application."""

    ADMITTED = "admitted"
    """A new device, active."""
    HELD = "held"
    """A new device that waits for approval."""
    READMITTED = "readmitted"
    """A known device that an administrator let enroll again."""
    REPEATED = "repeated"
    """A retry; it gets its answer unless the device has called since."""
    TAKEN = "taken"
    """Somebody enrolls with a known serial number, and is refused."""
    REFUSED = "refused"
    """Refused, and nothing is written."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to an application.

    `device` is the device afterwards, `before` what it was; `error` is what the caller is told
    when it gets no identity; `counts` says whether a use of the enrollment token is spent.
    """

    outcome: Outcome
    device: Device | None = None
    before: Device | None = None
    error: DomainError | None = None
    counts: bool = False


def refused(error: DomainError) -> Decision:
    """Nothing changes; the caller is told why."""
    return Decision(Outcome.REFUSED, error=error)


def decide(
    application: Application,
    token: EnrollmentToken,
    known: Device | None,
    *,
    listed: bool,
    new_id: UUID,
    at: datetime,
) -> Decision:
    """What becomes of an application with a genuine key.

    Args:
        application: who asks.
        token: the enrollment token of the key.
        known: the device of the organisation that has the serial number.
        listed: whether the token admits the serial number.
        new_id: the id of the device if it is new.
        at: now.
    """
    if token.revoked_at is not None:
        return refused(permission_denied("TOKEN_REVOKED", "the enrollment token is revoked"))
    fingerprint = application.fingerprint(token.id)
    if known is not None and not known.may_reenroll(at):
        return _decide_known(known, fingerprint, at)
    # A device that this token has admitted before is not one more.
    counts = known is None or known.enrollment_token_id != token.id
    if (closed := _closed(token, listed=listed, counts=counts, at=at)) is not None:
        return refused(closed)
    if known is not None:
        readmitted = replace(
            known,
            hardware=application.hardware,
            status=Status.ACTIVE,
            token_version=known.token_version + 1,
            enrollment_token_id=token.id,
            fingerprint=fingerprint,
            enrolled_at=at,
            decommissioned_at=None,
            reenrollment_allowed_until=None,
        )
        return Decision(Outcome.READMITTED, readmitted, known, counts=counts)
    held = token.require_approval
    device = Device(
        id=new_id,
        tenant_id=token.tenant_id,
        serial=application.serial,
        hardware=application.hardware,
        status=Status.PENDING if held else Status.ACTIVE,
        token_version=1,
        enrollment_token_id=token.id,
        fingerprint=fingerprint,
        created_at=at,
        enrolled_at=None if held else at,
    )
    if held:
        return Decision(Outcome.HELD, device, error=awaiting_approval(), counts=True)
    return Decision(Outcome.ADMITTED, device, counts=True)


def _decide_known(known: Device, fingerprint: bytes, at: datetime) -> Decision:
    """A retry is answered even when the token has expired or is used up: its device is in."""
    if known.status is Status.DECOMMISSIONED:
        return refused(permission_denied("DEVICE_DECOMMISSIONED", "the device is decommissioned"))
    if known.status is Status.REJECTED:
        return refused(permission_denied("DEVICE_REJECTED", "an administrator refused the device"))
    if known.fingerprint != fingerprint:
        return taken(known, at)
    if known.status is Status.PENDING:
        return refused(awaiting_approval())
    return Decision(Outcome.REPEATED, known, known)


def taken(known: Device, at: datetime) -> Decision:
    """An attempt to enroll with the serial number of a device that is in."""
    told = known.refusal_told_at
    tell = told is None or at - told >= TELL_REFUSALS_EVERY
    device = replace(
        known, reenrollment_refused_at=at, refusal_told_at=at if tell else known.refusal_told_at
    )
    return Decision(Outcome.TAKEN, device, known, error=already_enrolled())


def _closed(
    token: EnrollmentToken, *, listed: bool, counts: bool, at: datetime
) -> DomainError | None:
    if at >= token.expires_at:
        return permission_denied("TOKEN_EXPIRED", "the enrollment token has expired")
    if not listed:
        return permission_denied(
            "SERIAL_NOT_LISTED", "the enrollment token does not admit this serial number"
        )
    if counts and token.max_uses and token.uses >= token.max_uses:
        return permission_denied("TOKEN_USED_UP", "the enrollment token is used up")
    return None


def awaiting_approval() -> DomainError:
    """The device is registered and waits; agents ask again by themselves."""
    return DomainError(
        Code.PERMISSION_DENIED,
        "AWAITING_APPROVAL",
        "an administrator must approve the device first",
        retry_after=jittered(APPROVAL_RETRY_SECONDS),
    )


def already_enrolled() -> DomainError:
    """The serial number belongs to a device that is in."""
    return already_exists(
        "DEVICE_ALREADY_ENROLLED",
        "a device with this serial number is enrolled;"
        " an administrator must allow it to enroll again",
    )


# What administrators decide


def approve(device: Device, at: datetime) -> Device:
    """The device, admitted.

    Raises:
        DomainError: FAILED_PRECONDITION when it does not wait for approval.
    """
    if device.status is Status.ACTIVE:
        return device
    if device.status is not Status.PENDING:
        raise _not_pending(device)
    return replace(device, status=Status.ACTIVE, enrolled_at=at)


def reject(device: Device) -> Device:
    """The device, refused.

    Raises:
        DomainError: FAILED_PRECONDITION when it does not wait for approval.
    """
    if device.status is Status.REJECTED:
        return device
    if device.status is not Status.PENDING:
        raise _not_pending(device)
    return replace(device, status=Status.REJECTED)


def _not_pending(device: Device) -> DomainError:
    return failed_precondition(
        "DEVICE_NOT_PENDING", f"the device is {device.status.value}; it does not wait for approval"
    )


def allow_reenrollment(device: Device, at: datetime) -> Device:
    """The device, which may enroll again once.

    Raises:
        DomainError: FAILED_PRECONDITION when it has not been let in yet.
    """
    if device.status is Status.PENDING:
        raise failed_precondition(
            "DEVICE_PENDING", "the device waits for approval; approve or reject it"
        )
    return replace(device, reenrollment_allowed_until=at + REENROLLMENT_WINDOW)


def decommission(device: Device, at: datetime) -> Device:
    """The device, locked out; a permission to enroll again that was open is withdrawn."""
    if device.status is Status.DECOMMISSIONED and not device.may_reenroll(at):
        return device
    return replace(
        device,
        status=Status.DECOMMISSIONED,
        decommissioned_at=device.decommissioned_at or at,
        reenrollment_allowed_until=None,
    )


def prepare(known: Device | None, fresh: Device, at: datetime) -> Device:
    """The device as it is registered ahead of its first start.

    Raises:
        DomainError: ALREADY_EXISTS when its serial number is known and may not enroll again.
    """
    if known is None:
        return fresh
    if not known.may_reenroll(at):
        raise already_enrolled()
    return replace(
        known,
        hardware=replace(known.hardware, model=fresh.hardware.model or known.hardware.model),
        status=Status.PREPARED,
        token_version=known.token_version + 1,
        enrollment_token_id=None,
        fingerprint=None,
        enrolled_at=None,
        decommissioned_at=None,
        reenrollment_allowed_until=None,
    )
