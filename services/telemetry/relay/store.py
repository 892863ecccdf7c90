"""The event relay's position, and the committed events behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias
from uuid import UUID

import asyncpg

from contract.events.base import JsonText
from contract.events.telemetry import ReportedEvent
from servicekit.data.postgres import Connection, columns
from services.telemetry.reports.messages import stored_message

_EVENT: Final = (
    "id, tenant_id, device_id, event_id, type, severity, message, payload,"
    " coalesce(device_time, occurred_at) AS occurred_at, received_at"
)
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


TenantEvent: TypeAlias = tuple[UUID, ReportedEvent]
"""An event with its tenant."""


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
        stream=row["stream"],
        done=Position(int(row["done_xid"]), row["done_id"]),
        end=Position(int(row["end_xid"]), row["end_id"]),
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
) -> Sequence[TenantEvent]:
    """The events behind one position up to another, by tenant, in the order of the relay."""
    rows = await connection.fetch(
        f"SELECT {_EVENT} FROM telemetry.event"
        " WHERE (xid, id) > ($1::text::xid8, $2) AND (xid, id) <= ($3::text::xid8, $4)"
        " AND received_at >= $5 ORDER BY tenant_id, xid, id",
        str(after.xid),
        after.id,
        str(end.xid),
        end.id,
        stored_since,
    )
    return list(map(_event, rows))


async def named(
    connection: Connection, keys: Sequence[tuple[UUID, str]], stored_since: datetime
) -> Sequence[TenantEvent]:
    """Some events, each by its device and the id that this gave it; by tenant, as they came."""
    rows = await connection.fetch(
        f"SELECT {_EVENT} FROM telemetry.event WHERE (device_id, event_id) IN"
        " (SELECT * FROM unnest($1::uuid[], $2::text[])) AND received_at >= $3"
        " ORDER BY tenant_id, xid, id",
        *columns(keys),
        stored_since,
    )
    return list(map(_event, rows))


def _event(row: asyncpg.Record) -> TenantEvent:
    type_, payload = row["type"], row["payload"]
    event = ReportedEvent(
        id=row["id"],
        device_id=row["device_id"],
        event_id=row["event_id"],
        type=type_,
        severity=row["severity"],
        message=stored_message(type_, row["message"], payload),
        occurred_at=row["occurred_at"],
        received_at=row["received_at"],
        payload=JsonText(payload or "null"),
    )
    return row["tenant_id"], event
