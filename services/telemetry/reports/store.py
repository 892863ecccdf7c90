"""Writes what devices report: many reports in one statement."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from servicekit.data.postgres import Connection, Runs, columns
from servicekit.security.digests import sha256_hex
from services.telemetry.reports.events import CLOCK_AHEAD, CLOCK_UNSET, BadEvent, NewEvent
from services.telemetry.reports.state import SETTLED, StateReport
from services.telemetry.where import NOT_DELETED


class _Column(NamedTuple):
    """A column of a device's state.

    Args:
        name: the column.
        type: its type.
        value: what a report says of it.
        sent_as: the type that asyncpg encodes quickest, if it is another one.
    """

    name: str
    type: str
    value: Callable[[StateReport], Any]
    sent_as: str = ""


_WRITTEN: Final = (
    _Column("observed_at", "timestamptz", attrgetter("state.observed_at")),
    _Column("state_received_at", "timestamptz", attrgetter("received_at")),
    _Column("installed_apps", "json", attrgetter("state.installed_apps"), "text"),
    _Column("update_status", "text", attrgetter("state.update_status")),
    _Column("disk_total_bytes", "numeric", lambda r: str(r.state.disk_total_bytes), "text"),
    _Column("disk_free_bytes", "numeric", lambda r: str(r.state.disk_free_bytes), "text"),
    _Column("battery_percent", "float8", attrgetter("state.battery_percent")),
    _Column("last_error", "text", attrgetter("state.last_error")),
    _Column("health", "text", attrgetter("state.health.value")),
    _Column("disk_health", "text", attrgetter("state.disk_health.value")),
    _Column("battery_health", "text", attrgetter("state.battery_health.value")),
)
"""What a state writes into `telemetry.device`. Its device and tenant are parameters 1 and 2."""
_NAMES: Final = ", ".join(c.name for c in _WRITTEN)
_VALUES: Final = ", ".join(f"r.{c.name}::{c.type}" for c in _WRITTEN)
_UNNEST: Final = ", ".join(f"${n}::{c.sent_as or c.type}[]" for n, c in enumerate(_WRITTEN, 3))
_CHANGES: Final = ", ".join(f"{c.name} = excluded.{c.name}" for c in _WRITTEN)
_NOT_DELETED: Final = NOT_DELETED.format("r.id")
_SETTLED: Final = f"${len(_WRITTEN) + 3}::interval"

# The condition is state.is_newer in SQL.
_STORE_STATES: Final = f"""
INSERT INTO telemetry.device AS d
    (id, tenant_id, name, registered_at, contact_at, seen_day, {_NAMES})
SELECT r.id, r.tenant_id, r.id::text, r.state_received_at, r.state_received_at,
       (r.state_received_at AT TIME ZONE 'UTC')::date, {_VALUES}
FROM unnest($1::uuid[], $2::uuid[], {_UNNEST}) AS r (id, tenant_id, {_NAMES})
WHERE {_NOT_DELETED}
ON CONFLICT (id) DO UPDATE SET
    contact_at = greatest(d.contact_at, excluded.contact_at),
    seen_day = greatest(d.seen_day, excluded.seen_day), {_CHANGES}
WHERE d.observed_at IS NULL
    OR least(excluded.observed_at, excluded.state_received_at)
        >= least(d.observed_at, d.state_received_at)
    OR d.observed_at > d.state_received_at + {_SETTLED}
    OR d.state_received_at < excluded.state_received_at - {_SETTLED}
RETURNING d.id
"""


async def store_states(database: Runs, reports: Sequence[StateReport]) -> list[StateReport]:
    """Stores states, one per device; answers those that are older than what is stored."""
    stored = await database.fetch(
        _STORE_STATES,
        [report.device_id for report in reports],
        [report.tenant_id for report in reports],
        *([column.value(report) for report in reports] for column in _WRITTEN),
        SETTLED,
    )
    if len(stored) == len(reports):
        return []
    ids = {row["id"] for row in stored}
    return [report for report in reports if report.device_id not in ids]


# The last contact of devices (each with its tenant).
_STORE_CONTACTS: Final = f"""
INSERT INTO telemetry.device AS d (id, tenant_id, name, registered_at, contact_at, seen_day)
SELECT r.id, r.tenant_id, r.id::text, $3, $3, ($3 AT TIME ZONE 'UTC')::date
FROM unnest($1::uuid[], $2::uuid[]) AS r (id, tenant_id)
WHERE {_NOT_DELETED}
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
_CLOCK_OFF: Final = (
    f"(r.occurred_at > $3 + interval '{CLOCK_AHEAD // timedelta(seconds=1)} seconds'"
    f" OR r.occurred_at < '{CLOCK_UNSET.isoformat()}')"
)
_STORE_EVENTS: Final = f"""
WITH contact AS ({_STORE_CONTACTS}), stored AS (
    INSERT INTO telemetry.event
        (device_id, tenant_id, id, event_id, type, severity, message, payload, occurred_at,
         received_at, device_time, id_day)
    SELECT r.device_id, r.tenant_id, r.id, r.event_id, r.type, r.severity, r.message,
           r.payload::json, CASE WHEN {_CLOCK_OFF} THEN $3 ELSE r.occurred_at END, $3,
           CASE WHEN {_CLOCK_OFF} THEN r.occurred_at END, telemetry.event_day(r.event_id)
    FROM unnest($4::uuid[], $5::uuid[], $6::uuid[], $7::text[], $8::text[], $9::text[],
                $10::text[], $11::text[], $12::timestamptz[])
        AS r (device_id, tenant_id, id, event_id, type, severity, message, payload, occurred_at)
    WHERE {NOT_DELETED.format("r.device_id")}
    ON CONFLICT DO NOTHING
    RETURNING id
)
SELECT id FROM stored
"""

