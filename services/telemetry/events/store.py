"""Queries of administrators: events, and those that were quarantined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import SYSTEM, Connection, Scope
from servicekit.errors import invalid_field
from servicekit.rpc.pagination import PAGE_BYTES, Page, TimePosition, rows_within
from services.telemetry.events.domain import (
    RECEIVED_ORDER,
    EventFilter,
    EventOrder,
    EventPage,
    QuarantinedEvent,
    StoredEvent,
)
from services.telemetry.reports.messages import stored_message
from services.telemetry.where import Where

EVENT: Final = (
    "id, tenant_id, device_id, type, severity, message, payload, occurred_at, received_at,"
    " device_time"
)
"""The columns of `stored_event`."""
SCAN: Final = 10_000
"""Events that a page reads at most when it looks for something that no index finds."""
_FEW: Final = 50
"""Tenants whose events are merged for users who see all of them."""
CONTENT_LISTED: Final = 16 << 10
"""Bytes of a quarantined event's content that lists show."""


async def snapshot(connection: Connection) -> str:
    """What is committed now, for `EventFilter.as_of`."""
    text: str = await connection.fetchval("SELECT pg_current_snapshot()::text")
    return text


def stored_event(row: asyncpg.Record) -> StoredEvent:
    """An event of a row. `device_time` is set where the device's clock was off."""
    return StoredEvent(
        id=row["id"],
        tenant_id=row["tenant_id"],
        device_id=row["device_id"],
        type=row["type"],
        severity=row["severity"],
        message=stored_message(row["type"], row["message"], row["payload"]),
        payload=row["payload"],
        occurred_at=row["device_time"] or row["occurred_at"],
        received_at=row["received_at"],
        listed_at=row["occurred_at"],
    )


