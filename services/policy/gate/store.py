"""The SQL of gates, and of the verdicts that attestation tells of."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope, columns
from servicekit.feeds.feed import Cursor, FeedPage, read_page
from servicekit.rpc.pagination import Page
from services.policy.deleted_devices import DELETED
from services.policy.gate.domain import (
    VERDICTS,
    Counts,
    Demand,
    DeviceVerdict,
    Gate,
    GatePosition,
    Mode,
    ShortDevice,
)

CHANGING: Final = "SELECT changed_xid FROM policy.attestation_gate"
"""What the feed of gates tells of (`servicekit.feeds.changes`)."""
_GATE: Final = "tenant_id, mode, at_least, grace_hours, updated_at"
_IN_USE: Final = (
    " FROM policy.devices d LEFT JOIN policy.device_verdict v"
    " ON v.device_id = d.device_id AND v.tenant_id = d.tenant_id"
    " WHERE d.tenant_id = $1 AND d.status = 'active' AND ($5::uuid IS NULL OR EXISTS"
    " (SELECT FROM policy.memberships m WHERE m.device_id = d.device_id"
    " AND m.tenant_id = d.tenant_id AND $5 = ANY (m.group_ids)))"
)
_ITS_OWN: Final = (
    " AND NOT EXISTS (SELECT FROM policy.gate s JOIN policy.groups sg ON sg.id = s.target_id"
    " AND sg.tenant_id = s.tenant_id AND NOT sg.deleted JOIN policy.memberships sm"
    " ON sm.device_id = d.device_id AND sm.tenant_id = d.tenant_id"
    " AND s.target_id = ANY (sm.group_ids) WHERE s.tenant_id = $1 AND s.mode = 'ENFORCE'"
    " AND ($5::uuid IS NULL OR sg.priority > (SELECT og.priority FROM policy.groups og"
    " WHERE og.id = $5 AND og.tenant_id = $1)))"
)
"""No stronger gate is enforced for a device."""
_SHORT: Final = (
    "(coalesce(v.verdict, 'NONE') = ANY ($2::text[])"
    " AND (v.verdict <> 'NONE' OR d.enrolled_at + $3::interval <= $4)"
    f" AND (v.lowered_at IS NULL OR v.lowered_at + $3::interval <= $4){_ITS_OWN})"
)
"""A device whose enrollment is not known here yet does not."""
_WAITS: Final = (
    "(coalesce(v.verdict, 'NONE') = ANY ($2::text[])"
    " AND (coalesce(v.verdict, 'NONE') = 'NONE' AND d.enrolled_at + $3::interval > $4"
    f" OR v.lowered_at + $3::interval > $4){_ITS_OWN})"
)


async def lock_gates(connection: Connection, tenant_id: UUID) -> None:
    """Lets nobody else change the gates of an organisation, nor who has their other policies."""
    # There may be no row to lock.
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtext('policy:attestation-gate'), hashtext($1))",
        str(tenant_id),
    )


async def try_lock_gates(connection: Connection, tenant_id: UUID) -> bool:
    """As `lock_gates`, unless somebody else has them."""
    locked: bool = await connection.fetchval(
        "SELECT pg_try_advisory_xact_lock(hashtext('policy:attestation-gate'), hashtext($1))",
        str(tenant_id),
    )
    return locked


GATE: Final = (
    "e.id, t.tenant_id, nullif(t.target_id, t.tenant_id) AS group_id,"
    " CASE WHEN t.target_id <> t.tenant_id OR a.mode = 'OBSERVE' AND e.mode = 'ENFORCE'"
    " THEN e.mode ELSE a.mode END AS mode,"
    " CASE WHEN t.target_id = t.tenant_id THEN a.at_least ELSE e.at_least END AS at_least,"
    " CASE WHEN t.target_id = t.tenant_id THEN a.grace_hours ELSE e.grace_hours END AS grace_hours,"
    " e.otherwise_policy_id, e.otherwise_version, e.max_percent, coalesce(e.held, '') AS held,"
    " greatest(a.updated_at, e.updated_at) AS updated_at"
)
_GROUP_OF: Final = " LEFT JOIN policy.groups g ON g.tenant_id = t.tenant_id AND g.id = t.target_id"
_RESTRICTED: Final = (
    "coalesce(g.alias, '') AS group_alias, (SELECT count(*) FROM policy.restricted_device r"
    " WHERE r.tenant_id = t.tenant_id AND r.gate_id = e.id) AS restricted"
)
_JOINED: Final = (
    " LEFT JOIN policy.gate e ON e.tenant_id = t.tenant_id AND e.target_id = t.target_id"
    " LEFT JOIN policy.attestation_gate a"
    " ON a.tenant_id = t.tenant_id AND t.target_id = t.tenant_id"
)
"""What is asked of all devices is where the release before looks for it."""


async def find_gate(connection: Connection, tenant_id: UUID, group_id: UUID | None = None) -> Gate:
    """What is asked of an organisation's devices, or of those in a group of it."""
    row = await connection.fetchrow(
        f"SELECT {GATE}, {_RESTRICTED} FROM (SELECT $1::uuid AS tenant_id, $2::uuid AS target_id)"
        f" AS t{_JOINED}{_GROUP_OF}",
        tenant_id,
        group_id or tenant_id,
    )
    return Gate(tenant_id, group_id) if row is None or row["mode"] is None else to_gate(row)


