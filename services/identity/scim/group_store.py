"""Groups of SCIM sources and who is in them, in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection
from services.identity.scim.domain import ScimGroupRow, taken
from services.identity.scim.filters import Field, Fields, Filter, Several, narrowed, time_fields
from services.identity.scim.schemas import GROUP

_GROUP: Final = (
    "g.id, g.source_id, g.tenant_id, g.display_name, g.external_id, g.created_at, g.updated_at"
)
_MEMBERS: Final = "(SELECT count(*) FROM identity.scim_member m WHERE m.group_id = g.id) AS members"
GROUP_FIELDS: Final[Fields] = {
    "id": Field("g.id", "id"),
    "displayname": Field("g.name_key", "folded"),
    "externalid": Field("g.external_id", "exact"),
    "members": Several(
        "EXISTS (SELECT FROM identity.scim_member m WHERE m.group_id = g.id AND {where})",
        {"value": Field("m.person_id", "id")},
    ),
    **time_fields("g"),
}
"""What groups are filtered by."""


def _group(row: asyncpg.Record) -> ScimGroupRow:
    return ScimGroupRow(
        id=row["id"],
        source_id=row["source_id"],
        tenant_id=row["tenant_id"],
        display_name=row["display_name"],
        external_id=row["external_id"] or "",
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        members=row["members"],
    )


async def count_groups(connection: Connection, source_id: UUID) -> int:
    """How many groups a source has."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM identity.scim_group WHERE source_id = $1", source_id
    )
    return found


async def group(connection: Connection, source_id: UUID, group_id: UUID) -> ScimGroupRow | None:
    """One of the groups of a source."""
    row = await connection.fetchrow(
        f"SELECT {_GROUP}, {_MEMBERS} FROM identity.scim_group g"
        " WHERE g.source_id = $1 AND g.id = $2",
        source_id,
        group_id,
    )
    return _group(row) if row else None


async def write_group(connection: Connection, group: ScimGroupRow) -> None:
    """Adds or writes a group.

    Raises:
        DomainError: ALREADY_EXISTS when the source has the name, or the external id, as either.
    """
    # By a name that is another group's id, a user who names groups would get what that maps to.
    same = await connection.fetchrow(
        "SELECT external_id = $3 AS name FROM identity.scim_group WHERE source_id = $1 AND id <> $2"
        " AND (external_id = $3 OR ($4 <> '' AND display_name = $4)) LIMIT 1",
        group.source_id,
        group.id,
        group.display_name,
        group.external_id,
    )
    if same is not None:
        raise taken("displayName" if same["name"] else "externalId")
    try:
        await connection.execute(
            "INSERT INTO identity.scim_group (id, source_id, tenant_id, display_name, name_key,"
            " external_id, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
            " ON CONFLICT (id) DO UPDATE SET display_name = excluded.display_name,"
            " name_key = excluded.name_key, external_id = excluded.external_id,"
            " updated_at = excluded.updated_at",
            group.id,
            group.source_id,
            group.tenant_id,
            group.display_name,
            group.name_key,
            group.external_id or None,
            group.created_at,
            group.updated_at,
        )
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name == "scim_group_name_taken":
            raise taken("displayName") from error
        if error.constraint_name == "scim_group_external_id_taken":
            raise taken("externalId") from error
        raise


async def delete_group(connection: Connection, group: ScimGroupRow) -> None:
    """Deletes a group; its members stay what they are."""
    await connection.execute(
        "DELETE FROM identity.scim_group WHERE id = $1 AND source_id = $2",
        group.id,
        group.source_id,
    )


async def list_groups(
    connection: Connection, source_id: UUID, found: Filter | None, start: int, count: int
) -> tuple[int, list[ScimGroupRow]]:
    """Groups of a source for which a filter holds, as `list_people`."""
    where, parameters = narrowed("g.source_id = $1", source_id, found, GROUP_FIELDS, GROUP)
    total = await connection.fetchval(
        f"SELECT count(*) FROM identity.scim_group g WHERE {where}", *parameters
    )
    if not count or start > total:
        return total, []
    rows = await connection.fetch(
        f"SELECT {_GROUP}, {_MEMBERS} FROM identity.scim_group g WHERE {where}"
        f" ORDER BY g.id OFFSET {start - 1} LIMIT {count}",
        *parameters,
    )
    return total, [_group(row) for row in rows]


async def members(connection: Connection, group_ids: Sequence[UUID]) -> dict[UUID, list[UUID]]:
    """Who is in groups, by the groups."""
    rows = await connection.fetch(
        "SELECT group_id, person_id FROM identity.scim_member WHERE group_id = ANY ($1)"
        " ORDER BY person_id",
        list(group_ids),
    )
    found: dict[UUID, list[UUID]] = {}
    for row in rows:
        found.setdefault(row["group_id"], []).append(row["person_id"])
    return found


async def member_ids(connection: Connection, group_id: UUID) -> set[UUID]:
    """Who is in a group."""
    rows = await connection.fetch(
        "SELECT person_id FROM identity.scim_member WHERE group_id = $1", group_id
    )
    return {row["person_id"] for row in rows}


async def are_members(
    connection: Connection, group_id: UUID, person_ids: Sequence[UUID]
) -> set[UUID]:
    """Those of some people who are in a group."""
    rows = await connection.fetch(
        "SELECT person_id FROM identity.scim_member WHERE group_id = $1 AND person_id = ANY ($2)",
        group_id,
        list(person_ids),
    )
    return {row["person_id"] for row in rows}


async def change_members(
    connection: Connection, group: ScimGroupRow, added: Sequence[UUID], removed: Sequence[UUID]
) -> None:
    """Lets people into a group and out of it."""
    await connection.execute(
        "DELETE FROM identity.scim_member WHERE group_id = $1 AND person_id = ANY ($2)",
        group.id,
        list(removed),
    )
    await connection.execute(
        "INSERT INTO identity.scim_member (group_id, person_id, tenant_id)"
        " SELECT $1, one, $3 FROM unnest($2::uuid[]) AS one ON CONFLICT DO NOTHING",
        group.id,
        list(added),
        group.tenant_id,
    )


async def leave_groups(connection: Connection, person_id: UUID, at: datetime) -> None:
    """Takes somebody out of all groups."""
    await connection.execute(
        "WITH gone AS (DELETE FROM identity.scim_member WHERE person_id = $1 RETURNING group_id)"
        " UPDATE identity.scim_group SET updated_at = greatest(updated_at, $2)"
        " WHERE id IN (SELECT group_id FROM gone)",
        person_id,
        at,
    )