def _size(row: asyncpg.Record) -> int:
    return sum(len(row[name] or "") for name in ("type", "message", "payload"))


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a page; how many bytes may follow, and how many rows are worth to be read then."""

    page: EventPage
    room: int = 0
    worth: int = 0


async def list_events(
    connection: Connection,
    scope: Scope,
    wanted: EventFilter,
    before: TimePosition | None,
    limit: int,
    scan: int = SCAN,
    go_on: Callable[[], bool] = lambda: False,
) -> EventPage:
    """The next events of a scope, newest first; no more than a page has room for.

    Args:
        scan: events to read at most, when it looks for something that no index finds.
        go_on: whether to read as many again for a page that is short.
    """
    by_receipt = wanted.order is EventOrder.RECEIVED
    if (_is_by_type(wanted) or by_receipt) and scope.tenant_ids is None:
        scope = await _spelled_out(connection)
        if by_receipt and scope.tenant_ids is None:
            raise invalid_field(
                "order_by",
                f"{RECEIVED_ORDER} needs org_id where more than {_FEW} organisations have events",
            )
    part = await _walk(connection, scope, wanted, before, limit, PAGE_BYTES, scan)
    found = [*part.page.items]
    rows = part.worth if part.worth >= 2 * scan else 0
    while (
        (after := part.page.after) is not None
        and len(found) < limit
        and part.room > 0
        and (rows or go_on())
    ):
        part = await _walk(
            connection, scope, wanted, after, limit - len(found), part.room, rows or scan
        )
        found += part.page.items
        rows = 0
    return EventPage(found, part.page.after)


def _is_by_type(wanted: EventFilter) -> bool:
    return bool(wanted.type) and wanted.device_id is None


def _where(scope: Scope, wanted: EventFilter, before: TimePosition | None) -> Where:
    where = Where(scope)
    if wanted.device_id is not None:
        where.add("device_id = ?", wanted.device_id)
    if wanted.occurred_from is not None:
        where.add("occurred_at >= ?", wanted.occurred_from)
    if wanted.occurred_before is not None:
        where.add("occurred_at < ?", wanted.occurred_before)
    if wanted.as_of is not None:
        where.add("pg_visible_in_snapshot(xid, ?::text::pg_snapshot)", wanted.as_of)
    key = wanted.order.value
    if before is not None:
        where.add(f"({key}, id) < (?, ?)", before.at, before.id)
    # What the order's index has is a condition of it; all else is looked for among its rows.
    by_receipt = wanted.order is EventOrder.RECEIVED
    received = where.add if by_receipt else where.filter
    if wanted.received_from is not None:
        received("received_at >= ?", wanted.received_from)
    if wanted.received_before is not None:
        received("received_at < ?", wanted.received_before)
    if by_receipt:
        return _filtered(where, wanted)
    # Of two conditions with an index each, the other one's would be read to its end.
    if _is_by_type(wanted) and scope.tenant_ids is not None:
        where.add("type = ?", wanted.type)
    elif wanted.severity and wanted.severity != "info":
        # As the indexes of trouble say it.
        where.add("severity <> 'info'")
    return _filtered(where, wanted)


def _filtered(where: Where, wanted: EventFilter) -> Where:
    if wanted.severity:
        where.filter("severity = ?", wanted.severity)
    if wanted.type:
        where.filter("type = ?", wanted.type)
    if wanted.search:
        where.contains(("type", "message"), wanted.search)
    return where


async def _walk(
    connection: Connection,
    scope: Scope,
    wanted: EventFilter,
    before: TimePosition | None,
    limit: int,
    room: int,
    scan: int,
) -> _Part:
    """The events that are wanted among the next ones; and what more reading is worth."""
    where = _where(scope, wanted, before)
    sql = where.page(EVENT, "telemetry.event", wanted.order.value, limit + 1, scan, down=True)
    rows, left = await rows_within(connection, sql, where.parameters, _size, room)
    found = [stored_event(row) for row in rows if row["wanted"]]
    if len(found) > limit:
        return _Part(EventPage.of(found, limit, lambda event: event.position(wanted.order)))
    if left < 0:
        return _Part(EventPage(found, found[-1].position(wanted.order)))
    if not rows or not rows[-1]["last"]:
        return _Part(EventPage(found, None))
    last = rows[-1]
    position = TimePosition(last[wanted.order.value], last["id"])
    return _Part(EventPage(found, position), left, last["worth"])


async def _spelled_out(connection: Connection) -> Scope:
    """All tenants that have events, if these are few: the index of types is by tenant."""
    rows = await connection.fetch(
        "WITH RECURSIVE found AS ("
        "(SELECT tenant_id FROM telemetry.event ORDER BY tenant_id LIMIT 1) UNION ALL"
        " SELECT (SELECT e.tenant_id FROM telemetry.event AS e WHERE e.tenant_id > found.tenant_id"
        " ORDER BY e.tenant_id LIMIT 1) FROM found WHERE found.tenant_id IS NOT NULL)"
        " SELECT tenant_id FROM found WHERE tenant_id IS NOT NULL LIMIT $1",
        _FEW + 1,
    )
    return Scope(tuple(row["tenant_id"] for row in rows)) if 0 < len(rows) <= _FEW else SYSTEM


async def list_quarantined(
    connection: Connection,
    scope: Scope,
    device_id: UUID | None,
    before: UUID | None,
    limit: int,
) -> Page[QuarantinedEvent, UUID]:
    """The next quarantined events of a scope, newest first."""
    where = Where(scope)
    if device_id is not None:
        where.add("device_id = ?", device_id)
    if before is not None:
        where.add("id < ?", before)
    sql = (
        f"SELECT id, tenant_id, device_id, reason, left(content, {CONTENT_LISTED}) AS content,"
        " octet_length(content) AS content_bytes, received_at"
        f" FROM telemetry.quarantined_event {where.sql} ORDER BY id DESC"
        f" LIMIT {where.parameter(limit + 1)}"
    )
    rows, left = await rows_within(
        connection, sql, where.parameters, lambda row: len(row["content"])
    )
    found = [
        QuarantinedEvent(
            id=row["id"],
            tenant_id=row["tenant_id"],
            device_id=row["device_id"],
            reason=row["reason"],
            content=row["content"].encode()[:CONTENT_LISTED].decode("utf-8", "ignore"),
            content_bytes=row["content_bytes"],
            received_at=row["received_at"],
        )
        for row in rows
    ]
    return Page.of(found, limit, lambda event: event.id, more=left < 0)


async def quarantined_content(
    connection: Connection, scope: Scope, event_id: UUID, begin: int, length: int
) -> str | None:
    """So many characters of a quarantined event's content; `None` without such an event."""
    where = Where(scope)
    where.add("id = ?", event_id)
    content: str | None = await connection.fetchval(
        f"SELECT substr(content, {where.parameter(begin + 1)}, {where.parameter(length)})"
        f" FROM telemetry.quarantined_event {where.sql}",
        *where.parameters,
    )
    return content