async def list_gates(
    connection: Connection,
    scope: Scope,
    mode: Mode | None,
    after: GatePosition | None,
    limit: int,
    *,
    only_held: bool,
) -> Page[Gate, GatePosition]:
    """The gates of a scope, by organisation; not those of groups that are deleted."""
    rows = await connection.fetch(
        f"SELECT f.* FROM (SELECT {GATE}, {_RESTRICTED}, t.target_id"
        " FROM (SELECT a.tenant_id, a.tenant_id AS target_id FROM policy.attestation_gate a"
        " UNION SELECT e.tenant_id, e.target_id FROM policy.gate e) AS t"
        f"{_JOINED}{_GROUP_OF} WHERE ($1::uuid[] IS NULL OR t.tenant_id = ANY ($1))"
        " AND g.deleted IS NOT TRUE) AS f WHERE f.mode IS NOT NULL"
        " AND ($2::text IS NULL OR f.mode = $2) AND (NOT $3 OR f.held <> '')"
        " AND ($4::uuid IS NULL"
        " OR (f.tenant_id, f.group_id IS NOT NULL, f.target_id) > ($4, $5::boolean, $6::uuid))"
        " ORDER BY f.tenant_id, f.group_id IS NOT NULL, f.target_id LIMIT $7",
        scope.tenant_ids,
        mode,
        only_held,
        *(after or (None, None, None)),
        limit + 1,
    )
    return Page.of([to_gate(row) for row in rows], limit, GatePosition.of)


def to_gate(row: asyncpg.Record) -> Gate:
    """A row of `GATE`."""
    return Gate(
        tenant_id=row["tenant_id"],
        group_id=row["group_id"],
        mode=Mode(row["mode"]),
        demand=Demand(row["at_least"], row["grace_hours"]),
        id=row["id"],
        otherwise_policy_id=row["otherwise_policy_id"],
        otherwise_version=row["otherwise_version"],
        max_percent=row["max_percent"],
        held=row["held"],
        updated_at=row["updated_at"],
        restricted=row["restricted"],
        group_alias=row["group_alias"],
    )


async def write_gate(connection: Connection, gate: Gate) -> None:
    """Stores what is asked; the gates have to be locked."""
    if gate.group_id is None:
        mode = Mode.OBSERVE if gate.mode is Mode.ENFORCE else gate.mode
        await connection.execute(
            f"INSERT INTO policy.attestation_gate ({_GATE}) VALUES ($1, $2, $3, $4, $5)"
            " ON CONFLICT (tenant_id) DO UPDATE SET mode = excluded.mode,"
            " at_least = excluded.at_least, grace_hours = excluded.grace_hours,"
            " updated_at = excluded.updated_at, changed_xid = pg_current_xact_id()",
            gate.tenant_id,
            mode,
            gate.demand.at_least,
            gate.demand.grace_hours,
            gate.updated_at,
        )
    if gate.id is None:
        return
    await connection.execute(
        "INSERT INTO policy.gate (id, tenant_id, target_id, mode, at_least, grace_hours,"
        " otherwise_policy_id, otherwise_version, max_percent, held, updated_at)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
        " ON CONFLICT (tenant_id, target_id) DO UPDATE SET mode = excluded.mode,"
        " at_least = excluded.at_least, grace_hours = excluded.grace_hours,"
        " otherwise_policy_id = excluded.otherwise_policy_id,"
        " otherwise_version = excluded.otherwise_version, max_percent = excluded.max_percent,"
        " held = excluded.held, updated_at = excluded.updated_at,"
        " changed_xid = pg_current_xact_id()",
        gate.id,
        gate.tenant_id,
        gate.target_id,
        gate.mode,
        None if gate.group_id is None else gate.demand.at_least,
        None if gate.group_id is None else gate.demand.grace_hours,
        gate.otherwise_policy_id,
        gate.otherwise_version,
        gate.max_percent,
        gate.held,
        gate.updated_at,
    )


async def count_enforced(connection: Connection, gate: Gate) -> int:
    """How many other gates of the organisation are enforced."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM policy.gate WHERE tenant_id = $1 AND target_id <> $2"
        " AND mode = 'ENFORCE'",
        gate.tenant_id,
        gate.target_id,
    )
    return found


async def in_force(connection: Connection, tenant_id: UUID, policy_id: UUID) -> int | None:
    """The version of a policy of an organisation that is in force for any of its devices, or would
    be for those in a group; the org's counter is locked."""
    version: int | None = await connection.fetchval(
        "SELECT max(f.version) FROM (SELECT a.version FROM policy.assignments a"
        " WHERE a.tenant_id = $1 AND a.policy_id = $2 UNION ALL SELECT b.version"
        " FROM policy.bindings b WHERE b.tenant_id = $1 AND b.policy_id = $2) AS f",
        tenant_id,
        policy_id,
    )
    return version


