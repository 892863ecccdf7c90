"""What telemetry tells: events of devices, exports, and how long events are kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, ClassVar, Final
from uuid import UUID

from contract.events.base import (
    AT,
    ID,
    TENANT_ID,
    Action,
    AtLeast,
    CallsRefused,
    Event,
    Export,
    JsonText,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedEvent:
    """What a device reported."""

    id: UUID
    device_id: UUID
    event_id: Annotated[
        str,
        "The id that the device gave it; with # and a digest behind it where the device gave the"
        " same id to another event before.",
    ]
    type: str
    severity: str
    message: str
    occurred_at: Annotated[datetime, "By the device's clock."]
    received_at: datetime
    payload: Annotated[JsonText, "Any JSON, exactly as the device sent it."]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEvents(Event):
    """Devices reported events; one message holds many.

    Those of each device are in the order in which they were stored.
    """

    # The one event that comes from no outbox and is in no audit log. Its stream is its own.
    NAME: ClassVar[str] = "telemetry.device_events"
    events: Annotated[tuple[ReportedEvent, ...], AtLeast(1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionDays:
    """Days; null for the default."""

    days: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRetentionUpdated(Action):
    """An organisation keeps its devices' events for another time."""

    NAME: ClassVar[str] = "telemetry.event_retention_updated"
    RESOURCE: ClassVar[str] = "tenants/{id}/event-retention"
    before: RetentionDays
    after: RetentionDays


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicesExported(Action):
    """A user began to export devices."""

    NAME: ClassVar[str] = "telemetry.devices_exported"
    RESOURCE: ClassVar[str] = "tenants/{id}/devices"
    after: Export


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsExported(Action):
    """A user began to export devices' events."""

    NAME: ClassVar[str] = "telemetry.events_exported"
    RESOURCE: ClassVar[str] = "tenants/{id}/events"
    after: Export


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinedEventExported(Action):
    """A user began to export a quarantined event."""

    NAME: ClassVar[str] = "telemetry.quarantined_event_exported"
    RESOURCE: ClassVar[str] = "quarantined-events/{id}"
    after: Export


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneEvidence:
    """The facts by which a device is recognised as several machines."""

    org_id: UUID
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneSuspected(Action):
    """States of a device look like those of several machines; told at most once an hour."""

    NAME: ClassVar[str] = "telemetry.clone_suspected"
    RESOURCE: ClassVar[str] = "devices/{id}"
    after: CloneEvidence


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryCallsRefused(CallsRefused):
    """Calls of a user to telemetry were refused.

    Told every ten seconds, once for each user, RPC and reason. `ROLE_MAY_NOT`: the user's role may
    not do this. `FOREIGN_TENANT`: the call names a tenant that exists, and is not below the user's.
    """

    NAME: ClassVar[str] = "telemetry.calls_refused"


EXAMPLES: Final[tuple[Event, ...]] = (
    EventRetentionUpdated(id=ID, before=RetentionDays(days=None), after=RetentionDays(days=90)),
    DevicesExported(id=ID, after=Export(format="csv", filter={"status": "online"})),
    EventsExported(id=ID, after=Export(format="csv", filter={"action": "app.install_failed"})),
    QuarantinedEventExported(id=ID, after=Export(format="csv", filter={})),
    CloneSuspected(
        id=ID,
        after=CloneEvidence(
            org_id=TENANT_ID,
            evidence="its system disk has 64000000000 bytes and 128000000000 bytes in turn",
        ),
    ),
    DeviceEvents(
        events=(
            ReportedEvent(
                id=TENANT_ID,
                device_id=ID,
                event_id="17",
                type="app.install_failed",
                severity="error",
                message="disk full",
                occurred_at=AT,
                received_at=AT,
                payload=JsonText('{"app":"org.gnome.Calculator"}'),
            ),
        )
    ),
    TelemetryCallsRefused.example("EventService/UpdateEventRetention"),
)
"""One of each; this is the list of what telemetry sends."""
