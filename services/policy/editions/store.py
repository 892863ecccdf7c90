"""The SQL of editions: the versions that are in force along the tree, and what was made of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection
from services.policy.authoring.layering import Own, own_of_version
from services.policy.authoring.store import VERSION, to_version
from services.policy.stamps.domain import Content, Targets
from services.policy.stamps.store import WEAKEST_FIRST
from services.policy.vault import Vault


@dataclass(frozen=True, slots=True)
class Assigned:
    """A version that is in force for a tenant, with what it sets by itself."""

    tenant_id: UUID
    policy_id: UUID
    policy_name: str
    version: int
    own: Own


@dataclass(frozen=True, slots=True)
class Bound:
    """A version that is in force for a group or a device."""

    assigned: Assigned
    target_id: UUID
    is_device: bool
    alias: str
    """The group's."""


@dataclass(frozen=True, slots=True)
class Gated:
    """The version that devices get that fall short of a gate."""

    assigned: Assigned
    gate_id: UUID
    alias: str
    """The group's whose gate it is; empty for that of the organisation."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What was last made for an organisation, or for some of its devices."""

    recipe: str
    content: Content | None
    problem: str
    profile: UUID
    """Its id, where there are targets."""
    filled: str = ""
    """Tells with which values of tenants below."""


async def try_lead(connection: Connection) -> bool:
    """Whether this transaction makes editions, and no other one does."""
    led: bool = await connection.fetchval(
        "SELECT pg_try_advisory_xact_lock(hashtext('policy:editions'))"
    )
    return led


async def assigned(
    connection: Connection, vault: Vault, tenant_ids: Sequence[UUID]
) -> list[Assigned]:
    """What is in force for tenants, in their order."""
    rows = await connection.fetch(
        f"SELECT {VERSION}, p.name FROM policy.assignments a"
        " JOIN policy.versions v ON v.tenant_id = a.tenant_id AND v.version = a.version"
        " LEFT JOIN policy.policies p ON p.id = a.policy_id AND p.tenant_id = a.tenant_id"
        " WHERE a.tenant_id = ANY ($1) ORDER BY array_position($1::uuid[], a.tenant_id)",
        list(tenant_ids),
    )
    return [_assigned(vault, row) for row in rows]


def _assigned(vault: Vault, row: asyncpg.Record) -> Assigned:
    return Assigned(
        row["tenant_id"],
        row["policy_id"],
        row["name"] or "",
        row["version"],
        own_of_version(to_version(vault, row)),
    )


async def rolled_out(
    connection: Connection, vault: Vault, tenant_id: UUID, targets: Collection[UUID]
) -> Assigned | None:
    """The version for all devices of an organisation that a rollout among targets brings."""
    row = await connection.fetchrow(
        f"SELECT {VERSION}, p.name FROM policy.rollout r"
        " JOIN policy.versions v ON v.tenant_id = r.tenant_id AND v.version = r.version"
        " LEFT JOIN policy.policies p ON p.id = r.policy_id AND p.tenant_id = r.tenant_id"
        " WHERE r.tenant_id = $1 AND r.id = ANY ($2) AND r.live"
        " AND r.group_ids = '{}' AND r.device_ids = '{}' ORDER BY r.id LIMIT 1",
        tenant_id,
        list(targets),
    )
    return None if row is None else _assigned(vault, row)


async def bound(
    connection: Connection, vault: Vault, tenant_id: UUID, targets: Collection[UUID]
) -> list[Bound]:
    """What groups and devices of an organisation are to have, the weakest first.

    The versions of rollouts among the targets count in place of those in force.
    """
    rows = await connection.fetch(
        f"SELECT {VERSION}, p.name, b.target_id, b.kind, g.alias"
        " FROM (SELECT o.target_id, o.kind, o.policy_id, o.version FROM policy.bindings o"
        " WHERE o.tenant_id = $1 AND o.target_id = ANY ($2) AND o.version IS NOT NULL"
        " AND NOT EXISTS (SELECT FROM policy.rollout r WHERE r.tenant_id = $1"
        " AND r.id = ANY ($2) AND r.live AND o.target_id = ANY (r.group_ids || r.device_ids))"
        " UNION ALL SELECT t.id, CASE WHEN t.id = ANY (r.device_ids) THEN 'device'"
        " ELSE 'group' END, r.policy_id, r.version FROM policy.rollout r"
        " CROSS JOIN LATERAL unnest(r.group_ids || r.device_ids) AS t (id)"
        " WHERE r.tenant_id = $1 AND r.id = ANY ($2) AND r.live AND t.id = ANY ($2)) AS b"
        " JOIN policy.versions v ON v.tenant_id = $1 AND v.version = b.version"
        " LEFT JOIN policy.groups g ON g.id = b.target_id"
        " LEFT JOIN policy.policies p ON p.id = b.policy_id AND p.tenant_id = $1"
        f" WHERE b.kind = 'device' OR NOT g.deleted ORDER BY {WEAKEST_FIRST}",
        tenant_id,
        list(targets),
    )
    return [
        Bound(_assigned(vault, row), row["target_id"], row["kind"] == "device", row["alias"] or "")
        for row in rows
    ]


