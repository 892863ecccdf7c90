"""The SQL of what reports ask of the log, of kept reports and of forwarders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from servicekit.data.postgres import Connection

_UPDATES: Final = 20
"""Changes of a user among which the one of a role is looked for."""


@dataclass(frozen=True, slots=True)
class Act:
    """What was done to something: how often, and who did it last and when."""

    times: int
    actor: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Update:
    """An entry of the log that says how a user was changed."""

    resource: str
    actor: str
    at: datetime
    record: str


@dataclass(frozen=True, slots=True)
class ForwarderFacts:
    """What a review of access asks of a forwarder."""

    id: UUID
    name: str
    created_by: str
    created_at: datetime
    last_used_at: datetime | None


async def acts(
    connection: Connection,
    tenant_id: UUID,
    actions: Sequence[str],
    resources: Sequence[str],
    start: datetime | None,
    until: datetime | None,
) -> dict[tuple[str, str], Act]:
    """What was done to resources within some times, by (resource, action)."""
    rows = await connection.fetch(
        "SELECT resource, action, count(*)::integer AS times,"
        " (array_agg(actor ORDER BY sequence DESC))[1] AS actor, max(occurred_at) AS at"
        " FROM audit.entry WHERE resource = ANY ($3) AND tenant_id = $1 AND action = ANY ($2)"
        " AND ($4::timestamptz IS NULL OR occurred_at >= $4)"
        " AND ($5::timestamptz IS NULL OR occurred_at < $5) GROUP BY resource, action",
        tenant_id,
        actions,
        resources,
        start,
        until,
    )
    return {
        (row["resource"], row["action"]): Act(row["times"], row["actor"], row["at"]) for row in rows
    }


async def times(
    connection: Connection, tenant_id: UUID, actions: Sequence[str], resources: Sequence[str]
) -> dict[str, list[datetime]]:
    """When something was done to resources, by resource, oldest first."""
    rows = await connection.fetch(
        "SELECT resource, occurred_at FROM audit.entry WHERE resource = ANY ($3)"
        " AND tenant_id = $1 AND action = ANY ($2) ORDER BY occurred_at, id",
        tenant_id,
        actions,
        resources,
    )
    found: dict[str, list[datetime]] = {}
    for row in rows:
        found.setdefault(row["resource"], []).append(row["occurred_at"])
    return found


async def updates_of_users(
    connection: Connection, tenant_id: UUID, resources: Sequence[str]
) -> list[Update]:
    """The latest changes of users, of each user the newest first."""
    rows = await connection.fetch(
        "SELECT r.resource, e.actor, e.occurred_at, e.record"
        " FROM unnest($2::text[]) AS r (resource)"
        " CROSS JOIN LATERAL (SELECT actor, occurred_at, record FROM audit.entry"
        " WHERE resource = r.resource AND tenant_id = $1 AND action = 'identity.user_updated'"
        " ORDER BY occurred_at DESC, id DESC LIMIT $3) AS e"
        " ORDER BY r.resource, e.occurred_at DESC",
        tenant_id,
        resources,
        _UPDATES,
    )
    return [
        Update(row["resource"], row["actor"], row["occurred_at"], row["record"]) for row in rows
    ]


async def head(connection: Connection, tenant_id: UUID) -> tuple[int, str] | None:
    """The position and the hash of the last entry of a chain."""
    row = await connection.fetchrow(
        "SELECT sequence, hash FROM audit.chain_head WHERE tenant_id = $1", tenant_id
    )
    return (row["sequence"], row["hash"].hex()) if row else None


async def size_of_log(
    connection: Connection, tenant_id: UUID, before: datetime
) -> tuple[int, datetime | None]:
    """How many entries a tenant had before a time, and when the oldest of them happened."""
    row = await connection.fetchrow(
        "SELECT count(*) AS n, min(occurred_at) AS oldest FROM audit.entry"
        " WHERE tenant_id = $1 AND occurred_at < $2",
        tenant_id,
        before,
    )
    return row["n"], row["oldest"]


async def size_of_reports(
    connection: Connection, tenant_id: UUID, before: datetime
) -> tuple[int, datetime | None]:
    """How many reports on a tenant of before a time are ready, and of when the oldest is."""
    row = await connection.fetchrow(
        "SELECT count(*) AS n, min(as_of) AS oldest FROM audit.report"
        " WHERE tenant_id = $1 AND status = 'ready' AND as_of < $2",
        tenant_id,
        before,
    )
    return row["n"], row["oldest"]


async def forwarders_of(
    connection: Connection, tenant_id: UUID, above: Sequence[UUID]
) -> tuple[list[str], int]:
    """The names of the enabled forwarders of a tenant, and how many of tenants above send its
    entries, too."""
    rows = await connection.fetch(
        "SELECT tenant_id, name FROM audit.forwarder WHERE enabled AND (tenant_id = $1"
        " OR below_too AND tenant_id = ANY ($2)) ORDER BY name, id",
        tenant_id,
        above,
    )
    own = [row["name"] for row in rows if row["tenant_id"] == tenant_id]
    return own, len(rows) - len(own)


async def list_forwarders(connection: Connection, tenant_id: UUID) -> list[ForwarderFacts]:
    """The forwarders of a tenant, by id."""
    rows = await connection.fetch(
        "SELECT f.id, f.name, f.created_by, f.created_at, s.last_success_at"
        " FROM audit.forwarder f JOIN audit.forwarder_state s ON s.forwarder_id = f.id"
        " WHERE f.tenant_id = $1 ORDER BY f.id",
        tenant_id,
    )
    return [
        ForwarderFacts(
            id=row["id"],
            name=row["name"],
            created_by=row["created_by"],
            created_at=row["created_at"],
            last_used_at=row["last_success_at"],
        )
        for row in rows
    ]
