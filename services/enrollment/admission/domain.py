"""What becomes of a device that asks to be let in.

What names a device, and what its retries are known by, is said in docs/adr/0044.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from ipaddress import ip_address
from typing import Final
from uuid import UUID

from servicekit.errors import DomainError, permission_denied
from servicekit.security.digests import sha256
from servicekit.serials import serial_key
from services.enrollment.registry.domain import (
    Device,
    Hardware,
    Status,
    already_enrolled,
    awaiting_approval,
)
from services.enrollment.registry.expected import arriving, labelled
from services.enrollment.serials import unnamed
from services.enrollment.tokens.domain import EnrollmentToken
from services.enrollment.tokens.keys import PreSharedKey

TELL_REFUSALS_EVERY: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Application:
    """A device that asks to be admitted.

    Args:
        key: its pre-shared key.
        serial: its serial number, as it reports it.
        hardware: what else it says of itself.
        source: the address from which it asks.
        is_named: whether the serial number is one machine's alone.
    """

    key: PreSharedKey
    serial: str
    hardware: Hardware
    source: str = ""
    is_named: bool = True

    def fingerprint(self, token_id: UUID, serial: str | None = None) -> bytes:
        """Equal for a retry of the same enrollment, which also comes from the same place.

        Args:
            token_id: the enrollment token.
            serial: the serial number as the registry has it, in whatever spelling it was sent.
        """
        return self._digest(str(token_id), self.serial if serial is None else serial)

    def likeness(self) -> bytes:
        """Equal for all machines of a kind that have no serial numbers of their own."""
        return self._digest("unnamed", serial_key(self.serial))

    def _digest(self, first: str, serial: str) -> bytes:
        hardware = self.hardware
        facts = (
            first,
            serial,
            hardware.model,
            hardware.cpu_model,
            hardware.cpu_count,
            hardware.total_ram_bytes,
            hardware.has_tpm,
        )
        return sha256(json.dumps(facts).encode())


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
    CLAIMED = "claimed"
    """A machine without a serial number that an administrator approved; it is answered once."""
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
    waiting: Device | None = None,
) -> Decision:
    """What becomes of an application with a genuine key.

    Args:
        application: who asks.
        token: the enrollment token of the key.
        known: the device of the organisation that has the serial number.
        listed: whether the token admits the serial number.
        new_id: the id of the device if it is new.
        at: now.
        waiting: the device as it is expected, if it is.
    """
    if token.revoked_at is not None:
        return refused(permission_denied("TOKEN_REVOKED", "the enrollment token is revoked"))
    fingerprint = application.fingerprint(token.id, known.serial if known else None)
    if known is not None and not known.may_reenroll(at):
        return _decide_known(known, application, fingerprint, at)
    # A device that this token has admitted before is not one more.
    counts = known is None or known.enrollment_token_id != token.id
    if (closed := _closed(token, listed=listed, counts=counts, at=at)) is not None:
        return refused(closed)
    if known is not None:
        readmitted = replace(
            _readmitted(known, application, token, at),
            hardware=application.hardware,
            fingerprint=fingerprint,
        )
        return Decision(Outcome.READMITTED, readmitted, known, counts=counts)
    if token.only_expected and waiting is None:
        return refused(
            permission_denied(
                "DEVICE_NOT_EXPECTED", "the enrollment token admits expected devices alone"
            )
        )
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
        enrolled_from=application.source,
        created_at=at,
        enrolled_at=None if held else at,
        labels=token.labels,
        policy_key_id=token.policy_key_id,
    )
    device = arriving(device, waiting)
    if held:
        return Decision(Outcome.HELD, device, error=awaiting_approval(), counts=True)
    return Decision(Outcome.ADMITTED, device, counts=True)


def _readmitted(
    known: Device, application: Application, token: EnrollmentToken, at: datetime
) -> Device:
    """A device that is allowed to enroll again, with a new generation of tokens."""
    return replace(
        known,
        status=Status.ACTIVE,
        token_version=known.token_version + 1,
        enrollment_token_id=token.id,
        enrolled_from=application.source,
        enrolled_at=at,
        decommissioned_at=None,
        reenrollment_allowed_until=None,
        archived_status=None,
        deleted_at=None,
        deleted_by=None,
        labels=labelled(known.labels, token.labels),
        policy_key_id=token.policy_key_id,
    )


def _decide_known(
    known: Device, application: Application, fingerprint: bytes, at: datetime
) -> Decision:
    """A retry is answered even when the token has expired or is used up: its device is in."""
    if known.status is Status.DECOMMISSIONED:
        return refused(permission_denied("DEVICE_DECOMMISSIONED", "the device is decommissioned"))
    if known.status is Status.REJECTED:
        return refused(_rejected())
    if known.fingerprint != fingerprint:
        return taken(known, at)
    if known.status is Status.PENDING:
        return refused(awaiting_approval())
    if not _same_place(known.enrolled_from, application.source):
        # Its firmware may have given the serial number to a whole delivery.
        return taken(known, at)
    return Decision(Outcome.REPEATED, known, known)


def _rejected() -> DomainError:
    return permission_denied("DEVICE_REJECTED", "an administrator refused the device")


def _same_place(known: str | None, source: str) -> bool:
    """Whether both can be the address of one machine.

    In IPv6 it changes within the network, and a machine may come by either version of IP.
    """
    if not known or not source or known == source:
        return True
    try:
        one, other = ip_address(known), ip_address(source)
    except ValueError:
        return False
    if one.version != other.version:
        return True
    return one.version == 6 and one.packed[:8] == other.packed[:8]


def decide_unnamed(
    application: Application,
    token: EnrollmentToken,
    candidates: Sequence[Device],
    *,
    new_id: UUID,
    at: datetime,
) -> Decision:
    """What becomes of a machine that has no serial number of its own.

    Nothing that it sends tells it from the next one of its kind. So a person lets machines in, one
    by one, and an identity is handed out once: who asks again waits for another approval.

    Args:
        application: who asks.
        token: the enrollment token of the key.
        candidates: what is open to machines of its kind (`store.lock_unnamed`), oldest first.
        new_id: the id of the device if it is new.
        at: now.
    """
    if token.revoked_at is not None:
        return refused(permission_denied("TOKEN_REVOKED", "the enrollment token is revoked"))
    waiting = [device for device in candidates if device.status is Status.PENDING]
    for known in candidates:
        if known.may_reenroll(at):
            counts = known.enrollment_token_id != token.id
            closed = _closed(token, listed=not token.serial_count, counts=counts, at=at)
            if closed is not None:
                return refused(closed)
            readmitted = replace(_readmitted(known, application, token, at), claimed_at=at)
            return Decision(Outcome.READMITTED, readmitted, known, counts=counts)
        if known.status is Status.ACTIVE and known.claimed_at is None:
            claimed = replace(
                known,
                claimed_at=at,
                enrolled_from=application.source,
                policy_key_id=token.policy_key_id,
            )
            return Decision(Outcome.CLAIMED, claimed, known)
    if waiting:
        return refused(awaiting_approval())
    if any(device.status is Status.REJECTED for device in candidates):
        return refused(_rejected())
    # Nobody can expect a machine without a serial number.
    is_listed = not token.serial_count and not token.only_expected
    closed = _closed(token, listed=is_listed, counts=True, at=at)
    if closed is not None:
        return refused(closed)
    device = Device(
        id=new_id,
        tenant_id=token.tenant_id,
        serial=unnamed(new_id),
        reported_serial=application.serial,
        hardware=application.hardware,
        status=Status.PENDING,
        token_version=1,
        enrollment_token_id=token.id,
        fingerprint=application.likeness(),
        enrolled_from=application.source,
        created_at=at,
        labels=token.labels,
        policy_key_id=token.policy_key_id,
    )
    return Decision(Outcome.HELD, device, error=awaiting_approval(), counts=True)


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
