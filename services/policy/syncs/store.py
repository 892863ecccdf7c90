"""The SQL of syncs, and the devices as the registry has them.

Devices name their rows by id, and the feeds are for all organisations: most of these statements
run without a tenant scope.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from servicekit.data.postgres import Connection, Scope, columns
from servicekit.feeds.feed import Cursor, FeedPage, read_page
from services.policy.deleted_devices import DELETED
from services.policy.targets.store import Membership

_SYNCS_A_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Sync:
    """A wish that a device apply its policy again; fulfilled when `served_at` is set."""

    device_id: UUID
    requested_at: datetime
    served_at: datetime | None


@dataclass(frozen=True, slots=True)
class RegisteredDevice:
    """A device as the registry has it."""

    device_id: UUID
    tenant_id: UUID
    status: str
    enrolled_at: datetime | None
    deleted: bool
    archived: bool = False
    """Whether it comes back with its archived organisation."""
    membership: Membership | None = None
    """`None` while the registry does not know it: what is stored stays."""


CHANGING = "SELECT changed_xid FROM policy.device_syncs"
"""What the feed of syncs tells of (`servicekit.feeds.changes`)."""


async def insert(connection: Connection, device_id: UUID, tenant_id: UUID, now: datetime) -> None:
    """Notes that a device is to apply its policy again, unless it was deleted."""
    await DELETED.keep_out(connection)
    await connection.execute(
        "INSERT INTO policy.device_syncs (device_id, tenant_id, requested_at)"
        " SELECT u.* FROM (SELECT $1::uuid AS device_id, $2::uuid, $3::timestamptz) AS u"
        f" WHERE {DELETED.condition('u.device_id')} ON CONFLICT (device_id) DO UPDATE"
        " SET tenant_id = excluded.tenant_id, requested_at = excluded.requested_at,"
        " served_at = NULL, changed_xid = pg_current_xact_id()",
        device_id,
        tenant_id,
        now,
    )


async def read_since(connection: Connection, cursor: Cursor) -> tuple[FeedPage, list[Sync]]:
    """Wishes that were made or fulfilled since a cursor."""
    page = await read_page(
        connection,
        "SELECT s.changed_xid::text AS changed_xid, s.device_id AS key, s.requested_at,"
        " s.served_at FROM policy.device_syncs s"
        " WHERE (s.changed_xid, s.device_id) > ($1::text::xid8, $2)"
        # By the column: the text of the same name would put 99 behind 100.
        " ORDER BY s.changed_xid, s.device_id LIMIT $3",
        cursor,
        _SYNCS_A_PAGE,
    )
    return page, [
        Sync(device_id=row["key"], requested_at=row["requested_at"], served_at=row["served_at"])
        for row in page.rows
    ]


async def write_served(connection: Connection, syncs: Sequence[Sync]) -> None:
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


async def devices_cursor(connection: Connection) -> str:
    """How far the registry's feed was read; empty for not at all."""
    cursor: str | None = await connection.fetchval(
        "SELECT membership_cursor FROM policy.devices_cursor"
    )
    return cursor or ""


async def delete_devices(connection: Connection, devices: Sequence[RegisteredDevice]) -> None:
    """Deletes what is known of devices that the registry deleted."""
    if not devices:
        return
    device_ids = [device.device_id for device in devices]
    await DELETED.wait_for_writers(connection)
    for table in (
        "devices",
        "applied_versions",
        "device_syncs",
        "device_verdict",
        "memberships",
        "rollout_device",
        "restricted_device",
    ):
        await connection.execute(
            f"DELETE FROM policy.{table} WHERE device_id = ANY ($1)", device_ids
        )
    # What was put together for a device with a policy of its own.
    await connection.execute(
        "DELETE FROM policy.profiles WHERE tenant_id = ANY ($1) AND targets && $2",
        list({device.tenant_id for device in devices}),
        device_ids,
    )


async def write_devices_cursor(connection: Connection, cursor: str) -> None:
    """Stores how far the registry's feed was read."""
    await connection.execute(
        # The last release reads `enrolled_cursor`.
        "INSERT INTO policy.devices_cursor (cursor, enrolled_cursor, membership_cursor)"
        " VALUES ($1, $1, $1) ON CONFLICT (only_row) DO UPDATE SET cursor = excluded.cursor,"
        " enrolled_cursor = excluded.enrolled_cursor,"
        " membership_cursor = excluded.membership_cursor",
        cursor,
    )


async def write_devices(connection: Connection, devices: Sequence[RegisteredDevice]) -> None:
    """Stores devices as the registry has them now."""
    await connection.execute(
        "INSERT INTO policy.devices (device_id, tenant_id, status, enrolled_at, archived)"
        " SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::timestamptz[],"
        " $5::boolean[])"
        " AS u(device_id, tenant_id, status, enrolled_at, archived) ORDER BY device_id"
        " ON CONFLICT (device_id) DO UPDATE SET tenant_id = excluded.tenant_id,"
        " status = excluded.status, enrolled_at = excluded.enrolled_at,"
        " archived = excluded.archived",
        *columns(
            [(d.device_id, d.tenant_id, d.status, d.enrolled_at, d.archived) for d in devices]
        ),
    )


async def device_tenant(
    connection: Connection, scope: Scope, device_id: UUID
) -> tuple[UUID, str] | None:
    """The org of a device and its status in the registry."""
    row = await connection.fetchrow(
        "SELECT tenant_id, status FROM policy.devices"
        " WHERE device_id = $1 AND ($2::uuid[] IS NULL OR tenant_id = ANY ($2))",
        device_id,
        scope.tenant_ids,
    )
    return None if row is None else (row["tenant_id"], row["status"])
