"""What administrators see: devices, events, and which of them they ask for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

HIDDEN: Final = ("pending", "rejected")
"""Devices with these statuses in the registry are not a part of the fleet."""
DECOMMISSIONED: Final = "decommissioned"


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


@dataclass(frozen=True, slots=True)
class AppliedVersion:
    """The policy version that a device said it applied."""

    device_id: UUID
    tenant_id: UUID
    version: str
    reported_at: datetime


@dataclass(frozen=True, slots=True)
class NamePosition:
    """Behind which device a list goes on."""

    name: str
    id: UUID


@dataclass(frozen=True, slots=True)
class DeviceSummary:
    """A device in a list."""

    id: UUID
    tenant_id: UUID
    registry_status: str
    name: str
    model: str
    policy_version: str
    health: str
    registered_at: datetime
    contact_at: datetime | None

    @property
    def position(self) -> NamePosition:
        """Where it stands in lists."""
        return NamePosition(self.name, self.id)

    @property
    def last_seen(self) -> datetime:
        """When the device last called; when it was registered if it never did."""
        return self.contact_at or self.registered_at

    def status(self, online_since: datetime) -> str:
        """`decommissioned`, `online` (heard of since then) or `offline`."""
        if self.registry_status == DECOMMISSIONED:
            return DECOMMISSIONED
        online = self.contact_at is not None and self.contact_at >= online_since
        return "online" if online else "offline"


@dataclass(frozen=True, slots=True)
class DevicePage:
    """Some devices, and behind what to go on; `None` at the end."""

    devices: list[DeviceSummary]
    after: NamePosition | None


@dataclass(frozen=True, slots=True)
class DeviceDetail:
    """A device with its latest state. `installed_apps` is JSON text, or `None`."""

    summary: DeviceSummary
    serial: str
    state_received_at: datetime | None
    installed_apps: str | None
    update_status: str
    last_error: str
    disk_health: str
    battery_health: str


@dataclass(frozen=True, slots=True)
class EventPosition:
    """Behind which event a list goes on."""

    occurred_at: datetime
    id: UUID


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event of a device. `payload` is JSON text, or `None`."""

    id: UUID
    tenant_id: UUID
    device_id: UUID
    type: str
    severity: str
    message: str
    payload: str | None
    occurred_at: datetime
    received_at: datetime

    @property
    def position(self) -> EventPosition:
        """Where it stands in lists."""
        return EventPosition(self.occurred_at, self.id)


@dataclass(frozen=True, slots=True)
class EventPage:
    """Some events, and behind what to go on; `None` at the end."""

    events: list[StoredEvent]
    after: EventPosition | None


@dataclass(frozen=True, slots=True)
class QuarantinedEvent:
    """An event that was set aside; of its content the beginning, and how many bytes it has."""

    id: UUID
    tenant_id: UUID
    device_id: UUID
    reason: str
    content: str
    content_bytes: int
    received_at: datetime


@dataclass(frozen=True, slots=True)
class DeviceFilter:
    """Which devices to list."""

    status: str = ""
    health: str = ""
    search: str = ""
    seen_after: datetime | None = None
    seen_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events to list."""

    device_id: UUID | None = None
    type: str = ""
    severity: str = ""
    search: str = ""
    occurred_from: datetime | None = None
    occurred_before: datetime | None = None
    as_of: str | None = None
    """Only what was committed in this snapshot of the database."""
