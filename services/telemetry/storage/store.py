"""What was stored on a day, and what quarantines hold."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, columns
from services.telemetry.storage.domain import What
from services.telemetry.where import HIDDEN

_LEFT_OF_EIGHT: Final = 7
"""Eighths of its limit that a full quarantine keeps, so that it is not cut with every event."""
_MOST_BYTES: Final = 2**63 - 1
_KNOWN: Final = [what.value for what in What]
"""What is read: another release may count something else beside it."""


@dataclass(frozen=True, slots=True)
class Use:
    """What a device, or an organisation, stored on a day."""

    what: What
    subject: UUID
    tenant_id: UUID
    size: int
    limit: int


async def add_uses(connection: Connection, day: date, uses: Sequence[Use]) -> list[Use]:
    """Adds what was stored; answers what it comes to, with all processes' parts."""
    rows = sorted((use.what.value, use.subject, use.tenant_id, use.size, use.limit) for use in uses)
    found = await connection.fetch(
        "INSERT INTO telemetry.storage_use AS u"
        " (day, what, subject, tenant_id, bytes, limit_bytes)"
        " SELECT $6, r.* FROM unnest($1::text[], $2::uuid[], $3::uuid[], $4::bigint[],"
        " $5::bigint[]) AS r ON CONFLICT (day, what, subject) DO UPDATE SET"
        f" bytes = least(u.bytes::numeric + excluded.bytes, {_MOST_BYTES}),"
        " limit_bytes = excluded.limit_bytes"
        " RETURNING what, subject, tenant_id, bytes, limit_bytes",
        *columns(rows),
        day,
    )
    return [_use(row) for row in found]


async def full_uses(connection: Connection, day: date) -> list[Use]:
    """Who has used a budget of a day."""
    rows = await connection.fetch(
        "SELECT what, subject, tenant_id, bytes, limit_bytes FROM telemetry.storage_use"
        " WHERE day = $1 AND bytes >= limit_bytes AND what = ANY ($2)",
        day,
        _KNOWN,
    )
    return [_use(row) for row in rows]


async def largest_uses(connection: Connection, day: date) -> list[Use]:
    """Who has used most of each budget of a day."""
    rows = await connection.fetch(
        "SELECT DISTINCT ON (what) what, subject, tenant_id, bytes, limit_bytes"
        " FROM telemetry.storage_use WHERE day = $1 AND what = ANY ($2)"
        " ORDER BY what, bytes::float8 / nullif(limit_bytes, 0) DESC NULLS LAST",
        day,
        _KNOWN,
    )
    return [_use(row) for row in rows]


async def forget_uses(connection: Connection, before: date) -> None:
    """Deletes what is known of earlier days."""
    await connection.execute("DELETE FROM telemetry.storage_use WHERE day < $1", before)


async def device_counts(connection: Connection, tenants: Collection[UUID]) -> dict[UUID, int]:
    """How many devices organisations have; those that were not admitted do not count."""
    rows = await connection.fetch(
        "SELECT tenant_id, count(*) AS devices FROM telemetry.device"
        " WHERE tenant_id = ANY ($1) AND registry_status <> ALL ($2) GROUP BY tenant_id",
        list(tenants),
        list(HIDDEN),
    )
    return {row["tenant_id"]: row["devices"] for row in rows}


async def trim_device(
    connection: Connection, device_id: UUID, *, size: int, most_bytes: int, most_events: int
) -> int:
    """Deletes the oldest of a device's quarantine that is too large; answers how many.

    Args:
        size: bytes that it has.
        most_bytes: that it may have.
        most_events: that it may have.
    """
    excess = size - most_bytes * _LEFT_OF_EIGHT // 8 if size > most_bytes else 0
    # The latest one stays, however large it is.
    done: str = await connection.execute(
        "DELETE FROM telemetry.quarantined_event WHERE device_id = $1 AND id IN ("
        "SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id DESC) AS place,"
        " sum(octet_length(content)) OVER (ORDER BY id) - octet_length(content) AS older"
        " FROM telemetry.quarantined_event WHERE device_id = $1) AS kept"
        " WHERE place > 1 AND (place > $2 OR older < $3))",
        device_id,
        most_events,
        excess,
    )
    return int(done.rpartition(" ")[2])


async def quarantines(
    connection: Connection, devices: Collection[UUID]
) -> list[tuple[UUID, int, int]]:
    """Devices with the bytes and the events of their quarantine."""
    rows = await connection.fetch(
        "SELECT device_id, bytes, events FROM telemetry.quarantine_use"
        " WHERE device_id = ANY ($1) ORDER BY device_id",
        list(devices),
    )
    return [(row["device_id"], row["bytes"], row["events"]) for row in rows]


async def quarantine_of(connection: Connection, tenant_id: UUID) -> int:
    """Bytes that the quarantine of an organisation has."""
    size: int = await connection.fetchval(
        "SELECT coalesce(sum(bytes), 0)::bigint FROM telemetry.quarantine_use WHERE tenant_id = $1",
        tenant_id,
    )
    return size


async def largest_quarantine(
    connection: Connection, tenant_id: UUID
) -> tuple[UUID, int, int] | None:
    """The device of an organisation whose quarantine is the largest, as `quarantines` tells it."""
    row = await connection.fetchrow(
        "SELECT device_id, bytes, events FROM telemetry.quarantine_use WHERE tenant_id = $1"
        " ORDER BY bytes DESC LIMIT 1",
        tenant_id,
    )
    return None if row is None else (row["device_id"], row["bytes"], row["events"])


def _use(row: asyncpg.Record) -> Use:
    return Use(
        what=What(row["what"]),
        subject=row["subject"],
        tenant_id=row["tenant_id"],
        size=row["bytes"],
        limit=row["limit_bytes"],
    )
