"""Devices as the inventory has them, and what lists ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

from servicekit.rpc.pagination import Page

ACTIVE: Final = "active"
DECOMMISSIONED: Final = "decommissioned"
NO_VERDICT: Final = "NONE"


@dataclass(frozen=True, slots=True)
class Membership:
    """The labels of a device, and the groups that it is in."""

    labels: Mapping[str, str]
    group_ids: tuple[UUID, ...]


@dataclass(frozen=True, slots=True)
class RegisteredDevice:
    """A device as the registry has it."""

    id: UUID
    tenant_id: UUID
    status: str
    serial: str
    model: str
    registered_at: datetime
    enrolled_at: datetime | None
    deleted: bool = False
    membership: Membership | None = None
    """Its labels and groups; `None` while the registry does not know them."""


@dataclass(frozen=True, slots=True)
class AppliedVersion:
    """The policy version that a device said it applied."""

    device_id: UUID
    tenant_id: UUID
    version: str
    reported_at: datetime


@dataclass(frozen=True, slots=True)
class Restricted:
    """Whether a device has the other policy of an attestation gate, as policy has it."""

    device_id: UUID
    tenant_id: UUID
    restricted: bool


@dataclass(frozen=True, slots=True)
class BootGate:
    """What an organisation asks of its devices' boots, as policy has it."""

    tenant_id: UUID
    below: tuple[str, ...]
    """The verdicts that are not enough; none where nothing is asked."""
    grace: timedelta
    """So long after its enrollment a device may be without evidence."""


@dataclass(frozen=True, slots=True)
class BootVerdict:
    """The verdict over a device's latest boot, as attestation has it."""

    device_id: UUID
    tenant_id: UUID
    verdict: str
    attested_at: datetime


class NamePosition(NamedTuple):
    """Behind which device a list goes on."""

    name: str
    id: UUID

    @classmethod
    def read(cls, name: str, device_id: str) -> NamePosition:
        """The position of a token's parts.

        Raises:
            ValueError: it is none that a list answered.
        """
        return cls(name, UUID(device_id))


@dataclass(frozen=True, slots=True)
class DeviceSummary:
    """A device in a list. Its fields are columns of `telemetry.device`."""

    id: UUID
    tenant_id: UUID
    registry_status: str
    name: str
    serial: str
    model: str
    policy_version: str
    health: str
    registered_at: datetime
    enrolled_at: datetime | None
    contact_at: datetime | None
    state_received_at: datetime | None
    clone_suspected_at: datetime | None = None
    attestation_verdict: str = "NONE"
    attested_at: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    group_ids: Sequence[UUID] = ()
    falls_short: bool = False
    """Whether that is not what its organisation asks for; no column."""
    restricted: bool = False
    """Whether it has the other policy of an attestation gate; no column."""

    @property
    def health_detail(self) -> str:
        """`UNKNOWN` before the first state; then lists say `warning`, for they need some value."""
        return "UNKNOWN" if self.state_received_at is None else ""

    @property
    def never_seen(self) -> bool:
        """Whether the device has not been heard of since it enrolled."""
        return (
            self.state_received_at is None
            and not self.policy_version
            and (self.contact_at is None or self.contact_at == self.enrolled_at)
        )

    @property
    def position(self) -> NamePosition:
        """Where it stands in lists."""
        return NamePosition(self.name, self.id)

    @property
    def last_seen(self) -> datetime:
        """When the device last called; when it was registered if it never did, even to enroll."""
        return self.contact_at or self.registered_at

    def is_short_of(self, gate: BootGate, at: datetime) -> bool:
        """Whether its latest boot is not what its organisation asks for at a time."""
        if self.registry_status != ACTIVE or self.attestation_verdict not in gate.below:
            return False
        if self.attestation_verdict != NO_VERDICT:
            return True
        return self.enrolled_at is not None and self.enrolled_at + gate.grace <= at

    def status(self, online_since: datetime) -> str:
        """`decommissioned`, `online` (heard of since then) or `offline`."""
        if self.registry_status == DECOMMISSIONED:
            return DECOMMISSIONED
        online = self.contact_at is not None and self.contact_at >= online_since
        return "online" if online else "offline"


DevicePage = Page[DeviceSummary, NamePosition]


@dataclass(frozen=True, slots=True)
class PolicyInForce:
    """What of a device's policy is shown with it: whether one is in force, and its channel."""

    exists: bool
    update_channel: str


@dataclass(frozen=True, slots=True)
class DeviceDetail:
    """A device with its latest state. `installed_apps` is JSON text, or `None`."""

    summary: DeviceSummary
    installed_apps: str | None
    update_status: str
    last_error: str
    disk_health: str
    battery_health: str

    def is_orphaned(self, in_force: PolicyInForce | None) -> bool:
        """Whether it runs a policy although, as far as is known, none is in force for it."""
        return (
            in_force is not None
            and not in_force.exists
            and self.summary.policy_version not in {"", "0"}
            and self.summary.registry_status != "decommissioned"
        )


@dataclass(frozen=True, slots=True)
class DeviceFilter:
    """Which devices to list."""

    status: str = ""
    health: str = ""
    search: str = ""
    seen_after: datetime | None = None
    seen_before: datetime | None = None
    serial: str = ""
    clone_suspected: bool = False
    attestation_verdict: str = ""
    group_id: UUID | None = None
    label: str = ""
    """The key of a label, or key and value, `room=214`."""
    falls_short: bool = False
    restricted: bool = False