# Of events whose id is known, those that are written otherwise than the stored one.
_FIND_OTHERS: Final = """
SELECT r.id, known.type, known.payload
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[])
    AS r (id, device_id, event_id, type, payload)
CROSS JOIN LATERAL (
    SELECT e.type, e.payload::text AS payload FROM telemetry.event AS e
    WHERE e.device_id = r.device_id AND e.event_id = r.event_id
    AND e.id_day = telemetry.event_day(r.event_id) LIMIT 1
) AS known
WHERE (known.type, known.payload) IS DISTINCT FROM (r.type, r.payload)
"""
_Row: TypeAlias = tuple[UUID, UUID, UUID, str, str, str, str, str | None, datetime]
"""Device, tenant, and the members of a `NewEvent`."""


async def _others(database: Runs, known: Sequence[_Row]) -> list[_Row]:
    """Of events whose id is known, those that are others, under keys of their own.

    Such a key is the same however often the event is sent. What one event says, numbers and blanks
    in it may be written in several ways; its time is not looked at, for a clock may have been set.
    """
    written = await database.fetch(
        _FIND_OTHERS,
        [row[2] for row in known],
        [row[0] for row in known],
        [row[3] for row in known],
        [row[4] for row in known],
        [row[7] for row in known],
    )
    stored = {row["id"]: (row["type"], row["payload"]) for row in written}
    return [
        (*row[:3], f"{row[3]}#{sha256_hex(f'{row[4]} {row[7]}'.encode())[:16]}", *row[4:])
        for row in known
        if row[2] in stored and not _says_the_same(stored[row[2]], (row[4], row[7]))
    ]


def _says_the_same(one: tuple[str, str | None], other: tuple[str, str | None]) -> bool:
    if one == other or one[0] != other[0] or one[1] is None or other[1] is None:
        return one == other
    return _ordered(one[1]) == _ordered(other[1])


def _ordered(payload: str) -> str:
    """As text, because in Python `True == 1`."""
    return json.dumps(json.loads(payload), sort_keys=True)


async def store_events(
    database: Runs,
    events: Sequence[tuple[UUID, UUID, NewEvent]],
    contacts: Iterable[tuple[UUID, UUID]],
    received_at: datetime,
) -> Collection[UUID]:
    """Stores events (device, tenant, event) and contacts (device, tenant) in one statement.

    An event whose id is known is stored, too, if it says something else: ids are unique per device
    and life of its clock, not for ever. Only events that were not new are looked at for that, by a
    second statement. Answers the ids of those events that were not there yet.
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
    ids = {row["id"] for row in stored}
    if len(ids) < len(rows):
        others = await _others(database, [row for row in rows if row[2] not in ids])
        if others:
            stored = await database.fetch(_STORE_EVENTS, [], [], received_at, *columns(others))
            ids |= {row["id"] for row in stored}
    return ids


async def mark_clones(connection: Connection, devices: Collection[UUID], at: datetime) -> None:
    """Marks devices whose states look like those of several machines."""
    await connection.execute(
        "UPDATE telemetry.device SET clone_suspected_at = $2 WHERE id = ANY ($1)",
        list(devices),
        at,
    )


async def quarantine(
    connection: Connection, events: Sequence[tuple[UUID, UUID, BadEvent]], received_at: datetime
) -> dict[UUID, int]:
    """Puts events (device, tenant, event) into quarantine, each once per device.

    Answers the devices that have more there now, and how many bytes.
    """
    rows = sorted(
        ((device, tenant, *event) for device, tenant, event in events),
        key=lambda row: (row[0].int, row[3]),
    )
    stored = await connection.fetch(
        "INSERT INTO telemetry.quarantined_event"
        " (device_id, tenant_id, id, digest, reason, content, received_at)"
        " SELECT r.*, $7 FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::bytea[], $5::text[],"
        " $6::text[]) AS r (device_id, tenant_id, id, digest, reason, content)"
        f" WHERE {NOT_DELETED.format('r.device_id')} ON CONFLICT (device_id, digest) DO NOTHING"
        " RETURNING device_id, octet_length(content) AS bytes",
        *columns(rows),
        received_at,
    )
    sizes: dict[UUID, int] = {}
    for row in stored:
        sizes[row["device_id"]] = sizes.get(row["device_id"], 0) + row["bytes"]
    return sizes
