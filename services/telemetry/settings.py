"""Telemetry's settings."""

from __future__ import annotations

from pydantic import Field

from servicekit.settings import ServiceSettings


class TelemetrySettings(ServiceSettings):
    """The settings of the telemetry service."""

    online_seconds: int = Field(
        default=900,
        ge=1,
        le=86_400,
        description="A device that was heard of within this time is online.",
    )
    waiting_states: int = Field(
        default=5_000,
        ge=1,
        description="States that wait to be written; further ones are refused with a delay.",
    )
    emptied_queues: int = Field(
        default=480,
        ge=1,
        description="Devices that empty their queues of states at the same time, when all goes"
        " quickly; further ones wait for some seconds, and are refused then.",
    )
    waiting_queues: int = Field(
        default=256,
        ge=0,
        description="Devices that wait to empty their queues of states; further ones are refused"
        " with a delay.",
    )
    waiting_events: int = Field(
        default=20_000,
        ge=1,
        description="Events that wait to be written; further ones are refused with a delay.",
    )
    body_budget_bytes: int = Field(
        default=128 << 20,
        ge=1 << 20,
        description="Bytes of event bodies that are worked on at the same time.",
    )
    event_retention_days: int = Field(
        default=90,
        ge=7,
        le=730,
        description="Days that events are kept, where an organisation has not said otherwise.",
    )
    exports: int = Field(
        default=6,
        ge=1,
        le=100,
        description="Files that are exported at the same time; further ones are refused.",
    )
    device_event_bytes: int = Field(
        default=128 << 20,
        ge=1 << 20,
        description="Bytes of events that a device may have stored on a day; further ones are"
        " refused until the next one. A batch that begins below it is taken whole.",
    )
    device_state_bytes: int = Field(
        default=256 << 20,
        ge=1 << 20,
        description="Bytes of states that a device may have stored on a day.",
    )
    tenant_event_bytes: int = Field(
        default=4 << 30,
        ge=1 << 20,
        description="Bytes of events that the devices of an organisation may have stored on a day,"
        " when it has few devices.",
    )
    tenant_event_bytes_per_device: int = Field(
        default=16 << 20,
        ge=0,
        description="Bytes of events for each device of an organisation, when that makes more.",
    )
    tenant_state_bytes: int = Field(
        default=16 << 30,
        ge=1 << 20,
        description="Bytes of states that the devices of an organisation may have stored on a day,"
        " when it has few devices.",
    )
    tenant_state_bytes_per_device: int = Field(
        default=32 << 20,
        ge=0,
        description="Bytes of states for each device of an organisation, when that makes more.",
    )
    device_quarantine_bytes: int = Field(
        default=64 << 20,
        ge=1 << 20,
        description="Bytes of a device's events that are kept in quarantine: the latest.",
    )
    tenant_quarantine_bytes: int = Field(
        default=1 << 30,
        ge=1 << 20,
        description="Bytes of an organisation's events that are kept in quarantine; what is too"
        " much is taken from the device with the most.",
    )
