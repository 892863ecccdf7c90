"""The SQL of sets of groups."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from servicekit.data.postgres import Connection
from services.enrollment.groups.domain import MAX_PRIORITY


async def members(connection: Connection, tenant_id: UUID) -> dict[UUID, str]:
    """The groups of an organisation that belong to sets, with the sets' names."""
    rows = await connection.fetch(
        "SELECT group_id, set_name FROM enrollment.group_set_member WHERE tenant_id = $1",
        tenant_id,
    )
    return {row["group_id"]: row["set_name"] for row in rows}


async def put(connection: Connection, tenant_id: UUID, group_id: UUID, set_name: str) -> None:
    """Says which set a group belongs to."""
    await connection.execute(
        "INSERT INTO enrollment.group_set_member (group_id, tenant_id, set_name)"
        " VALUES ($1, $2, $3) ON CONFLICT (group_id) DO UPDATE SET set_name = excluded.set_name",
        group_id,
        tenant_id,
        set_name,
    )


async def remove(connection: Connection, group_id: UUID) -> None:
    """Lets a group belong to no set."""
    await connection.execute(
        "DELETE FROM enrollment.group_set_member WHERE group_id = $1", group_id
    )


async def park(connection: Connection, group_ids: Collection[UUID]) -> None:
    """Gives groups priorities that none has, until each gets its own in the same transaction."""
    await connection.execute(
        "UPDATE enrollment.device_group SET priority = priority + $2 WHERE id = ANY ($1)",
        list(group_ids),
        MAX_PRIORITY,
    )
