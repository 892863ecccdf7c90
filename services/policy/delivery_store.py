"""The SQL of policy delivery: what is in force, what devices applied, whom to serve again.

Devices name their rows by id, and the feeds are for all organisations: these statements run
without a tenant scope.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from servicekit.feed import Cursor, Page, read_page
from servicekit.postgres import Connection, columns
from services.policy.domain import Bundle
from services.policy.signing import Statement

# A bundle can be half a megabyte.
_BUNDLES_A_PAGE = 50
_SYNCS_A_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Applied:
    """The version that a device says it has, and since when it says so.

    `token_version` is the generation of the token that it said so with.
    """

    device_id: UUID
    tenant_id: UUID
    version: int
    token_version: int
    reported_at: datetime


@dataclass(frozen=True, slots=True)
class Sync:
    """A wish that a device apply its policy again; fulfilled when `served_at` is set."""

    device_id: UUID
    requested_at: datetime
    served_at: datetime | None


CHANGING: Final = (
    "SELECT changed_xid FROM policy.assignments",
    "SELECT changed_xid FROM policy.applied_versions",
    "SELECT changed_xid FROM policy.device_syncs",
)
"""What the feeds below tell of (`servicekit.changes`)."""


async def bundles_since(
    connection: Connection, cursor: Cursor
) -> tuple[Page, dict[UUID, Bundle | None]]:
    """What came into force since a cursor, by org; `None` when nothing is in force any more."""
    page = await read_page(
        connection,
        "SELECT a.changed_xid::text AS changed_xid, a.id AS key, a.tenant_id, v.version,"
        " v.document, v.signature, v.statement_payload, v.statement_signature, v.key_id"
        " FROM policy.assignments a"
        " LEFT JOIN policy.versions v ON v.tenant_id = a.tenant_id AND v.version = a.version"
        " WHERE (a.changed_xid, a.id) > ($1::text::xid8, $2)"
        " ORDER BY a.changed_xid, a.id LIMIT $3",
        cursor,
        _BUNDLES_A_PAGE,
    )
    found = {
        row["tenant_id"]: None
        if row["version"] is None
        else Bundle(
            row["version"],
            row["document"],
            row["signature"],
            Statement(row["statement_payload"], row["statement_signature"], row["key_id"]),
        )
        for row in page.rows
    }
    return page, found


async def get_bundle(connection: Connection, tenant_id: UUID, version: int) -> Bundle | None:
    """A version that was published once, whether or not it is in force."""
    row = await connection.fetchrow(
        "SELECT version, document, signature, statement_payload, statement_signature, key_id"
        " FROM policy.versions WHERE tenant_id = $1 AND version = $2",
        tenant_id,
        version,
    )
    if row is None:
        return None
    statement = Statement(row["statement_payload"], row["statement_signature"], row["key_id"])
    return Bundle(row["version"], row["document"], row["signature"], statement)


async def syncs_since(connection: Connection, cursor: Cursor) -> tuple[Page, list[Sync]]:
    """Wishes that were made or fulfilled since a cursor."""
    page = await read_page(
        connection,
        "SELECT changed_xid::text AS changed_xid, device_id AS key, requested_at, served_at"
        " FROM policy.device_syncs WHERE (changed_xid, device_id) > ($1::text::xid8, $2)"
        " ORDER BY changed_xid, device_id LIMIT $3",
        cursor,
        _SYNCS_A_PAGE,
    )
    return page, [Sync(row["key"], row["requested_at"], row["served_at"]) for row in page.rows]


async def syncs_served(connection: Connection, syncs: Sequence[Sync]) -> None:
    """Notes wishes as fulfilled, unless they were made anew since."""
    await connection.execute(
        "UPDATE policy.device_syncs s SET served_at = u.served_at,"
        " changed_xid = pg_current_xact_id()"
        " FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[])"
        " AS u(device_id, requested_at, served_at)"
        " WHERE s.device_id = u.device_id AND s.requested_at = u.requested_at"
        " AND s.served_at IS NULL",
        *columns([(s.device_id, s.requested_at, s.served_at) for s in syncs]),
    )


async def write_applied(connection: Connection, applied: Sequence[Applied]) -> None:
    """Stores what devices say they have; rows that say so already are left alone."""
    await connection.execute(
        "INSERT INTO policy.applied_versions AS a"
        " (device_id, tenant_id, version, token_version, reported_at)"
        " SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::integer[],"
        " $5::timestamptz[]) AS u(device_id, tenant_id, version, token_version, reported_at)"
        # Two processes that write the same devices lock them in one order.
        " ORDER BY device_id"
        " ON CONFLICT (device_id) DO UPDATE SET tenant_id = excluded.tenant_id,"
        " version = excluded.version, token_version = excluded.token_version,"
        " reported_at = excluded.reported_at, changed_xid = pg_current_xact_id()"
        " WHERE (a.tenant_id, a.version, a.token_version)"
        " IS DISTINCT FROM (excluded.tenant_id, excluded.version, excluded.token_version)",
        *columns(
            [(a.device_id, a.tenant_id, a.version, a.token_version, a.reported_at) for a in applied]
        ),
    )


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
) -> tuple[Page, list[Applied]]:
    """What devices have applied since a cursor."""
    page = await read_page(
        connection,
        "SELECT changed_xid::text AS changed_xid, device_id AS key, tenant_id, version,"
        " token_version, reported_at FROM policy.applied_versions"
        " WHERE (changed_xid, device_id) > ($1::text::xid8, $2)"
        " ORDER BY changed_xid, device_id LIMIT $3",
        cursor,
        limit,
    )
    return page, [
        Applied(
            row["key"],
            row["tenant_id"],
            row["version"],
            row["token_version"],
            row["reported_at"],
        )
        for row in page.rows
    ]


async def devices_cursor(connection: Connection) -> str:
    """How far the registry's feed was read; empty for not at all."""
    cursor: str | None = await connection.fetchval("SELECT cursor FROM policy.devices_cursor")
    return cursor or ""


async def write_devices(
    connection: Connection, devices: Sequence[tuple[UUID, UUID, str]], cursor: str
) -> None:
    """Stores devices as the registry has them now: id, org, status."""
    if devices:
        await connection.execute(
            "INSERT INTO policy.devices (device_id, tenant_id, status)"
            " SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[])"
            " AS u(device_id, tenant_id, status) ORDER BY device_id"
            " ON CONFLICT (device_id) DO UPDATE SET tenant_id = excluded.tenant_id,"
            " status = excluded.status",
            *columns(devices),
        )
    await connection.execute(
        "INSERT INTO policy.devices_cursor (cursor) VALUES ($1)"
        " ON CONFLICT (only_row) DO UPDATE SET cursor = excluded.cursor",
        cursor,
    )
