"""What administrators decide about devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

from contract.events.enrollment import DeviceDetails, DeviceSnapshot
from servicekit.errors import Code, DomainError, already_exists, failed_precondition, jittered
from servicekit.etags import etag_of
from services.enrollment.registry.labels import Details, merged

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
    _refuse_expected(device)
    if device.status is Status.PENDING:
        raise failed_precondition(
            "DEVICE_PENDING", "the device waits for approval; approve or reject it"
        )
    return replace(device, reenrollment_allowed_until=at + REENROLLMENT_WINDOW)


def decommission(device: Device, at: datetime) -> Device:
    """The device, locked out; a permission to enroll again that was open is withdrawn.

    One that was decommissioned with its organisation stays out when that is restored.

    Raises:
        DomainError: FAILED_PRECONDITION when it is only expected.
    """
    _refuse_expected(device)
    if (
        device.status is Status.DECOMMISSIONED
        and not device.may_reenroll(at)
        and device.archived_status is None
    ):
        return device
    return replace(
        device,
        status=Status.DECOMMISSIONED,
        decommissioned_at=device.decommissioned_at or at,
        reenrollment_allowed_until=None,
        archived_status=None,
    )


def _refuse_expected(device: Device) -> None:
    if device.status is Status.EXPECTED:
        raise failed_precondition(
            "DEVICE_EXPECTED", "the device is expected and has not enrolled; it can be deleted"
        )


def delete(device: Device, by: str, at: datetime) -> Device:
    """What stays of the device, which keeps its serial number out; of an expected one, nothing.

    Raises:
        DomainError: FAILED_PRECONDITION when it is not locked out.
    """
    if device.status is Status.EXPECTED:
        return replace(device, deleted_at=at, deleted_by=by)
    if device.status not in {Status.DECOMMISSIONED, Status.REJECTED} or device.archived_status:
        raise failed_precondition(
            "DEVICE_NOT_DECOMMISSIONED",
            f"the device is {device.status.value}; decommission it before it is deleted",
        )
    if device.deleted_at is not None:
        return device
    return replace(
        device,
        hardware=Hardware(),
        status=Status.DECOMMISSIONED,
        enrollment_token_id=None,
        fingerprint=None,
        enrolled_from=None,
        decommissioned_at=device.decommissioned_at or at,
        reenrollment_allowed_until=None,
        reenrollment_refused_at=None,
        refusal_told_at=None,
        deleted_at=at,
        deleted_by=by,
        labels={},
        asset_tag="",
        note="",
    )


def describe(device: Device, details: Details) -> Device:
    """The device, of which administrators say something else.

    Raises:
        DomainError: FAILED_PRECONDITION when it was deleted; INVALID_ARGUMENT when its labels
            become too many.
    """
    if device.deleted_at is not None:
        raise failed_precondition(
            "DEVICE_DELETED", "the device was deleted; allow it to enroll again first"
        )
    return replace(
        device,
        labels=merged(device.labels, details.labels, details.remove_labels),
        asset_tag=device.asset_tag if details.asset_tag is None else details.asset_tag,
        note=device.note if details.note is None else details.note,
        hardware=device.hardware
        if details.model is None or device.status is not Status.EXPECTED
        else replace(device.hardware, model=details.model),
    )


def archive(device: Device, at: datetime) -> Device:
    """The device, decommissioned together with its organisation."""
    return replace(decommission(device, at), archived_status=device.status)


def restore(device: Device) -> Device:
    """The device as it was before its organisation was archived; its token works again."""
    assert device.archived_status is not None
    return replace(
        device, status=device.archived_status, decommissioned_at=None, archived_status=None
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
        enrolled_from=None,
        enrolled_at=None,
        decommissioned_at=None,
        reenrollment_allowed_until=None,
        archived_status=None,
        deleted_at=None,
        deleted_by=None,
        policy_key_id=fresh.policy_key_id,
    )


class Status(StrEnum):
    """Where a device stands."""

    EXPECTED = "expected"
    """It has not enrolled, and has no identity yet; `registry.expected` keeps it."""
    PENDING = "pending"
    PREPARED = "prepared"
    ACTIVE = "active"
    REJECTED = "rejected"
    DECOMMISSIONED = "decommissioned"


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
    archived_status: Status | None = None
    """What it was when its organisation was archived; it is that again after a restore."""
    deleted_at: datetime | None = None
    deleted_by: str | None = None
    serial_key: str | None = None
    """By which its serial number is compared; `None` for the key of `serial`."""
    reported_serial: str | None = None
    """What a machine without a serial number of its own reports; `serial` is then made up."""
    enrolled_from: str | None = None
    """The address from which it enrolled last."""
    claimed_at: datetime | None = None
    """When a machine without a serial number of its own was handed this identity."""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    asset_tag: str = ""
    note: str = ""
    policy_key_id: str = ""
    """The key for policies that it pins; empty for the first one of the installation."""
    group_ids: tuple[UUID, ...] = ()
    """The groups that it is in, sorted; they are computed when it is stored."""
    revision: int = 1
    """Of its labels and groups."""
    groups_are_known: bool = True
    """Whether its groups were computed since it was last changed."""

    @property
    def is_unnamed(self) -> bool:
        """Whether the machine has no serial number of its own."""
        return self.reported_serial is not None

    @property
    def serial_duplicated(self) -> bool:
        """Whether another device has its serial number in another spelling."""
        return self.serial_key is not None and "\n" in self.serial_key

    @property
    def comes_back(self) -> bool:
        """Whether it is in use again when its organisation is restored."""
        return self.archived_status not in {None, Status.REJECTED}

    def may_reenroll(self, at: datetime) -> bool:
        """Whether an administrator's word lets it enroll again now."""
        until = self.reenrollment_allowed_until
        return until is not None and at < until

    @property
    def etag(self) -> str:
        """Changes with every change of what the API shows of the device."""
        return etag_of(
            self.id,
            self.tenant_id,
            self.serial,
            *astuple(self.hardware),
            self.status.value,
            self.token_version,
            self.enrollment_token_id,
            self.enrolled_at,
            self.decommissioned_at,
            self.reenrollment_allowed_until,
            self.deleted_at,
            self.reenrollment_refused_at,
            self.reported_serial,
            sorted(self.labels.items()),
            self.asset_tag,
            self.note,
            self.group_ids,
            self.policy_key_id,
        )

    def details(self) -> DeviceDetails:
        """What events say of its labels."""
        return DeviceDetails(
            serial=self.serial,
            org_id=self.tenant_id,
            labels=dict(sorted(self.labels.items())),
            asset_tag=self.asset_tag,
            note=self.note,
        )

    def snapshot(self) -> DeviceSnapshot:
        """What events say of it."""
        return DeviceSnapshot(
            serial=self.serial,
            model=self.hardware.model,
            org_id=self.tenant_id,
            status=self.status.value,
            token_version=self.token_version,
            enrollment_token_id=self.enrollment_token_id,
            reenrollment_allowed_until=self.reenrollment_allowed_until,
        )


@dataclass(frozen=True, slots=True)
class DeviceFilter:
    """Which devices to list; what is empty lets all through."""

    status: str = ""
    deleted: bool = False
    """Whether to list what stays of deleted ones, too."""
    serial: str = ""
    """In any spelling."""
    filter: str = ""
    group_id: UUID | None = None
    asset_tag: str = ""


APPROVAL_RETRY_SECONDS: Final = 60.0


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
