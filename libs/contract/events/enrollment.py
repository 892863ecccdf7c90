"""What enrollment tells: enrollment tokens and the registry of devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, ClassVar, Final
from uuid import UUID

from contract.events.base import (
    AT,
    ID,
    TENANT_ID,
    Action,
    CallsRefused,
    Outcome,
    Since,
    resources,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrollmentTokenSnapshot:
    """An enrollment token; never its secret."""

    name: str
    org_id: UUID
    expires_at: datetime | None
    max_uses: int | None
    uses: int
    serial_count: int
    require_approval: bool
    revoked_at: datetime | None
    labels: Annotated[Mapping[str, object], "Texts by key, which its devices get.", Since("0.2.0")]
    group_ids: Annotated[tuple[UUID, ...], "Groups that its devices come into.", Since("0.2.0")]
    only_expected: Annotated[bool, "Whether it admits expected devices alone.", Since("0.2.0")]
    policy_key_id: Annotated[
        str, "The key for policies that its devices pin; empty for the first one.", Since("0.3.0")
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSnapshot:
    """A device in the registry."""

    serial: str
    model: str
    org_id: UUID
    status: str
    token_version: int
    enrollment_token_id: UUID | None
    reenrollment_allowed_until: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrollmentRefusalSnapshot:
    """A machine that was not let in, and the reason that it was told."""

    serial: str
    model: str
    org_id: UUID
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceDetails:
    """What administrators say of a device."""

    serial: str
    org_id: UUID
    labels: Annotated[Mapping[str, object], "Texts by key."]
    asset_tag: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSnapshot:
    """A group of devices; its filter is null where members are listed."""

    name: str
    alias: str
    org_id: UUID
    description: str
    priority: int
    filter: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedMembers:
    """How many serial numbers came onto a group's list and left it, and the first 100 of each."""

    alias: str
    added: int
    removed: int
    added_serials: tuple[str, ...]
    removed_serials: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedDevice:
    """A device, with the ids of groups into which it came and of those that it left."""

    id: UUID
    serial: str
    joined: tuple[UUID, ...]
    left: tuple[UUID, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedDevices:
    """Devices of an organisation, at most 500."""

    count: int
    devices: tuple[MovedDevice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _TokenAction(Action):
    RESOURCE: ClassVar[str] = "enrollment-tokens/{id}"

    @property
    def related(self) -> Sequence[str]:
        """The groups that its devices come into."""
        after = getattr(self, "after", None)
        return resources("device-groups", getattr(after, "group_ids", ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class _DeviceAction(Action):
    RESOURCE: ClassVar[str] = "devices/{id}"

    @property
    def related(self) -> Sequence[str]:
        """The token that it came with."""
        after = getattr(self, "after", None)
        return resources("enrollment-tokens", [getattr(after, "enrollment_token_id", None)])


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCreated(_TokenAction):
    """An enrollment token was made."""

    NAME: ClassVar[str] = "enrollment.token_created"
    after: EnrollmentTokenSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRevoked(_TokenAction):
    """An enrollment token was revoked."""

    NAME: ClassVar[str] = "enrollment.token_revoked"
    before: EnrollmentTokenSnapshot
    after: EnrollmentTokenSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrollmentRefused(_TokenAction):
    """A machine with a genuine key was not let in; told at most once an hour for each."""

    NAME: ClassVar[str] = "enrollment.refused"
    OUTCOME: ClassVar[Outcome] = "refused"
    after: EnrollmentRefusalSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEnrolled(_DeviceAction):
    """A device enrolled."""

    NAME: ClassVar[str] = "enrollment.device_enrolled"
    before: DeviceSnapshot | None
    after: DeviceSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReenrolled(_DeviceAction):
    """A known device enrolled again, as it was allowed."""

    NAME: ClassVar[str] = "enrollment.device_reenrolled"
    before: DeviceSnapshot | None
    after: DeviceSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePending(_DeviceAction):
    """A device waits for approval."""

    NAME: ClassVar[str] = "enrollment.device_pending"
    before: DeviceSnapshot | None
    after: DeviceSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceApproved(_DeviceAction):
    """An admin let a waiting device in."""

    NAME: ClassVar[str] = "enrollment.device_approved"
    before: DeviceSnapshot
    after: DeviceSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRejected(_DeviceAction):
    """An admin refused a waiting device."""

    NAME: ClassVar[str] = "enrollment.device_rejected"
    before: DeviceSnapshot
    after: DeviceSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePrepared(_DeviceAction):
    """A device was registered by an admin."""

    NAME: ClassVar[str] = "enrollment.device_prepared"
    before: DeviceSnapshot | None
    after: DeviceSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRecovered(_DeviceAction):
    """A device that was lost from the registry called."""

    NAME: ClassVar[str] = "enrollment.device_recovered"
    after: DeviceSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ReenrollmentAllowed(_DeviceAction):
    """A device may enroll again for a while."""

    NAME: ClassVar[str] = "enrollment.reenrollment_allowed"
    before: DeviceSnapshot
    after: DeviceSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ReenrollmentRefused(_DeviceAction):
    """Something with a known serial number tried to enroll and was refused."""

    NAME: ClassVar[str] = "enrollment.reenrollment_refused"
    OUTCOME: ClassVar[Outcome] = "refused"
    before: DeviceSnapshot | None
    after: DeviceSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceDecommissioned(_DeviceAction):
    """A device was locked out for good."""

    NAME: ClassVar[str] = "enrollment.device_decommissioned"
    before: DeviceSnapshot
    after: DeviceSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceDeleted(_DeviceAction):
    """A decommissioned device was deleted; its serial number stays out."""

    NAME: ClassVar[str] = "enrollment.device_deleted"
    before: DeviceSnapshot
    after: DeviceSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRestored(_DeviceAction):
    """A device works again: its organisation, with which it was archived, was restored."""

    NAME: ClassVar[str] = "enrollment.device_restored"
    before: DeviceSnapshot
    after: DeviceSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceExpected(_DeviceAction):
    """An admin said that a device will enroll."""

    NAME: ClassVar[str] = "enrollment.device_expected"
    after: DeviceDetails


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedDeviceRemoved(_DeviceAction):
    """A device that never enrolled is not expected any more."""

    NAME: ClassVar[str] = "enrollment.expected_device_removed"
    before: DeviceDetails


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLabelsChanged(_DeviceAction):
    """An admin changed a device's labels, asset tag or note."""

    NAME: ClassVar[str] = "enrollment.device_labels_changed"
    before: DeviceDetails
    after: DeviceDetails


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceGroupsChanged(Action):
    """Devices of an organisation came into groups or left some, for whatever reason."""

    NAME: ClassVar[str] = "enrollment.device_groups_changed"
    RESOURCE: ClassVar[str] = "tenants/{id}/device-groups"
    after: MovedDevices

    @property
    def related(self) -> Sequence[str]:
        """The devices and the groups."""
        devices = self.after.devices
        groups = (group for device in devices for group in (*device.joined, *device.left))
        return [
            *resources("devices", (device.id for device in devices)),
            *resources("device-groups", groups),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _GroupAction(Action):
    RESOURCE: ClassVar[str] = "device-groups/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCreated(_GroupAction):
    """A group of devices was made."""

    NAME: ClassVar[str] = "enrollment.group_created"
    after: GroupSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupUpdated(_GroupAction):
    """A group of devices was changed."""

    NAME: ClassVar[str] = "enrollment.group_updated"
    before: GroupSnapshot
    after: GroupSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDeleted(_GroupAction):
    """A group of devices was deleted; its devices stay."""

    NAME: ClassVar[str] = "enrollment.group_deleted"
    before: GroupSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMembersChanged(_GroupAction):
    """Serial numbers came onto the list of a group, or left it."""

    NAME: ClassVar[str] = "enrollment.group_members_changed"
    after: ChangedMembers


_DETAILS: Final = DeviceDetails(
    serial="SN-0042", org_id=TENANT_ID, labels={"room": "214"}, asset_tag="A-0417", note=""
)
_GROUP: Final = GroupSnapshot(
    name="Year 7",
    alias="year-7",
    org_id=TENANT_ID,
    description="",
    priority=40,
    filter="labels.year = 7",
)
_TOKEN: Final = EnrollmentTokenSnapshot(
    name="Room 12",
    org_id=TENANT_ID,
    expires_at=AT,
    max_uses=30,
    uses=0,
    serial_count=0,
    require_approval=False,
    revoked_at=None,
    labels={"room": "12"},
    group_ids=(),
    only_expected=False,
    policy_key_id="kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
)
_DEVICE: Final = DeviceSnapshot(
    serial="SN-0042",
    model="Latitude 3340",
    org_id=TENANT_ID,
    status="active",
    token_version=1,
    enrollment_token_id=ID,
    reenrollment_allowed_until=None,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrollmentCallsRefused(CallsRefused):
    """Calls of a user to enrollment were refused.

    Told every ten seconds, once for each user, RPC and reason. `ROLE_MAY_NOT`: the user's role may
    not do this. `FOREIGN_TENANT`: the call names a tenant that exists, and is not below the user's.
    """

    NAME: ClassVar[str] = "enrollment.calls_refused"


EXAMPLES: Final[tuple[Action, ...]] = (
    TokenCreated(id=ID, after=_TOKEN),
    TokenRevoked(id=ID, before=_TOKEN, after=replace(_TOKEN, revoked_at=AT)),
    EnrollmentRefused(
        id=ID,
        after=EnrollmentRefusalSnapshot(
            serial="SN-0042", model="Latitude 3340", org_id=TENANT_ID, reason="SERIAL_NOT_LISTED"
        ),
    ),
    DeviceEnrolled(id=ID, before=_DEVICE, after=_DEVICE),
    DeviceReenrolled(id=ID, before=_DEVICE, after=_DEVICE),
    DevicePending(id=ID, before=_DEVICE, after=_DEVICE),
    DeviceApproved(id=ID, before=_DEVICE, after=_DEVICE),
    DeviceRejected(id=ID, before=_DEVICE, after=_DEVICE),
    DevicePrepared(id=ID, before=_DEVICE, after=_DEVICE),
    DeviceRecovered(id=ID, after=_DEVICE),
    ReenrollmentAllowed(id=ID, before=_DEVICE, after=_DEVICE),
    ReenrollmentRefused(id=ID, before=_DEVICE, after=_DEVICE),
    DeviceDecommissioned(id=ID, before=_DEVICE, after=_DEVICE),
    DeviceDeleted(
        id=ID,
        before=replace(_DEVICE, status="decommissioned"),
        after=replace(_DEVICE, status="decommissioned", model="", enrollment_token_id=None),
    ),
    DeviceRestored(id=ID, before=replace(_DEVICE, status="decommissioned"), after=_DEVICE),
    DeviceExpected(id=ID, after=_DETAILS),
    ExpectedDeviceRemoved(id=ID, before=_DETAILS),
    DeviceLabelsChanged(id=ID, before=replace(_DETAILS, labels={}), after=_DETAILS),
    DeviceGroupsChanged(
        id=TENANT_ID,
        after=MovedDevices(
            count=1,
            devices=(MovedDevice(id=ID, serial="SN-0042", joined=(TENANT_ID,), left=()),),
        ),
    ),
    GroupCreated(id=ID, after=_GROUP),
    GroupUpdated(id=ID, before=_GROUP, after=replace(_GROUP, priority=50)),
    GroupDeleted(id=ID, before=_GROUP),
    GroupMembersChanged(
        id=ID,
        after=ChangedMembers(
            alias="cart-3", added=1, removed=0, added_serials=("SN-0042",), removed_serials=()
        ),
    ),
    EnrollmentCallsRefused.example("EnrollmentTokenService/CreateEnrollmentToken"),
)
"""One of each; this is the list of what enrollment sends."""
