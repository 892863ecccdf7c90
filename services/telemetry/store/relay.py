"""The event relay's position, and the committed events behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from servicekit.postgres import Connection
from services.telemetry.domain.views import StoredEvent
from services.telemetry.store.events import EVENT, stored_event

_NIL: Final = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Position:
    """An event by the transaction that stored it, and its id."""

    xid: int
    id: UUID


BEGINNING: Final = Position(0, _NIL)


@dataclass(frozen=True, slots=True)
class RelayState:
    """Everything up to `done` is published to the stream; what follows up to `end` may be."""

    stream: str
    done: Position
    end: Position


@dataclass(frozen=True, slots=True)
class RelayedEvent:
    """An event with the id that its device gave it."""

    event: StoredEvent
    event_id: str


async def is_idle(connection: Connection, stream: str) -> bool:
    """Whether all that a reader may see is published to the stream; without writing anything."""
    idle: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM telemetry.event_relay AS r WHERE r.stream = $1"
        " AND (r.end_xid, r.end_id) = (r.done_xid, r.done_id)"
        " AND NOT EXISTS (SELECT FROM telemetry.event AS e"
        " WHERE (e.xid, e.id) > (r.done_xid, r.done_id)"
        " AND e.xid < pg_snapshot_xmin(pg_current_snapshot())))",
        stream,
    )
    return idle


async def oldest_waiting(connection: Connection) -> datetime | None:
    """When the first event that is not published came; `None` without any."""
    received_at: datetime | None = await connection.fetchval(
        "SELECT e.received_at FROM telemetry.event_relay AS r CROSS JOIN LATERAL"
        " (SELECT received_at FROM telemetry.event WHERE (xid, id) > (r.done_xid, r.done_id)"
        " ORDER BY xid, id LIMIT 1) AS e"
    )
    return received_at


async def lock(connection: Connection) -> RelayState:
    """Locks the relay's position for this transaction, and reads it."""
    await connection.execute(
        "INSERT INTO telemetry.event_relay (stream, done_xid, done_id, end_xid, end_id)"
        " VALUES ('', '0', $1, '0', $1) ON CONFLICT (only_row) DO NOTHING",
        _NIL,
    )
    row = await connection.fetchrow(
        "SELECT stream, done_xid::text, done_id, end_xid::text, end_id"
        " FROM telemetry.event_relay FOR UPDATE"
    )
    assert row is not None
    return RelayState(
        row["stream"],
        Position(int(row["done_xid"]), row["done_id"]),
        Position(int(row["end_xid"]), row["end_id"]),
    )


async def keep(connection: Connection, state: RelayState) -> None:
    """Keeps the relay's position."""
    await connection.execute(
        "UPDATE telemetry.event_relay SET stream = $1, done_xid = $2::text::xid8, done_id = $3,"
        " end_xid = $4::text::xid8, end_id = $5",
        state.stream,
        str(state.done.xid),
        state.done.id,
        str(state.end.xid),
        state.end.id,
    )


async def next_end(connection: Connection, after: Position, limit: int) -> Position | None:
    """Where a batch of at most `limit` committed events behind a position ends.

    Only what transactions stored that are over for every reader: none of them can still add an
    event in front of the batch's end.
    """
    row = await connection.fetchrow(
        "SELECT xid::text, id FROM (SELECT xid, id FROM telemetry.event"
        " WHERE (xid, id) > ($1::text::xid8, $2)"
        " AND xid < pg_snapshot_xmin(pg_current_snapshot())"
        " ORDER BY xid, id LIMIT $3) AS batch ORDER BY batch.xid DESC, id DESC LIMIT 1",
        str(after.xid),
        after.id,
        limit,
    )
    return Position(int(row["xid"]), row["id"]) if row is not None else None


async def between(
    connection: Connection, after: Position, end: Position, stored_since: datetime
) -> Sequence[RelayedEvent]:
    """The events behind one position up to another, by tenant, in the order of the relay."""
    rows = await connection.fetch(
        f"SELECT {EVENT}, event_id FROM telemetry.event"
        " WHERE (xid, id) > ($1::text::xid8, $2) AND (xid, id) <= ($3::text::xid8, $4)"
        " AND received_at >= $5 ORDER BY tenant_id, xid, id",
        str(after.xid),
        after.id,
        str(end.xid),
        end.id,
        stored_since,
    )
    return [RelayedEvent(stored_event(row), row["event_id"]) for row in rows]
