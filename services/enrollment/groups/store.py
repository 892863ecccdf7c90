"""Groups, and how many devices are in them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope
from servicekit.data.quarantine import place, readable
from servicekit.feeds.feed import Cursor, FeedPage, read_page
from servicekit.rpc.pagination import Page
from services.enrollment.groups.domain import (
    Group,
    alias_taken,
    priority_taken,
)
from services.enrollment.groups.membership import IN_GROUPS

_FEED: Final = place("enrollment", "feed_groups")
GROUP: Final = (
    "g.id, g.tenant_id, g.name, g.alias, g.description, g.priority, g.filter, g.filter_terms,"
    " g.revision, g.computing_after, g.created_at, g.updated_at, g.deleted_at, g.deleted_by"
)
_NIL: Final = UUID(int=0)


def group_of(row: asyncpg.Record) -> Group:
    """A group of a row with the columns `GROUP`."""
    return Group(
        id=row["id"],
        tenant_id=row["tenant_id"],
        name=row["name"],
        alias=row["alias"],
        description=row["description"],
        priority=row["priority"],
        filter=row["filter"],
        filter_terms=row["filter_terms"],
        revision=row["revision"],
        computing_after=row["computing_after"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        deleted_at=row["deleted_at"],
        deleted_by=row["deleted_by"],
    )


async def group(
    connection: Connection, scope: Scope, group_id: UUID, *, for_update: bool = False
) -> Group | None:
    """One group of the scope, unless it was deleted."""
    lock = " FOR NO KEY UPDATE" if for_update else ""
    row = await connection.fetchrow(
        f"SELECT {GROUP} FROM enrollment.device_group g WHERE g.id = $1"
        f" AND ($2::uuid[] IS NULL OR g.tenant_id = ANY ($2)) AND g.deleted_at IS NULL{lock}",
        group_id,
        scope.tenant_ids,
    )
    return group_of(row) if row else None


async def list_groups(
    connection: Connection,
    scope: Scope,
    alias: str,
    after: tuple[int, UUID] | None,
    limit: int,
) -> Page[Group, tuple[int, UUID]]:
    """Groups of the scope by priority: with an alias where that is given."""
    rows = await connection.fetch(
        f"SELECT {GROUP} FROM enrollment.device_group g"
        " WHERE ($1::uuid[] IS NULL OR g.tenant_id = ANY ($1)) AND g.deleted_at IS NULL"
        " AND ($2 = '' OR g.alias = $2)"
        " AND ($3::integer IS NULL OR (g.priority, g.id) > ($3, $4))"
        " ORDER BY g.priority, g.id LIMIT $5",
        scope.tenant_ids,
        alias,
        after[0] if after else None,
        after[1] if after else _NIL,
        limit + 1,
    )
    return Page.of([group_of(row) for row in rows], limit, lambda group: (group.priority, group.id))


async def groups_by_alias(
    connection: Connection, tenant_id: UUID, aliases: Collection[str]
) -> dict[str, Group]:
    """Groups of an organisation by alias."""
    rows = await connection.fetch(
        f"SELECT {GROUP} FROM enrollment.device_group g"
        " WHERE g.tenant_id = $1 AND g.alias = ANY ($2) AND g.deleted_at IS NULL",
        tenant_id,
        list(aliases),
    )
    return {row["alias"]: group_of(row) for row in rows}


async def groups_by_id(
    connection: Connection, tenant_id: UUID, group_ids: Collection[UUID]
) -> dict[UUID, Group]:
    """Groups of an organisation by id."""
    rows = await connection.fetch(
        f"SELECT {GROUP} FROM enrollment.device_group g"
        " WHERE g.tenant_id = $1 AND g.id = ANY ($2) AND g.deleted_at IS NULL",
        tenant_id,
        list(group_ids),
    )
    return {row["id"]: group_of(row) for row in rows}


async def measure(connection: Connection, tenant_id: UUID) -> tuple[int, int, int]:
    """How many groups an organisation has, with how many comparisons, and its last priority."""
    row = await connection.fetchrow(
        "SELECT count(*) AS groups, coalesce(sum(g.filter_terms), 0) AS terms,"
        " coalesce(max(g.priority), 0) AS last FROM enrollment.device_group g"
        " WHERE g.tenant_id = $1 AND g.deleted_at IS NULL",
        tenant_id,
    )
    assert row is not None
    return row["groups"], row["terms"], row["last"]


async def count_members(
    connection: Connection, groups: Sequence[Group]
) -> dict[UUID, tuple[int, int]]:
    """How many devices groups have; and how many serial numbers they list that no device has."""
    if not groups:
        return {}
    ids = [group.id for group in groups]
    rows = await connection.fetch(
        "SELECT g.id, count(*) AS devices FROM enrollment.device d"
        " CROSS JOIN LATERAL unnest(d.group_ids) AS g (id)"
        " WHERE d.tenant_id = ANY ($1) AND d.group_ids && $2 AND g.id = ANY ($2) GROUP BY g.id",
        list({group.tenant_id for group in groups}),
        ids,
    )
    devices = {row["id"]: row["devices"] for row in rows}
    listed = [group.id for group in groups if group.is_listed]
    rows = await connection.fetch(
        "SELECT m.group_id, count(*) AS waiting FROM enrollment.group_member m"
        " WHERE m.group_id = ANY ($1) AND NOT EXISTS (SELECT FROM enrollment.device d"
        f" WHERE d.tenant_id = m.tenant_id AND d.serial_key = m.serial_key AND {IN_GROUPS})"
        " GROUP BY m.group_id",
        listed,
    )
    waiting = {row["group_id"]: row["waiting"] for row in rows}
    return {id_: (devices.get(id_, 0), waiting.get(id_, 0)) for id_ in ids}


async def insert_group(connection: Connection, group: Group) -> None:
    """Adds a group.

    Raises:
        DomainError: ALREADY_EXISTS for its alias or priority.
    """
    try:
        await connection.execute(
            "INSERT INTO enrollment.device_group (id, tenant_id, name, alias, description,"
            " priority, filter, filter_terms, created_at, updated_at)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            group.id,
            group.tenant_id,
            group.name,
            group.alias,
            group.description,
            group.priority,
            group.filter,
            group.filter_terms,
            group.created_at,
            group.updated_at,
        )
    except asyncpg.UniqueViolationError as error:
        raise _taken(error) from error


async def update_group(connection: Connection, group: Group) -> None:
    """Writes all of a group.

    Raises:
        DomainError: ALREADY_EXISTS for its alias or priority.
    """
    try:
        await connection.execute(
            "UPDATE enrollment.device_group SET name = $2, alias = $3, description = $4,"
            " priority = $5, filter = $6, filter_terms = $7, revision = $8, computing_after = $9,"
            " updated_at = $10, deleted_at = $11, deleted_by = $12 WHERE id = $1",
            group.id,
            group.name,
            group.alias,
            group.description,
            group.priority,
            group.filter,
            group.filter_terms,
            group.revision,
            group.computing_after,
            group.updated_at,
            group.deleted_at,
            group.deleted_by,
        )
    except asyncpg.UniqueViolationError as error:
        raise _taken(error) from error


async def forget_deleted(connection: Connection, tenant_id: UUID, most: int) -> None:
    """Forgets groups of an organisation that were deleted before the latest ones."""
    await connection.execute(
        "DELETE FROM enrollment.device_group WHERE id IN (SELECT g.id"
        " FROM enrollment.device_group g WHERE g.tenant_id = $1 AND g.deleted_at IS NOT NULL"
        " AND g.computing_after IS NULL ORDER BY g.deleted_at DESC, g.id DESC OFFSET $2)",
        tenant_id,
        most,
    )


def _taken(error: asyncpg.UniqueViolationError) -> Exception:
    known = {"device_group_alias": alias_taken(), "device_group_priority": priority_taken()}
    found: Exception = known.get(error.constraint_name or "") or error
    return found


# The feed


CHANGING: Final = "SELECT changed_xid FROM enrollment.device_group"
"""What the feed of groups tells of (`servicekit.feeds.changes`)."""


async def changed_groups(
    connection: Connection, cursor: Cursor, limit: int
) -> tuple[FeedPage, list[Group]]:
    """The feed of groups, deleted ones too."""
    page = await read_page(
        connection,
        f"SELECT g.changed_xid::text AS changed_xid, g.id AS key, {GROUP}"
        " FROM enrollment.device_group g WHERE (g.changed_xid, g.id) > ($1::text::xid8, $2)"
        " ORDER BY g.changed_xid, g.id LIMIT $3",
        cursor,
        limit,
    )
    return page, readable(_FEED, page.rows, group_of, lambda row: row["key"])
