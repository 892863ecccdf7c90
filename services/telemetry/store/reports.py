"""Writes what devices report: many reports in one statement."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from servicekit.postgres import Connection, Runs, columns
from services.telemetry.domain.events import BadEvent, NewEvent
from services.telemetry.domain.state import SETTLED, StateReport

QUARANTINE_PER_DEVICE: Final = 100_000
"""The events of a device that are kept in quarantine: its latest; as many as one body may have."""

# The condition is domain.state.is_newer in SQL.
_STORE_STATES: Final = """
INSERT INTO telemetry.device AS d
    (id, tenant_id, name, registered_at, contact_at, observed_at, state_received_at,
     seen_day, installed_apps, update_status, disk_total_bytes, disk_free_bytes, battery_percent,
     last_error, health, disk_health, battery_health)
SELECT r.id, r.tenant_id, r.id::text, r.received_at, r.received_at, r.observed_at, r.received_at,
       (r.received_at AT TIME ZONE 'UTC')::date, r.apps::json, r.update_status,
       r.disk_total::numeric, r.disk_free::numeric, r.battery, r.last_error, r.health,
       r.disk_health, r.battery_health
FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::timestamptz[], $5::text[], $6::text[],
            $7::text[], $8::text[], $9::float8[], $10::text[], $11::text[], $12::text[],
            $13::text[])
    AS r (id, tenant_id, received_at, observed_at, apps, update_status,
          disk_total, disk_free, battery, last_error, health, disk_health, battery_health)
ON CONFLICT (id) DO UPDATE SET
    contact_at = greatest(d.contact_at, excluded.contact_at),
    seen_day = greatest(d.seen_day, excluded.seen_day),
    observed_at = excluded.observed_at,
    state_received_at = excluded.state_received_at,
    installed_apps = excluded.installed_apps,
    update_status = excluded.update_status,
    disk_total_bytes = excluded.disk_total_bytes,
    disk_free_bytes = excluded.disk_free_bytes,
    battery_percent = excluded.battery_percent,
    last_error = excluded.last_error,
    health = excluded.health,
    disk_health = excluded.disk_health,
    battery_health = excluded.battery_health
WHERE d.observed_at IS NULL
    OR least(excluded.observed_at, excluded.state_received_at)
        >= least(d.observed_at, d.state_received_at)
    OR d.observed_at > d.state_received_at + $14::interval
    OR d.state_received_at < excluded.state_received_at - $14::interval
RETURNING d.id
"""


async def store_states(database: Runs, reports: Sequence[StateReport]) -> list[StateReport]:
    """Stores states, one per device; answers those that are older than what is stored."""
    rows = [
        (
            report.device_id,
            report.tenant_id,
            report.received_at,
            report.state.observed_at,
            report.state.installed_apps,
            report.state.update_status,
            str(report.state.disk_total_bytes),
            str(report.state.disk_free_bytes),
            report.state.battery_percent,
            report.state.last_error,
            report.state.health.value,
            report.state.disk_health.value,
            report.state.battery_health.value,
        )
        for report in reports
    ]
    stored = await database.fetch(_STORE_STATES, *columns(rows), SETTLED)
    if len(stored) == len(rows):
        return []
    ids = {row["id"] for row in stored}
    return [report for report in reports if report.device_id not in ids]


# The last contact of devices (each with its tenant).
_STORE_CONTACTS: Final = """
INSERT INTO telemetry.device AS d (id, tenant_id, name, registered_at, contact_at, seen_day)
SELECT r.id, r.tenant_id, r.id::text, $3, $3, ($3 AT TIME ZONE 'UTC')::date
FROM unnest($1::uuid[], $2::uuid[]) AS r (id, tenant_id)
ON CONFLICT (id) DO UPDATE SET contact_at = greatest(d.contact_at, excluded.contact_at),
    seen_day = greatest(d.seen_day, excluded.seen_day)
"""


async def store_contacts(
    database: Runs, contacts: Iterable[tuple[UUID, UUID]], contact_at: datetime
) -> None:
    """Notes that devices (each with its tenant) called."""
    if rows := sorted(contacts):
        await database.fetch(_STORE_CONTACTS, *columns(rows), contact_at)


# Each partition has the key (device_id, event_id); which partition it is follows from the event's
# id, so that an event meets itself however often, and with whatever time, it is sent.
_STORE_EVENTS: Final = f"""
WITH contact AS ({_STORE_CONTACTS}), stored AS (
    INSERT INTO telemetry.event
        (device_id, tenant_id, id, event_id, type, severity, message, payload, occurred_at,
         received_at, id_day)
    SELECT r.device_id, r.tenant_id, r.id, r.event_id, r.type, r.severity, r.message,
           r.payload::json, r.occurred_at, $3, telemetry.event_day(r.event_id)
    FROM unnest($4::uuid[], $5::uuid[], $6::uuid[], $7::text[], $8::text[], $9::text[],
                $10::text[], $11::text[], $12::timestamptz[])
        AS r (device_id, tenant_id, id, event_id, type, severity, message, payload, occurred_at)
    ON CONFLICT DO NOTHING
    RETURNING id
)
SELECT id FROM stored
"""


async def store_events(
    database: Runs,
    events: Sequence[tuple[UUID, UUID, NewEvent]],
    contacts: Iterable[tuple[UUID, UUID]],
    received_at: datetime,
) -> Collection[UUID]:
    """Stores events (device, tenant, event) and contacts (device, tenant) in one statement.

    Answers the ids of those events that were not there yet.
    """
    if not events:
        await store_contacts(database, contacts, received_at)
        return ()
    called = sorted(contacts)
    # Two processes that write the same events in the same order cannot block each other.
    rows = sorted(
        ((device, tenant, *event) for device, tenant, event in events),
        key=lambda row: (row[0].int, row[3]),
    )
    stored = await database.fetch(
        _STORE_EVENTS,
        [device for device, _ in called],
        [tenant for _, tenant in called],
        received_at,
        *columns(rows),
    )
    return {row["id"] for row in stored}


async def set_aside(
    connection: Connection, events: Sequence[tuple[UUID, UUID, BadEvent]], received_at: datetime
) -> None:
    """Puts events (device, tenant, event) into quarantine, each once per device."""
    if not events:
        return
    rows = sorted(
        ((device, tenant, *event) for device, tenant, event in events),
        key=lambda row: (row[0].int, row[3]),
    )
    stored = await connection.fetch(
        "INSERT INTO telemetry.quarantined_event"
        " (device_id, tenant_id, id, digest, reason, content, received_at)"
        " SELECT r.*, $7 FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::bytea[], $5::text[],"
        " $6::text[]) AS r ON CONFLICT (device_id, digest) DO NOTHING RETURNING device_id",
        *columns(rows),
        received_at,
    )
    for device_id in sorted({row["device_id"] for row in stored}):
        await connection.execute(
            "DELETE FROM telemetry.quarantined_event WHERE device_id = $1 AND id < ("
            "SELECT id FROM telemetry.quarantined_event WHERE device_id = $1"
            " ORDER BY id DESC OFFSET $2 LIMIT 1)",
            device_id,
            QUARANTINE_PER_DEVICE - 1,
        )
