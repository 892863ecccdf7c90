"""The serial numbers that groups list, and the devices that have them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, columns
from servicekit.rpc.pagination import Page
from services.enrollment.groups.domain import Group, Member
from services.enrollment.groups.membership import IN_GROUPS

_NIL: Final = UUID(int=0)


async def add_members(
    connection: Connection,
    tenant_id: UUID,
    members: Sequence[tuple[UUID, str, str]],
    added_by: str,
    at: datetime,
) -> list[tuple[UUID, str]]:
    """Lists serial numbers (group, serial number, its key); answers those that were not listed."""
    if not members:
        return []
    rows = await connection.fetch(
        "INSERT INTO enrollment.group_member"
        " (group_id, serial, serial_key, tenant_id, added_by, added_at)"
        " SELECT u.group_id, u.serial, u.serial_key, $4, $5, $6"
        " FROM unnest($1::uuid[], $2::text[], $3::text[]) AS u (group_id, serial, serial_key)"
        " ORDER BY u.group_id, u.serial_key"
        " ON CONFLICT DO NOTHING RETURNING group_id, serial_key",
        *columns(members),
        tenant_id,
        added_by,
        at,
    )
    return [(row["group_id"], row["serial_key"]) for row in rows]


async def listed_among(connection: Connection, group_id: UUID, keys: Collection[str]) -> set[str]:
    """Those keys of serial numbers that a group lists."""
    rows = await connection.fetch(
        "SELECT serial_key FROM enrollment.group_member"
        " WHERE group_id = $1 AND serial_key = ANY ($2)",
        group_id,
        list(keys),
    )
    return {row["serial_key"] for row in rows}


async def remove_members(
    connection: Connection, members: Collection[tuple[UUID, str]]
) -> list[tuple[UUID, str]]:
    """Takes keys of serial numbers off the lists of groups; answers those that were on them."""
    if not members:
        return []
    rows = await connection.fetch(
        "DELETE FROM enrollment.group_member m"
        " USING unnest($1::uuid[], $2::text[]) AS u (group_id, serial_key)"
        " WHERE m.group_id = u.group_id AND m.serial_key = u.serial_key"
        " RETURNING m.group_id, m.serial_key",
        *columns(list(members)),
    )
    return [(row["group_id"], row["serial_key"]) for row in rows]


async def remove_all_members(connection: Connection, group_id: UUID) -> None:
    """Empties the list of a group."""
    await connection.execute("DELETE FROM enrollment.group_member WHERE group_id = $1", group_id)


async def count_listed(connection: Connection, group_id: UUID) -> int:
    """How many serial numbers a group lists."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM enrollment.group_member WHERE group_id = $1", group_id
    )
    return found


async def devices_by_key(
    connection: Connection, tenant_id: UUID, keys: Collection[str]
) -> dict[str, tuple[UUID, bool]]:
    """Devices by the keys of their serial numbers; and whether they can be in groups."""
    rows = await connection.fetch(
        f"SELECT d.id, d.serial_key, {IN_GROUPS} AS is_in FROM enrollment.device d"
        " WHERE d.serial_key = ANY ($2) AND d.tenant_id = $1",
        tenant_id,
        list(keys),
    )
    return {row["serial_key"]: (row["id"], row["is_in"]) for row in rows}


async def serials_of(
    connection: Connection, tenant_id: UUID, device_ids: Collection[UUID]
) -> dict[UUID, str]:
    """The serial numbers of devices by their ids."""
    rows = await connection.fetch(
        "SELECT d.id, d.serial FROM enrollment.device d"
        " WHERE d.tenant_id = $1 AND d.id = ANY ($2) AND d.deleted_at IS NULL",
        tenant_id,
        list(device_ids),
    )
    return {row["id"]: row["serial"] for row in rows}


async def listed_members(
    connection: Connection, group: Group, after: str, limit: int
) -> Page[Member, str]:
    """The serial numbers that a group lists, by their keys, with the devices that have them."""
    rows = await connection.fetch(
        "SELECT m.serial AS listed, m.serial_key, m.added_by, m.added_at, d.id, d.serial, d.model,"
        " d.status FROM enrollment.group_member m LEFT JOIN enrollment.device d"
        " ON d.serial_key = m.serial_key AND d.tenant_id = m.tenant_id AND d.deleted_at IS NULL"
        " WHERE m.group_id = $1 AND m.serial_key > $2 ORDER BY m.serial_key LIMIT $3",
        group.id,
        after,
        limit + 1,
    )
    members = [
        (
            row["serial_key"],
            Member(
                serial=row["serial"] or row["listed"],
                is_listed=True,
                device_id=row["id"],
                model=row["model"] or "",
                status=row["status"] or "",
                added_by=row["added_by"],
                added_at=row["added_at"],
            ),
        )
        for row in rows
    ]
    page = Page.of(members, limit, lambda member: member[0])
    return Page([member for _, member in page.items], page.after)


async def matching_members(
    connection: Connection, group: Group, after: UUID | None, limit: int
) -> Page[Member, UUID]:
    """The devices of a group with a filter, the oldest first."""
    rows = await connection.fetch(
        "SELECT d.id, d.serial, d.model, d.status FROM enrollment.device d WHERE d.tenant_id = $1"
        " AND d.id > $2 AND d.group_ids @> ARRAY[$3::uuid] ORDER BY d.id LIMIT $4",
        group.tenant_id,
        after or _NIL,
        group.id,
        limit + 1,
    )
    return Page.of([member_of(row) for row in rows], limit, lambda member: member.device_id or _NIL)


def member_of(row: asyncpg.Record) -> Member:
    """A device of a row with `id`, `serial`, `model` and `status`."""
    return Member(
        serial=row["serial"],
        is_listed=False,
        device_id=row["id"],
        model=row["model"],
        status=row["status"],
    )
