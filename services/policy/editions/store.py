"""The SQL of editions: the versions that are in force along the tree, and what was made of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, columns
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


@dataclass(frozen=True, slots=True)
class Made:
    """What is made for an organisation, or for some of its devices."""

    tenant_id: UUID
    recipe: str
    content: Content | None
    """`None` where the document of the organisation's own version is all."""
    own_version: int | None = None
    """The organisation's own one among those that it is made of."""
    problem: str = ""
    targets: Targets = ()
    profile: UUID | None = None
    """Its id, where there are targets."""
    apart: bool = False
    """Whether its numbers are its own."""
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
    return [_bound(vault, row) for row in rows]


def _bound(vault: Vault, row: asyncpg.Record) -> Bound:
    is_device = row["kind"] == "device"
    return Bound(_assigned(vault, row), row["target_id"], is_device, row["alias"] or "")


async def bound_to_targets(
    connection: Connection, vault: Vault, wanted: Collection[tuple[UUID, UUID]]
) -> list[Bound]:
    """What groups and devices of organisations are to have, the weakest first, without rollouts.

    Args:
        wanted: organisations with a group or a device each.
    """
    tenant_ids, target_ids = columns(sorted(wanted))
    rows = await connection.fetch(
        f"SELECT {VERSION}, p.name, b.target_id, b.kind, g.alias"
        " FROM unnest($1::uuid[], $2::uuid[]) AS t (tenant_id, target_id)"
        " JOIN policy.bindings b ON b.tenant_id = t.tenant_id AND b.target_id = t.target_id"
        " JOIN policy.versions v ON v.tenant_id = b.tenant_id AND v.version = b.version"
        " LEFT JOIN policy.groups g ON g.id = b.target_id"
        " LEFT JOIN policy.policies p ON p.id = b.policy_id AND p.tenant_id = b.tenant_id"
        f" WHERE b.kind = 'device' OR NOT g.deleted ORDER BY {WEAKEST_FIRST}",
        tenant_ids,
        target_ids,
    )
    return [_bound(vault, row) for row in rows]


async def of_several_versions(connection: Connection, targets: Collection[UUID]) -> set[UUID]:
    """The rollouts that count, and the gates that are enforced, among targets."""
    rows = await connection.fetch(
        "SELECT r.id FROM policy.rollout r WHERE r.id = ANY ($1) AND r.live"
        " UNION ALL SELECT e.id FROM policy.gate e WHERE e.id = ANY ($1) AND e.mode = 'ENFORCE'",
        list(targets),
    )
    return {row["id"] for row in rows}


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
    connection: Connection, tenant_ids: Collection[UUID]
) -> dict[tuple[UUID, Targets], Stored]:
    """What was last made for organisations, and for those of their devices with some targets."""
    rows = await connection.fetch(
        "SELECT e.tenant_id, '{}'::uuid[] AS targets, e.recipe, e.document_tenant, e.digest,"
        " e.problem, e.id, e.filled FROM policy.editions e WHERE e.tenant_id = ANY ($1)"
        " UNION ALL SELECT p.tenant_id, p.targets, p.recipe, p.document_tenant, p.digest,"
        " p.problem, p.id, p.filled FROM policy.profiles p WHERE p.tenant_id = ANY ($1)",
        list(tenant_ids),
    )
    return {
        (row["tenant_id"], tuple(row["targets"])): Stored(
            row["recipe"],
            None if row["digest"] is None else Content(row["document_tenant"], row["digest"]),
            row["problem"],
            row["id"],
            row["filled"],
        )
        for row in rows
    }


async def put_profiles(connection: Connection, made: Sequence[Made]) -> None:
    """Stores what was made for those devices of organisations with some targets."""
    await connection.execute(
        "INSERT INTO policy.profiles"
        " (tenant_id, targets, id, recipe, document_tenant, digest, problem, apart, filled)"
        " SELECT t.tenant_id, t.targets::uuid[], t.id, t.recipe, t.document_tenant, t.digest,"
        " t.problem, t.apart, t.filled FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::text[],"
        " $5::uuid[], $6::bytea[], $7::text[], $8::boolean[], $9::text[])"
        " AS t (tenant_id, targets, id, recipe, document_tenant, digest, problem, apart, filled)"
        " ON CONFLICT (tenant_id, targets) DO UPDATE"
        " SET recipe = excluded.recipe, document_tenant = excluded.document_tenant,"
        " digest = excluded.digest, problem = excluded.problem, apart = excluded.apart,"
        " filled = excluded.filled, changed_xid = pg_current_xact_id()",
        *columns(
            [
                (
                    one.tenant_id,
                    f"{{{','.join(map(str, one.targets))}}}",
                    one.profile,
                    one.recipe,
                    *_parts(one.content),
                    one.problem,
                    one.apart,
                    one.filled,
                )
                for one in made
            ]
        ),
    )


async def put(connection: Connection, made: Sequence[Made]) -> None:
    """Stores what was made for organisations."""
    await connection.execute(
        "INSERT INTO policy.editions"
        " (tenant_id, recipe, own_version, document_tenant, digest, problem, filled)"
        " SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::uuid[], $5::bytea[],"
        " $6::text[], $7::text[]) ON CONFLICT (tenant_id) DO UPDATE"
        " SET recipe = excluded.recipe, own_version = excluded.own_version,"
        " document_tenant = excluded.document_tenant, digest = excluded.digest,"
        " problem = excluded.problem, filled = excluded.filled, changed_xid = pg_current_xact_id()",
        *columns(
            [
                (
                    one.tenant_id,
                    one.recipe,
                    one.own_version,
                    *_parts(one.content),
                    one.problem,
                    one.filled,
                )
                for one in made
            ]
        ),
    )


def _parts(content: Content | None) -> tuple[UUID | None, bytes | None]:
    return (None, None) if content is None else (content.tenant_id, content.digest)