async def otherwise(
    connection: Connection, vault: Vault, tenant_id: UUID, targets: Collection[UUID]
) -> Gated | None:
    """What devices of an organisation get that fall short of an enforced gate among targets."""
    row = await connection.fetchrow(
        f"SELECT {VERSION}, p.name, e.id AS gate_id, g.alias FROM policy.gate e"
        " JOIN policy.versions v ON v.tenant_id = e.tenant_id AND v.version = e.otherwise_version"
        " LEFT JOIN policy.policies p ON p.id = e.otherwise_policy_id AND p.tenant_id = e.tenant_id"
        " LEFT JOIN policy.groups g ON g.id = e.target_id AND g.tenant_id = e.tenant_id"
        " WHERE e.tenant_id = $1 AND e.id = ANY ($2) AND e.mode = 'ENFORCE' LIMIT 1",
        tenant_id,
        list(targets),
    )
    return None if row is None else Gated(_assigned(vault, row), row["gate_id"], row["alias"] or "")


async def bound_among(
    connection: Connection, tenant_id: UUID, wanted: Collection[UUID]
) -> tuple[UUID, ...]:
    """Those of groups and devices for which something is in force, sorted."""
    rows = await connection.fetch(
        "SELECT b.target_id FROM policy.bindings b LEFT JOIN policy.groups g ON g.id = b.target_id"
        " WHERE b.tenant_id = $1 AND b.target_id = ANY ($2) AND b.version IS NOT NULL"
        " AND (b.kind = 'device' OR NOT g.deleted) ORDER BY b.target_id",
        tenant_id,
        list(wanted),
    )
    return tuple(row["target_id"] for row in rows)


async def get_stored(
    connection: Connection, tenant_id: UUID, targets: Targets = ()
) -> Stored | None:
    """What was last made for an organisation, or for those of its devices with some targets."""
    row = await connection.fetchrow(
        "SELECT recipe, document_tenant, digest, problem, id, filled FROM policy.profiles"
        " WHERE tenant_id = $1 AND targets = $2"
        if targets
        else "SELECT recipe, document_tenant, digest, problem, id, filled FROM policy.editions"
        " WHERE tenant_id = $1 AND $2::uuid[] = '{}'",
        tenant_id,
        list(targets),
    )
    if row is None:
        return None
    digest = row["digest"]
    content = None if digest is None else Content(row["document_tenant"], digest)
    return Stored(row["recipe"], content, row["problem"], row["id"], row["filled"])


async def put_profile(
    connection: Connection,
    tenant_id: UUID,
    targets: Targets,
    recipe: str,
    content: Content | None,
    problem: str,
    profile: UUID,
    *,
    apart: bool,
    filled: str = "",
) -> None:
    """Stores what was made for those devices of an organisation with some targets."""
    await connection.execute(
        "INSERT INTO policy.profiles"
        " (tenant_id, targets, id, recipe, document_tenant, digest, problem, apart, filled)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (tenant_id, targets) DO UPDATE"
        " SET recipe = excluded.recipe, document_tenant = excluded.document_tenant,"
        " digest = excluded.digest, problem = excluded.problem, apart = excluded.apart,"
        " filled = excluded.filled,"
        " changed_xid = pg_current_xact_id()",
        tenant_id,
        list(targets),
        profile,
        recipe,
        None if content is None else content.tenant_id,
        None if content is None else content.digest,
        problem,
        apart,
        filled,
    )


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
    filled: str = "",
) -> None:
    """Stores what was made for an organisation."""
    await connection.execute(
        "INSERT INTO policy.editions"
        " (tenant_id, recipe, own_version, document_tenant, digest, problem, filled)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (tenant_id) DO UPDATE"
        " SET recipe = excluded.recipe, own_version = excluded.own_version,"
        " document_tenant = excluded.document_tenant, digest = excluded.digest,"
        " problem = excluded.problem, filled = excluded.filled,"
        " changed_xid = pg_current_xact_id()",
        tenant_id,
        recipe,
        own_version,
        None if content is None else content.tenant_id,
        None if content is None else content.digest,
        problem,
        filled,
    )
