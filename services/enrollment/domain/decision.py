"""What becomes of a device that asks to be let in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Final
from uuid import UUID

from servicekit.errors import Code, DomainError, already_exists, jittered, permission_denied
from services.enrollment.domain.keys import PreSharedKey
from services.enrollment.domain.types import Device, EnrollmentToken, Hardware, Status

TELL_REFUSALS_EVERY: Final = timedelta(hours=1)
APPROVAL_RETRY_SECONDS: Final = 60.0


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
