"""The SQL of what devices applied.

Devices name their rows by id, and the feeds are for all organisations: these statements run
without a tenant scope.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from servicekit.data.postgres import Connection, columns
from servicekit.feeds.feed import Cursor, FeedPage, read_page
from services.policy.deleted_devices import DELETED


@dataclass(frozen=True, slots=True)
class Applied:
    """The version that a device says it has, and since when it says so.

    `token_version` is the generation of the token that it said so with; `rightful` says whether the
    version stands for what the device is to have.
    """

    device_id: UUID
    tenant_id: UUID
    version: int
    token_version: int
    reported_at: datetime
    rightful: bool = False


CHANGING: Final = "SELECT changed_xid FROM policy.applied_versions"
"""What the feed below tells of (`servicekit.feeds.changes`)."""


async def write_applied(connection: Connection, applied: Sequence[Applied]) -> None:
    """Stores what devices say they have; rows that say so already are left alone.

    What a device said before it was deleted is not stored.
    """
    await DELETED.keep_out(connection)
    await connection.execute(
        "INSERT INTO policy.applied_versions AS a"
        " (device_id, tenant_id, version, token_version, reported_at, rightful_version)"
        " SELECT u.device_id, u.tenant_id, u.version, u.token_version, u.reported_at,"
        " CASE WHEN u.rightful THEN u.version END FROM unnest($1::uuid[], $2::uuid[],"
        " $3::bigint[], $4::integer[], $5::timestamptz[], $6::boolean[])"
        " AS u(device_id, tenant_id, version, token_version, reported_at, rightful)"
        f" WHERE {DELETED.condition('u.device_id')}"
        # Two processes that write the same devices lock them in one order.
        " ORDER BY device_id"
        " ON CONFLICT (device_id) DO UPDATE SET tenant_id = excluded.tenant_id,"
        " version = excluded.version, token_version = excluded.token_version,"
        " reported_at = excluded.reported_at, changed_xid = pg_current_xact_id(),"
        # A number is one of an organisation.
        " rightful_version = coalesce(excluded.rightful_version,"
        " CASE WHEN a.tenant_id = excluded.tenant_id THEN a.rightful_version END)"
        " WHERE (a.tenant_id, a.version, a.token_version)"
        " IS DISTINCT FROM (excluded.tenant_id, excluded.version, excluded.token_version)"
        " OR a.rightful_version <> excluded.rightful_version"
        " OR a.rightful_version IS NULL AND excluded.rightful_version IS NOT NULL",
        *columns(
            [
                (
                    a.device_id,
                    a.tenant_id,
                    a.version,
                    a.token_version,
                    a.reported_at,
                    a.rightful,
                )
                for a in applied
            ]
        ),
    )


async def is_rightful(
    connection: Connection, tenant_id: UUID, device_id: UUID, version: int
) -> bool:
    """Whether a version stood for what a device was to have when it reported it last."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM policy.applied_versions WHERE device_id = $1"
        " AND tenant_id = $2 AND rightful_version = $3)",
        device_id,
        tenant_id,
        version,
    )
    return found


async def applied_version(connection: Connection, device_id: UUID) -> int | None:
    """The version that a device says it has; `None` when it never said."""
    version: int | None = await connection.fetchval(
        "SELECT version FROM policy.applied_versions WHERE device_id = $1", device_id
    )
    return version


async def has_called(connection: Connection, device_id: UUID, token_version: int) -> bool:
    """Whether a device asked for its policy with a token of this generation."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM policy.applied_versions"
        " WHERE device_id = $1 AND token_version >= $2)",
        device_id,
        token_version,
    )
    return found


async def applied_since(
    connection: Connection, cursor: Cursor, limit: int
) -> tuple[FeedPage, list[Applied]]:
    """What devices have applied since a cursor."""
    page = await read_page(
        connection,
        "SELECT a.changed_xid::text AS changed_xid, a.device_id AS key, a.tenant_id, a.version,"
        " a.token_version, a.reported_at FROM policy.applied_versions a"
        " WHERE (a.changed_xid, a.device_id) > ($1::text::xid8, $2)"
        " ORDER BY a.changed_xid, a.device_id LIMIT $3",
        cursor,
        limit,
    )
    return page, [
        Applied(
            device_id=row["key"],
            tenant_id=row["tenant_id"],
            version=row["version"],
            token_version=row["token_version"],
            reported_at=row["reported_at"],
        )
        for row in page.rows
    ]
