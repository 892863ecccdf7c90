"""The SQL of schedules of reports."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope
from servicekit.rpc.pagination import Page
from services.audit.reports.domain import Parameters, Schedule

_SCHEDULE: Final = (
    "id, tenant_id, kind, parameters, formats, every, on_day, hour, time_zone, keep, enabled,"
    " next_run_at, not_before, last_run_at, last_error, revision, created_at, created_by,"
    " updated_at, notify"
)
_IN_SCOPE: Final = "($1::uuid[] IS NULL OR tenant_id = ANY ($1))"


def _schedule(row: asyncpg.Record) -> Schedule:
    return Schedule(
        id=row["id"],
        tenant_id=row["tenant_id"],
        kind=row["kind"],
        parameters=Parameters.read(json.loads(row["parameters"])),
        formats=tuple(row["formats"]),
        every=row["every"],
        on_day=row["on_day"],
        hour=row["hour"],
        time_zone=row["time_zone"],
        keep=row["keep"],
        enabled=row["enabled"],
        next_run_at=row["next_run_at"],
        not_before=row["not_before"],
        last_run_at=row["last_run_at"],
        last_error=row["last_error"],
        revision=row["revision"],
        created_at=row["created_at"],
        created_by=row["created_by"],
        updated_at=row["updated_at"],
        notify=tuple(row["notify"]),
    )


async def count(connection: Connection, tenant_id: UUID) -> int:
    """How many schedules a tenant has."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM audit.report_schedule WHERE tenant_id = $1", tenant_id
    )
    return found


def _values(schedule: Schedule) -> list[Any]:
    return [
        schedule.id,
        schedule.tenant_id,
        schedule.kind,
        schedule.parameters.canonical(),
        list(schedule.formats),
        schedule.every,
        schedule.on_day,
        schedule.hour,
        schedule.time_zone,
        schedule.keep,
        schedule.enabled,
        schedule.next_run_at,
        schedule.not_before,
        schedule.last_run_at,
        schedule.last_error,
        schedule.revision,
        schedule.created_at,
        schedule.created_by,
        schedule.updated_at,
        list(schedule.notify),
    ]


async def insert(connection: Connection, schedule: Schedule) -> None:
    """Adds a schedule."""
    await connection.execute(
        f"INSERT INTO audit.report_schedule ({_SCHEDULE}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8,"
        " $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)",
        *_values(schedule),
    )


async def update(connection: Connection, schedule: Schedule) -> None:
    """Stores what can be changed of a schedule."""
    await connection.execute(
        "UPDATE audit.report_schedule SET parameters = $3, formats = $4, every = $5, on_day = $6,"
        " hour = $7, time_zone = $8, keep = $9, enabled = $10, next_run_at = $11,"
        " not_before = $12, last_run_at = $13, last_error = $14, revision = $15, updated_at = $16,"
        " notify = $17"
        " WHERE id = $1 AND tenant_id = $2",
        schedule.id,
        schedule.tenant_id,
        schedule.parameters.canonical(),
        list(schedule.formats),
        schedule.every,
        schedule.on_day,
        schedule.hour,
        schedule.time_zone,
        schedule.keep,
        schedule.enabled,
        schedule.next_run_at,
        schedule.not_before,
        schedule.last_run_at,
        schedule.last_error,
        schedule.revision,
        schedule.updated_at,
        list(schedule.notify),
    )


async def notified(connection: Connection, tenant_id: UUID, schedule_id: UUID) -> list[str]:
    """Who is told of the reports of a schedule; nobody when it is no more."""
    found: list[str] | None = await connection.fetchval(
        "SELECT notify FROM audit.report_schedule WHERE tenant_id = $1 AND id = $2",
        tenant_id,
        schedule_id,
    )
    return found or []


async def delete(connection: Connection, schedule: Schedule) -> None:
    """Removes a schedule."""
    await connection.execute(
        "DELETE FROM audit.report_schedule WHERE id = $1 AND tenant_id = $2",
        schedule.id,
        schedule.tenant_id,
    )


async def find(
    connection: Connection, scope: Scope, schedule_id: UUID, *, for_update: bool = False
) -> Schedule | None:
    """A schedule of a scope."""
    row = await connection.fetchrow(
        f"SELECT {_SCHEDULE} FROM audit.report_schedule WHERE {_IN_SCOPE} AND id = $2"
        f"{' FOR UPDATE' if for_update else ''}",
        scope.tenant_ids,
        schedule_id,
    )
    return _schedule(row) if row else None


async def list_schedules(
    connection: Connection, scope: Scope, after: UUID | None, limit: int
) -> Page[Schedule, UUID]:
    """The schedules of a scope, the oldest first."""
    rows = await connection.fetch(
        f"SELECT {_SCHEDULE} FROM audit.report_schedule WHERE {_IN_SCOPE}"
        " AND ($2::uuid IS NULL OR id > $2) ORDER BY id LIMIT $3",
        scope.tenant_ids,
        after,
        limit + 1,
    )
    return Page.of([_schedule(row) for row in rows], limit, lambda schedule: schedule.id)


async def due(connection: Connection, at: datetime, most: int) -> list[tuple[UUID, UUID]]:
    """Some schedules whose time has come and whose last report is made, as (tenant, schedule)."""
    rows = await connection.fetch(
        "SELECT tenant_id, id FROM audit.report_schedule s WHERE next_run_at <= $1"
        " AND (not_before IS NULL OR not_before <= $1) AND NOT EXISTS (SELECT FROM audit.report r"
        " WHERE r.schedule_id = s.id AND r.status = 'running') ORDER BY next_run_at LIMIT $2",
        at,
        most,
    )
    return [(row["tenant_id"], row["id"]) for row in rows]


async def lock_due(
    connection: Connection, tenant_id: UUID, schedule_id: UUID, at: datetime
) -> Schedule | None:
    """A schedule whose time has come, unless another process has it."""
    row = await connection.fetchrow(
        f"SELECT {_SCHEDULE} FROM audit.report_schedule WHERE tenant_id = $1 AND id = $2"
        " AND next_run_at <= $3 FOR UPDATE SKIP LOCKED",
        tenant_id,
        schedule_id,
        at,
    )
    return _schedule(row) if row else None
