"""What telemetry holds about one person, for an export."""

from __future__ import annotations

from typing import Final

from servicekit.rpc.persons import Table

TABLES: Final = (
    Table(
        kind="device state",
        source="telemetry.device",
        shown=("id", "name", "serial", "contact_at", "state_received_at"),
        searched=("name", "serial", "last_error", "update_status", "installed_apps", "labels"),
        json=frozenset({"installed_apps", "labels"}),
    ),
    Table(
        kind="device event",
        source="telemetry.event",
        key=(("occurred_at", "timestamptz"), ("id", "uuid")),
        shown=("id", "device_id", "occurred_at", "received_at", "severity", "type"),
        searched=("event_id", "type", "message", "payload"),
        json=frozenset({"payload"}),
        rest=True,
    ),
    Table(
        kind="quarantined event",
        source="telemetry.quarantined_event",
        shown=("id", "device_id", "received_at", "reason"),
        searched=("content",),
        json=frozenset({"content"}),
    ),
)
"""What may hold something about a person, in the order of an export."""