async def gives_otherwise(connection: Connection, tenant_id: UUID, policy_id: UUID) -> bool:
    """Whether an enforced gate gives a policy to devices that fall short."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM policy.gate WHERE tenant_id = $1 AND otherwise_policy_id = $2"
        " AND mode = 'ENFORCE')",
        tenant_id,
        policy_id,
    )
    return found


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
    return page, [
        Gate(
            tenant_id=row["tenant_id"],
            mode=Mode(row["mode"]),
            demand=Demand(row["at_least"], row["grace_hours"]),
            updated_at=row["updated_at"],
        )
        for row in page.rows
    ]


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


async def write_verdicts(
    connection: Connection, verdicts: Sequence[DeviceVerdict], now: datetime
) -> None:
    """Stores the verdicts over the latest boots of devices, each once."""
    await DELETED.keep_out(connection)
    await connection.execute(
        "INSERT INTO policy.device_verdict AS k (device_id, tenant_id, verdict, attested_at)"
        " SELECT u.* FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::timestamptz[])"
        " AS u (device_id, tenant_id, verdict, attested_at)"
        f" WHERE {DELETED.condition('u.device_id')} ORDER BY u.device_id"
        " ON CONFLICT (device_id) DO UPDATE SET tenant_id = excluded.tenant_id,"
        " verdict = excluded.verdict, attested_at = excluded.attested_at,"
        # Less than before, of the same evidence: somebody freed the device from its TPM.
        " lowered_at = CASE WHEN excluded.attested_at <> k.attested_at THEN NULL"
        " WHEN array_position($5::text[], excluded.verdict) < array_position($5, k.verdict)"
        " THEN $6 ELSE k.lowered_at END",
        *columns([(v.device_id, v.tenant_id, v.verdict, v.attested_at) for v in verdicts]),
        list(VERDICTS),
        now,
    )


async def list_short(
    connection: Connection,
    gate: Gate,
    demand: Demand,
    at: datetime,
    after: UUID | None,
    limit: int,
) -> Page[ShortDevice, UUID]:
    """The devices of a gate that fall short of a demand at a time, by id."""
    rows = await connection.fetch(
        "SELECT d.device_id, d.tenant_id, coalesce(v.verdict, 'NONE') AS verdict, v.attested_at,"
        f" d.enrolled_at{_IN_USE} AND {_SHORT} AND ($6::uuid IS NULL OR d.device_id > $6)"
        " ORDER BY d.device_id LIMIT $7",
        gate.tenant_id,
        demand.below,
        demand.grace,
        at,
        gate.group_id,
        after,
        limit + 1,
    )
    found = [ShortDevice(**row) for row in rows]
    return Page.of(found, limit, lambda device: device.device_id)


async def count(connection: Connection, gate: Gate, demand: Demand, at: datetime) -> Counts:
    """Counts the devices of a gate."""
    row = await connection.fetchrow(
        f"SELECT count(*) AS in_use, count(*) FILTER (WHERE {_SHORT}) AS short,"
        f" count(*) FILTER (WHERE {_WAITS}) AS in_grace{_IN_USE}",
        gate.tenant_id,
        demand.below,
        demand.grace,
        at,
        gate.group_id,
    )
    assert row is not None
    return Counts(**dict(row), restricted=gate.restricted)


async def count_short(connection: Connection, at: datetime) -> dict[Mode, int]:
    """Counts the devices of the installation that fall short, by what becomes of them.

    Demands of groups do not count.
    """
    rows = await connection.fetch(
        "SELECT CASE WHEN e.id IS NULL THEN g.mode ELSE 'ENFORCE' END AS mode, count(*) AS devices"
        " FROM policy.attestation_gate g"
        " JOIN policy.devices d ON d.tenant_id = g.tenant_id AND d.status = 'active'"
        " LEFT JOIN policy.gate e ON e.tenant_id = g.tenant_id AND e.target_id = g.tenant_id"
        " AND e.mode = 'ENFORCE'"
        " LEFT JOIN policy.device_verdict v"
        " ON v.device_id = d.device_id AND v.tenant_id = d.tenant_id"
        " WHERE g.mode <> 'OFF'"
        " AND array_position($1::text[], coalesce(v.verdict, 'NONE'))"
        " < array_position($1::text[], g.at_least)"
        " AND (v.verdict <> 'NONE' OR d.enrolled_at + g.grace_hours * interval '1 hour' <= $2)"
        " AND (v.lowered_at IS NULL OR v.lowered_at + g.grace_hours * interval '1 hour' <= $2)"
        " GROUP BY 1",
        list(VERDICTS),
        at,
    )
    return {Mode(row["mode"]): row["devices"] for row in rows}
