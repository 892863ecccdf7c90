"""The SQL of editions: the versions that are in force along the tree, and what was made of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from servicekit.data.postgres import Connection
from servicekit.feeds.feed import Cursor, FeedPage, read_page
from services.policy.authoring.layering import Own, own_of_version
from services.policy.authoring.store import VERSION, to_version
from services.policy.stamps.domain import Content

_CHANGES_A_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Assigned:
    """A version that is in force for a tenant, with what it sets by itself."""

    tenant_id: UUID
    policy_id: UUID
    policy_name: str
    version: int
    own: Own


@dataclass(frozen=True, slots=True)
class Stored:
    """What was last made for an organisation."""

    recipe: str
    content: Content | None
    problem: str


async def try_lead(connection: Connection) -> bool:
    """Whether this transaction makes editions, and no other one does."""
    led: bool = await connection.fetchval(
        "SELECT pg_try_advisory_xact_lock(hashtext('policy:editions'))"
    )
    return led


async def changed_since(
    connection: Connection, cursor: Cursor
) -> tuple[FeedPage, dict[UUID, tuple[tuple[UUID, int] | None, str | None]]]:
    """By tenant: which policy and version are in force, and the recipe that was last made."""
    page = await read_page(
        connection,
        "SELECT c.changed_xid::text AS changed_xid, c.id AS key, c.tenant_id FROM"
        " ((SELECT a.changed_xid, a.id, a.tenant_id FROM policy.assignments a"
        " WHERE (a.changed_xid, a.id) > ($1::text::xid8, $2)"
        " ORDER BY a.changed_xid, a.id LIMIT $3) UNION ALL"
        " (SELECT e.changed_xid, e.id, e.tenant_id FROM policy.editions e"
        " WHERE (e.changed_xid, e.id) > ($1::text::xid8, $2)"
        " ORDER BY e.changed_xid, e.id LIMIT $3)) AS c"
        " ORDER BY c.changed_xid, c.id LIMIT $3",
        cursor,
        _CHANGES_A_PAGE,
    )
    rows = await connection.fetch(
        "SELECT t.tenant_id, a.policy_id, a.version, e.recipe"
        " FROM unnest($1::uuid[]) AS t (tenant_id)"
        " LEFT JOIN policy.assignments a ON a.tenant_id = t.tenant_id"
        " LEFT JOIN policy.editions e ON e.tenant_id = t.tenant_id",
        list({row["tenant_id"] for row in page.rows}),
    )
    return page, {
        row["tenant_id"]: (
            None if row["version"] is None else (row["policy_id"], row["version"]),
            row["recipe"],
        )
        for row in rows
    }


async def assigned(connection: Connection, tenant_ids: Sequence[UUID]) -> list[Assigned]:
    """What is in force for tenants, in their order."""
    rows = await connection.fetch(
        f"SELECT {VERSION}, p.name FROM policy.assignments a"
        " JOIN policy.versions v ON v.tenant_id = a.tenant_id AND v.version = a.version"
        " LEFT JOIN policy.policies p ON p.id = a.policy_id AND p.tenant_id = a.tenant_id"
        " WHERE a.tenant_id = ANY ($1) ORDER BY array_position($1::uuid[], a.tenant_id)",
        list(tenant_ids),
    )
    return [
        Assigned(
            row["tenant_id"],
            row["policy_id"],
            row["name"] or "",
            row["version"],
            own_of_version(to_version(row)),
        )
        for row in rows
    ]


async def get_stored(connection: Connection, tenant_id: UUID) -> Stored | None:
    """What was last made for an organisation."""
    row = await connection.fetchrow(
        "SELECT recipe, document_tenant, digest, problem FROM policy.editions WHERE tenant_id = $1",
        tenant_id,
    )
    if row is None:
        return None
    digest = row["digest"]
    content = None if digest is None else Content(row["document_tenant"], digest)
    return Stored(row["recipe"], content, row["problem"])


async def stamped_content(connection: Connection, tenant_id: UUID, version: int) -> Content | None:
    """What a number of an organisation stands for."""
    row = await connection.fetchrow(
        "SELECT document_tenant, digest FROM policy.stamps WHERE tenant_id = $1 AND version = $2",
        tenant_id,
        version,
    )
    return None if row is None else Content(row["document_tenant"], row["digest"])


async def put(
    connection: Connection,
    tenant_id: UUID,
    recipe: str,
    own_version: int | None,
    content: Content | None,
    problem: str = "",
) -> None:
    """Stores what was made for an organisation."""
    await connection.execute(
        "INSERT INTO policy.editions"
        " (tenant_id, recipe, own_version, document_tenant, digest, problem)"
        " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (tenant_id) DO UPDATE"
        " SET recipe = excluded.recipe, own_version = excluded.own_version,"
        " document_tenant = excluded.document_tenant, digest = excluded.digest,"
        " problem = excluded.problem, changed_xid = pg_current_xact_id()",
        tenant_id,
        recipe,
        own_version,
        None if content is None else content.tenant_id,
        None if content is None else content.digest,
        problem,
    )


def recipe_of(versions: Iterable[tuple[UUID, UUID, int]]) -> str:
    """The text that names what is put together: tenant, policy and version of each layer."""
    return json.dumps([[str(tenant), str(policy), version] for tenant, policy, version in versions])
