"""Partitions of events, and what is kept no longer: steps that are small enough to be interrupted.

The functions in the database (migrations 0005, 0006 and 0014) belong to its owner: the service
itself may neither delete an event nor change a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final
from uuid import UUID

from servicekit.data.postgres import Connection

_NIL: Final = UUID(int=0)
EARLIEST: Final = datetime(2026, 11, 1, tzinfo=UTC)
"""A clock that shows an earlier time is not set yet."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """How far a sweep has come, in the order in which rows came."""

    xid: int = 0
    id: UUID = _NIL


async def event_days(
    connection: Connection, tenant_id: UUID, *, for_update: bool = False
) -> int | None:
    """How many days a tenant keeps its events; `None` when it has said nothing.

    With `for_update` nobody else says something before the transaction ends.
    """
    if for_update:
        # There may be no row to lock.
        await connection.execute(
            "SELECT pg_advisory_xact_lock(hashtext('telemetry:retention'), hashtext($1))",
            str(tenant_id),
        )
    days: int | None = await connection.fetchval(
        "SELECT event_days FROM telemetry.retention WHERE tenant_id = $1", tenant_id
    )
    return days


async def store_event_days(
    connection: Connection, tenant_id: UUID, days: int | None, changed_at: datetime
) -> None:
    """Stores, or with `None` forgets, what a tenant says."""
    if days is None:
        await connection.execute("DELETE FROM telemetry.retention WHERE tenant_id = $1", tenant_id)
    else:
        await connection.execute(
            "INSERT INTO telemetry.retention (tenant_id, event_days, changed_at)"
            " VALUES ($1, $2, $3) ON CONFLICT (tenant_id) DO UPDATE"
            " SET event_days = excluded.event_days, changed_at = excluded.changed_at",
            tenant_id,
            days,
            changed_at,
        )


async def extend_events(connection: Connection, until: date) -> date | None:
    """Makes one more week if there is none for a day; answers where weeks end.

    `None` when another process does it.
    """
    end: date | None = await connection.fetchval("SELECT telemetry.extend_events($1)", until)
    return end


async def drop_events(connection: Connection, moment: datetime, days: int) -> str | None:
    """Drops the oldest week, if nobody keeps it and all of it is published; answers its name.

    What came late of it is kept.
    """
    name: str | None = await connection.fetchval(
        "SELECT telemetry.drop_events($1, $2)::text", moment, days
    )
    return name


async def expire_events(connection: Connection, moment: datetime, days: int, most: int) -> int:
    """Deletes events, `most` at most, of weeks that some tenants still keep; answers how many."""
    deleted: int = await connection.fetchval(
        "SELECT telemetry.expire_events($1, $2, $3)", moment, days, most
    )
    return deleted


async def retention_moment(connection: Connection, moment: datetime, ahead: timedelta) -> datetime:
    """The moment that counts for what is kept no longer, which may be an earlier one.

    An infinite one, which only SQL can store, would stay for ever: the earliest takes its place.

    Args:
        moment: what the clock says.
        ahead: by how much it may be later than the one before.
    """
    if moment < EARLIEST:
        return moment
    reached: datetime = await connection.fetchval(
        "UPDATE telemetry.retention_cursor SET reached = least($1, $2"
        " + CASE WHEN isfinite(reached) THEN reached ELSE $3 END) RETURNING reached",
        moment,
        ahead,
        EARLIEST,
    )
    return reached


async def swept_partitions(connection: Connection) -> list[str]:
    """Those whose events go by the time at which they came: without a week, or late for it."""
    rows = await connection.fetch(
        "SELECT partition::text FROM telemetry.event_week"
        r" WHERE partition LIKE '%\_rest' ORDER BY first_day"
    )
    return ["event_undated", "event_astray", *(row["partition"] for row in rows)]


async def sweep_events(
    connection: Connection, partition: str, after: Sweep, moment: datetime, days: int, most: int
) -> tuple[Sweep | None, int]:
    """Looks at the next events of such a partition, and deletes those that are kept no longer.

    Answers where to go on (`None` at the end of what is old enough), and how many were deleted.
    """
    row = await connection.fetchrow(
        "SELECT next_xid::text, next_id, deleted"
        " FROM telemetry.sweep_partition($1, $2::text::xid8, $3, $4, $5, $6)",
        partition,
        str(after.xid),
        after.id,
        moment,
        days,
        most,
    )
    assert row is not None
    if row["next_xid"] is None:
        return None, row["deleted"]
    return Sweep(int(row["next_xid"]), row["next_id"]), row["deleted"]


async def sweep_quarantine(
    connection: Connection, after: UUID, moment: datetime, days: int, most: int
) -> tuple[UUID | None, int]:
    """As `sweep_events`, for what was quarantined; ids are in the order in which it came."""
    rows = await connection.fetch(
        "SELECT device_id, digest, id, received_at, received_at < $2::timestamptz"
        " - make_interval(days => telemetry.days_kept(tenant_id, $3)) AS old"
        " FROM telemetry.quarantined_event WHERE id > $1 ORDER BY id LIMIT $4",
        after,
        moment,
        days,
        most,
    )
    old = [row["id"] for row in rows if row["old"]]
    if old:
        await connection.execute("DELETE FROM telemetry.quarantined_event WHERE id = ANY ($1)", old)
    if not rows or rows[-1]["received_at"] >= moment - await _fewest_days(connection, days):
        return None, len(old)
    return rows[-1]["id"], len(old)


async def _fewest_days(connection: Connection, days: int) -> timedelta:
    fewest: int = await connection.fetchval(
        "SELECT least($1, (SELECT min(event_days) FROM telemetry.retention))", days
    )
    return timedelta(days=fewest)
