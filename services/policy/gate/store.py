"""The SQL of gates, and of the verdicts that attestation tells of."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, columns
from servicekit.feeds.feed import Cursor, FeedPage, read_page
from servicekit.rpc.pagination import Page
from services.policy.deleted_devices import DELETED
from services.policy.gate.domain import (
    VERDICTS,
    Counts,
    Demand,
    DeviceVerdict,
    Gate,
    Mode,
    ShortDevice,
)

CHANGING: Final = "SELECT changed_xid FROM policy.attestation_gate"
"""What the feed of gates tells of (`servicekit.feeds.changes`)."""
_GATE: Final = "tenant_id, mode, at_least, grace_hours, updated_at"
_IN_USE: Final = (
    " FROM policy.devices d LEFT JOIN policy.device_verdict v"
    " ON v.device_id = d.device_id AND v.tenant_id = d.tenant_id"
    " WHERE d.tenant_id = $1 AND d.status = 'active'"
)
_WAITS: Final = "(coalesce(v.verdict, 'NONE') = 'NONE' AND d.enrolled_at + $3::interval > $4)"
_SHORT: Final = (
    "(coalesce(v.verdict, 'NONE') = ANY ($2::text[])"
    " AND (v.verdict <> 'NONE' OR d.enrolled_at + $3::interval <= $4))"
)
"""A device whose enrollment is not known here yet is neither."""


async def find_gate(connection: Connection, tenant_id: UUID, *, for_update: bool = False) -> Gate:
    """What an organisation asks; with `for_update` until the transaction ends."""
    if for_update:
        # There may be no row to lock.
        await connection.execute(
            "SELECT pg_advisory_xact_lock(hashtext('policy:attestation-gate'), hashtext($1))",
            str(tenant_id),
        )
    row = await connection.fetchrow(
        f"SELECT {_GATE} FROM policy.attestation_gate WHERE tenant_id = $1", tenant_id
    )
    return Gate(tenant_id) if row is None else _gate(row)


async def write_gate(connection: Connection, gate: Gate) -> None:
    """Stores what an organisation asks."""
    await connection.execute(
        f"INSERT INTO policy.attestation_gate ({_GATE}) VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT (tenant_id) DO UPDATE SET mode = excluded.mode,"
        " at_least = excluded.at_least, grace_hours = excluded.grace_hours,"
        " updated_at = excluded.updated_at, changed_xid = pg_current_xact_id()",
        gate.tenant_id,
        gate.mode,
        gate.demand.at_least,
        gate.demand.grace_hours,
        gate.updated_at,
    )


async def gates_since(
    connection: Connection, cursor: Cursor, limit: int
) -> tuple[FeedPage, list[Gate]]:
    """Gates since a cursor."""
    page = await read_page(
        connection,
        f"SELECT changed_xid::text AS changed_xid, tenant_id AS key, {_GATE}"
        " FROM policy.attestation_gate WHERE (changed_xid, tenant_id) > ($1::text::xid8, $2)"
        # By the column: the text of the same name would put 99 behind 100.
        " ORDER BY attestation_gate.changed_xid, tenant_id LIMIT $3",
        cursor,
        limit,
    )
    return page, [_gate(row) for row in page.rows]


async def read_cursor(connection: Connection) -> str:
    """How far the feed of verdicts was read; empty for not at all."""
    cursor: str | None = await connection.fetchval("SELECT cursor FROM policy.verdict_cursor")
    return cursor or ""


async def write_cursor(connection: Connection, cursor: str) -> None:
    """Stores how far the feed of verdicts was read."""
    await connection.execute(
        "INSERT INTO policy.verdict_cursor (cursor) VALUES ($1)"
        " ON CONFLICT (only_row) DO UPDATE SET cursor = excluded.cursor",
        cursor,
    )


async def write_verdicts(connection: Connection, verdicts: Sequence[DeviceVerdict]) -> None:
    """Stores the verdicts over the latest boots of devices, each once."""
    await DELETED.keep_out(connection)
    await connection.execute(
        "INSERT INTO policy.device_verdict (device_id, tenant_id, verdict, attested_at)"
        " SELECT u.* FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::timestamptz[])"
        " AS u (device_id, tenant_id, verdict, attested_at)"
        f" WHERE {DELETED.condition('u.device_id')} ORDER BY u.device_id"
        " ON CONFLICT (device_id) DO UPDATE SET tenant_id = excluded.tenant_id,"
        " verdict = excluded.verdict, attested_at = excluded.attested_at",
        *columns([(v.device_id, v.tenant_id, v.verdict, v.attested_at) for v in verdicts]),
    )


async def list_short(
    connection: Connection,
    tenant_id: UUID,
    demand: Demand,
    at: datetime,
    after: UUID | None,
    limit: int,
) -> Page[ShortDevice, UUID]:
    """The devices of an organisation that fall short at a time, by id."""
    rows = await connection.fetch(
        "SELECT d.device_id, d.tenant_id, coalesce(v.verdict, 'NONE') AS verdict, v.attested_at,"
        f" d.enrolled_at{_IN_USE} AND {_SHORT} AND ($5::uuid IS NULL OR d.device_id > $5)"
        " ORDER BY d.device_id LIMIT $6",
        tenant_id,
        demand.below,
        demand.grace,
        at,
        after,
        limit + 1,
    )
    found = [ShortDevice(**row) for row in rows]
    return Page.of(found, limit, lambda device: device.device_id)


async def count(connection: Connection, tenant_id: UUID, demand: Demand, at: datetime) -> Counts:
    """Counts the devices of an organisation."""
    row = await connection.fetchrow(
        f"SELECT count(*) AS in_use, count(*) FILTER (WHERE {_SHORT}) AS short,"
        f" count(*) FILTER (WHERE {_WAITS}) AS in_grace{_IN_USE}",
        tenant_id,
        demand.below,
        demand.grace,
        at,
    )
    return Counts(**row)


async def count_short(connection: Connection, at: datetime) -> dict[Mode, int]:
    """Counts the devices of the installation that fall short, by what becomes of them."""
    rows = await connection.fetch(
        "SELECT g.mode, count(*) AS devices FROM policy.attestation_gate g"
        " JOIN policy.devices d ON d.tenant_id = g.tenant_id AND d.status = 'active'"
        " LEFT JOIN policy.device_verdict v"
        " ON v.device_id = d.device_id AND v.tenant_id = d.tenant_id"
        " WHERE g.mode <> 'OFF'"
        " AND array_position($1::text[], coalesce(v.verdict, 'NONE'))"
        " < array_position($1::text[], g.at_least)"
        " AND (v.verdict <> 'NONE' OR d.enrolled_at + g.grace_hours * interval '1 hour' <= $2)"
        " GROUP BY g.mode",
        list(VERDICTS),
        at,
    )
    return {Mode(row["mode"]): row["devices"] for row in rows}


def _gate(row: asyncpg.Record) -> Gate:
    return Gate(
        tenant_id=row["tenant_id"],
        mode=Mode(row["mode"]),
        demand=Demand(row["at_least"], row["grace_hours"]),
        updated_at=row["updated_at"],
    )
