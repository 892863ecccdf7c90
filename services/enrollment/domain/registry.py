"""What administrators decide about devices."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from servicekit.errors import DomainError, failed_precondition
from services.enrollment.domain.decision import already_enrolled
from services.enrollment.domain.types import Device, Status

REENROLLMENT_WINDOW: Final = timedelta(hours=24)


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
