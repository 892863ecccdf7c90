"""Queries of administrators: events, and those that were set aside."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import asyncpg

from servicekit.postgres import SYSTEM, Connection, Scope
from services.telemetry.domain.views import (
    EventFilter,
    EventPage,
    EventPosition,
    QuarantinedEvent,
    StoredEvent,
)
from services.telemetry.store.where import Where

EVENT: Final = (
    "id, tenant_id, device_id, type, severity, message, payload, occurred_at, received_at"
)
"""The columns of `stored_event`."""
SCAN: Final = 10_000
"""Events that a page reads at most when it looks for something that no index finds."""
_FEW: Final = 50
"""Tenants whose events are merged for whoever sees all of them."""
CONTENT_LISTED: Final = 16 << 10
"""Bytes of a quarantined event's content that lists show."""


async def snapshot(connection: Connection) -> str:
    """What is committed now, for `EventFilter.as_of`."""
    text: str = await connection.fetchval("SELECT pg_current_snapshot()::text")
    return text


def stored_event(row: asyncpg.Record) -> StoredEvent:
    """An event of a row."""
    return StoredEvent(
        row["id"],
        row["tenant_id"],
        row["device_id"],
        row["type"],
        row["severity"],
        row["message"],
        row["payload"],
        row["occurred_at"],
        row["received_at"],
    )


async def list_events(
    connection: Connection,
    scope: Scope,
    wanted: EventFilter,
    before: EventPosition | None,
    limit: int,
    scan: int = SCAN,
) -> EventPage:
    """The next events of a scope, newest first."""
    if _is_by_type(wanted) and scope.tenant_ids is None:
        scope = await _spelled_out(connection)
    page, worth = await _walk(connection, scope, wanted, before, limit, scan)
    left = limit - len(page.events)
    if page.after is None or left == 0 or worth < 2 * scan:
        return page
    more, _ = await _walk(connection, scope, wanted, page.after, left, worth)
    return EventPage(page.events + more.events, more.after)


def _is_by_type(wanted: EventFilter) -> bool:
    return bool(wanted.type) and wanted.device_id is None


async def _walk(
    connection: Connection,
    scope: Scope,
    wanted: EventFilter,
    before: EventPosition | None,
    limit: int,
    scan: int,
) -> tuple[EventPage, int]:
    """The events that are wanted among the next ones; and what more reading is worth."""
    where = Where(scope)
    if wanted.device_id is not None:
        where.add("device_id = ?", wanted.device_id)
    if wanted.occurred_from is not None:
        where.add("occurred_at >= ?", wanted.occurred_from)
    if wanted.occurred_before is not None:
        where.add("occurred_at < ?", wanted.occurred_before)
    if wanted.as_of is not None:
        where.add("pg_visible_in_snapshot(xid, ?::text::pg_snapshot)", wanted.as_of)
    if before is not None:
        where.add("(occurred_at, id) < (?, ?)", before.occurred_at, before.id)
    # Of two conditions with an index each, the other one's would be read to its end.
    if _is_by_type(wanted) and scope.tenant_ids is not None:
        where.add("type = ?", wanted.type)
    elif wanted.severity and wanted.severity != "info":
        # As the indexes of trouble say it.
        where.add("severity <> 'info'")
    if wanted.severity:
        where.filter("severity = ?", wanted.severity)
    if wanted.type:
        where.filter("type = ?", wanted.type)
    if wanted.search:
        where.contains(("type", "message"), wanted.search)
    sql = where.page(EVENT, "telemetry.event", "occurred_at", limit + 1, scan, down=True)
    rows = await connection.fetch(sql, *where.parameters)
    found = [stored_event(row) for row in rows if row["wanted"]]
    if len(found) > limit:
        return EventPage(found[:limit], found[limit - 1].position), 0
    if not rows or not rows[-1]["last"]:
        return EventPage(found, None), 0
    last = rows[-1]
    return EventPage(found, EventPosition(last["occurred_at"], last["id"])), last["worth"]


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
) -> list[QuarantinedEvent]:
    """The next quarantined events of a scope, newest first."""
    where = Where(scope)
    if device_id is not None:
        where.add("device_id = ?", device_id)
    if before is not None:
        where.add("id < ?", before)
    rows = await connection.fetch(
        f"SELECT id, tenant_id, device_id, reason, left(content, {CONTENT_LISTED}) AS content,"
        " octet_length(content) AS content_bytes, received_at"
        f" FROM telemetry.quarantined_event {where.sql} ORDER BY id DESC"
        f" LIMIT {where.parameter(limit)}",
        *where.parameters,
    )
    return [
        QuarantinedEvent(
            row["id"],
            row["tenant_id"],
            row["device_id"],
            row["reason"],
            row["content"].encode()[:CONTENT_LISTED].decode("utf-8", "ignore"),
            row["content_bytes"],
            row["received_at"],
        )
        for row in rows
    ]


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
