"""The SQL of sets of policies."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from servicekit.data.postgres import Connection
from services.policy.sets.domain import Member


async def hold(connection: Connection, tenant_id: UUID) -> None:
    """Lets one set of a tenant be applied at a time."""
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtext('policy:sets'), hashtext($1))", str(tenant_id)
    )


async def members(connection: Connection, tenant_id: UUID) -> dict[UUID, Member]:
    """The policies of a tenant that belong to sets, by id."""
    rows = await connection.fetch(
        "SELECT policy_id, alias, set_name, revision FROM policy.set_member WHERE tenant_id = $1",
        tenant_id,
    )
    return {row["policy_id"]: Member(**row) for row in rows}


async def put(connection: Connection, tenant_id: UUID, member: Member) -> None:
    """Says which set a policy belongs to; no other one has its alias then."""
    await connection.execute(
        "INSERT INTO policy.set_member (tenant_id, policy_id, alias, set_name, revision)"
        " VALUES ($1, $2, $3, $4, $5) ON CONFLICT (policy_id) DO UPDATE"
        " SET alias = excluded.alias, set_name = excluded.set_name, revision = excluded.revision",
        tenant_id,
        member.policy_id,
        member.alias,
        member.set_name,
        member.revision,
    )


async def groups_by_alias(
    connection: Connection, tenant_id: UUID, aliases: Collection[str]
) -> dict[str, UUID]:
    """Groups of an organisation by alias."""
    rows = await connection.fetch(
        "SELECT id, alias FROM policy.groups"
        " WHERE tenant_id = $1 AND alias = ANY ($2) AND NOT deleted",
        tenant_id,
        list(aliases),
    )
    return {row["alias"]: row["id"] for row in rows}


async def aliases_of(
    connection: Connection, tenant_id: UUID, group_ids: Collection[UUID]
) -> dict[UUID, str]:
    """The aliases of groups of an organisation."""
    rows = await connection.fetch(
        "SELECT id, alias FROM policy.groups"
        " WHERE tenant_id = $1 AND id = ANY ($2) AND NOT deleted",
        tenant_id,
        list(group_ids),
    )
    return {row["id"]: row["alias"] for row in rows}
