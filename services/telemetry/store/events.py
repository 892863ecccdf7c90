"""Queries of administrators: events, and those that were set aside."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from servicekit.postgres import Connection, Scope
from services.telemetry.domain.views import (
    EventFilter,
    EventPosition,
    QuarantinedEvent,
    StoredEvent,
)
from services.telemetry.store.where import Where

_EVENT: Final = (
    "id, tenant_id, device_id, type, severity, message, payload, occurred_at, received_at"
)


async def list_events(
    connection: Connection,
    scope: Scope,
    wanted: EventFilter,
    before: EventPosition | None,
    limit: int,
) -> list[StoredEvent]:
    """The next events of a scope, newest first."""
    where = Where(scope)
    if wanted.device_id is not None:
        where.add("device_id = ?", wanted.device_id)
    if wanted.type:
        where.add("type = ?", wanted.type)
    if wanted.severity:
        where.add("severity = ?", wanted.severity)
    if wanted.search:
        where.contains(("type", "message"), wanted.search)
    if wanted.occurred_from is not None:
        where.add("occurred_at >= ?", wanted.occurred_from)
    if wanted.occurred_before is not None:
        where.add("occurred_at < ?", wanted.occurred_before)
    if wanted.received_until is not None:
        where.add("received_at <= ?", wanted.received_until)
    if before is not None:
        where.add("(occurred_at, id) < (?, ?)", before.occurred_at, before.id)
    rows = await connection.fetch(
        f"SELECT {_EVENT} FROM telemetry.event {where.sql} ORDER BY occurred_at DESC, id DESC"
        f" LIMIT {where.parameter(limit)}",
        *where.parameters,
    )
    return [
        StoredEvent(
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
        for row in rows
    ]


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
        "SELECT id, tenant_id, device_id, reason, content, received_at"
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
            row["content"],
            row["received_at"],
        )
        for row in rows
    ]
