"""The SQL of restrictions: which devices have the other policy of a gate."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from servicekit.data.postgres import Connection
from services.policy.deleted_devices import DELETED
from services.policy.gate.domain import VERDICTS, Gate, Held, Mode, Restriction, Shortfall
from services.policy.gate.store import GATE, to_gate

_ENFORCED: Final = (
    f"SELECT {GATE}, 0 AS restricted, coalesce(g.alias, '') AS group_alias,"
    " coalesce(g.priority, 0) AS priority FROM policy.gate e"
    " CROSS JOIN LATERAL (SELECT e.tenant_id, e.target_id) AS t"
    " LEFT JOIN policy.attestation_gate a"
    " ON a.tenant_id = e.tenant_id AND e.target_id = e.tenant_id"
    " LEFT JOIN policy.groups g ON g.id = e.target_id AND g.tenant_id = e.tenant_id"
    " WHERE e.tenant_id = $1 AND e.mode = 'ENFORCE'"
    " AND CASE WHEN e.target_id = e.tenant_id THEN a.mode <> 'OFF' ELSE NOT g.deleted END"
)
_SHORT: Final = (
    "SELECT o.device_id, o.gate_id, o.status = 'active' AS is_active FROM"
    # The one gate that counts for a device, as with policies; others ask nothing of it.
    " (SELECT DISTINCT ON (d.device_id) d.device_id, d.tenant_id, d.status, d.enrolled_at,"
    " e.id AS gate_id, e.at_least, e.grace_hours FROM policy.devices d"
    " LEFT JOIN policy.memberships m ON m.device_id = d.device_id AND m.tenant_id = d.tenant_id"
    " JOIN enforced e ON e.group_id IS NULL OR e.group_id = ANY (m.group_ids)"
    # One that is about to enroll anew keeps what it has.
    " WHERE d.tenant_id = $1 AND d.status IN ('active', 'prepared')"
    " ORDER BY d.device_id, e.group_id IS NULL, e.priority DESC, e.id) AS o"
    " LEFT JOIN policy.device_verdict v"
    " ON v.device_id = o.device_id AND v.tenant_id = o.tenant_id"
    " WHERE array_position($2::text[], coalesce(v.verdict, 'NONE'))"
    " < array_position($2::text[], o.at_least)"
    " AND (v.verdict <> 'NONE' OR o.enrolled_at + o.grace_hours * interval '1 hour' <= $3)"
    " AND (v.lowered_at IS NULL OR v.lowered_at + o.grace_hours * interval '1 hour' <= $3)"
)
_GROUP: Final = (
    "(SELECT nullif(g.target_id, g.tenant_id) FROM policy.gate g WHERE g.id = {}.gate_id)"
)
_WITH: Final = f"WITH enforced AS ({_ENFORCED}), short AS MATERIALIZED ({_SHORT})"


@dataclass(frozen=True, slots=True)
class Moved:
    """A device that has another policy from now on."""

    device_id: UUID
    gate_id: UUID
    """Whose other policy it gets, or had."""
    group_id: UUID | None
    """Whose gate that is; `None` for the organisation's."""


async def enforcing(connection: Connection) -> set[UUID]:
    """The organisations with gates that are enforced, or whose devices still have their other
    policy."""
    rows = await connection.fetch(
        "SELECT tenant_id FROM policy.gate WHERE mode = 'ENFORCE' UNION"
        " SELECT tenant_id FROM policy.restricted_device WHERE gate_id IS NOT NULL"
    )
    return {row["tenant_id"] for row in rows}


async def end_those_off(connection: Connection, tenant_id: UUID) -> list[tuple[UUID | None, Held]]:
    """Ends enforced gates that the release before has switched off, or whose groups are gone.

    Answers whose they were, `None` for the organisation's, and why they were held.
    """
    rows = await connection.fetch(
        "UPDATE policy.gate e SET mode = 'OFF', held = '', changed_xid = pg_current_xact_id()"
        " FROM policy.gate b WHERE b.id = e.id"
        " AND e.tenant_id = $1 AND e.mode = 'ENFORCE' AND (EXISTS (SELECT"
        " FROM policy.attestation_gate a WHERE a.tenant_id = e.tenant_id AND a.mode = 'OFF'"
        " AND e.target_id = e.tenant_id) OR EXISTS (SELECT FROM policy.groups g"
        " WHERE g.id = e.target_id AND g.tenant_id = e.tenant_id AND g.deleted))"
        " RETURNING nullif(e.target_id, e.tenant_id) AS group_id, b.held",
        tenant_id,
    )
    return [(row["group_id"], row["held"]) for row in rows]


async def release(
    connection: Connection, tenant_id: UUID, now: datetime, *, is_fresh: bool
) -> list[Moved]:
    """Gives their own policy back to devices whose gate is enforced no more.

    With a fresh view of verdicts also to those that fall short of no gate any more.
    """
    rows = await connection.fetch(
        f"{_WITH} UPDATE policy.restricted_device r SET gate_id = NULL, since = $3,"
        " changed_xid = pg_current_xact_id() FROM policy.restricted_device b"
        " WHERE b.device_id = r.device_id AND r.tenant_id = $1 AND r.gate_id IS NOT NULL"
        " AND (NOT EXISTS (SELECT FROM enforced e WHERE e.id = r.gate_id)"
        " OR $4 AND NOT EXISTS (SELECT FROM short s WHERE s.device_id = r.device_id))"
        f" RETURNING r.device_id, b.gate_id, {_GROUP.format('b')} AS group_id",
        tenant_id,
        list(VERDICTS),
        now,
        is_fresh,
    )
    return [Moved(**row) for row in rows]


async def shortfalls(connection: Connection, tenant_id: UUID, now: datetime) -> list[Shortfall]:
    """How many devices fall short of each enforced gate of an organisation."""
    rows = await connection.fetch(
        f"{_WITH} SELECT e.*, (SELECT count(*) FROM policy.devices d WHERE d.tenant_id = $1"
        " AND d.status = 'active' AND (e.group_id IS NULL OR EXISTS (SELECT"
        " FROM policy.memberships m WHERE m.device_id = d.device_id AND m.tenant_id = $1"
        " AND e.group_id = ANY (m.group_ids)))) AS in_use,"
        " count(s.device_id) AS short,"
        " count(s.device_id) FILTER (WHERE r.gate_id IS DISTINCT FROM s.gate_id) AS new"
        " FROM enforced e LEFT JOIN short s ON s.gate_id = e.id AND s.is_active"
        " LEFT JOIN policy.restricted_device r ON r.device_id = s.device_id"
        " GROUP BY e.id, e.tenant_id, e.group_id, e.mode, e.at_least, e.grace_hours,"
        " e.otherwise_policy_id, e.otherwise_version, e.max_percent, e.held, e.updated_at,"
        " e.restricted, e.group_alias, e.priority ORDER BY e.id",
        tenant_id,
        list(VERDICTS),
        now,
    )
    return [Shortfall(to_gate(row), row["in_use"], row["short"], row["new"]) for row in rows]


async def hold(connection: Connection, gate: Gate) -> None:
    """Lets no more devices have a gate's other policy."""
    await connection.execute(
        "UPDATE policy.gate SET held = 'SHARE_EXCEEDED', changed_xid = pg_current_xact_id()"
        " WHERE id = $1 AND tenant_id = $2",
        gate.id,
        gate.tenant_id,
    )


async def restrict(
    connection: Connection, tenant_id: UUID, gate_ids: Collection[UUID], now: datetime
) -> list[Moved]:
    """Gives devices that fall short of some gates their other policies."""
    await DELETED.keep_out(connection)
    rows = await connection.fetch(
        f"{_WITH} INSERT INTO policy.restricted_device AS r"
        " (device_id, tenant_id, gate_id, since) SELECT s.device_id, $1, s.gate_id, $3"
        " FROM short s WHERE s.gate_id = ANY ($4::uuid[]) AND s.is_active ORDER BY s.device_id"
        " ON CONFLICT (device_id) DO UPDATE SET tenant_id = excluded.tenant_id,"
        " gate_id = excluded.gate_id, since = excluded.since, changed_xid = pg_current_xact_id()"
        " WHERE r.gate_id IS DISTINCT FROM excluded.gate_id"
        f" RETURNING r.device_id, r.gate_id, {_GROUP.format('r')} AS group_id",
        tenant_id,
        list(VERDICTS),
        now,
        list(gate_ids),
    )
    return [Moved(**row) for row in rows]


async def restriction_of(connection: Connection, device_id: UUID) -> Restriction | None:
    """Why a device has the other policy of a gate; `None` where it has its own."""
    row = await connection.fetchrow(
        "SELECT r.gate_id, nullif(e.target_id, e.tenant_id) AS group_id,"
        " coalesce(g.alias, '') AS group_alias,"
        " CASE WHEN e.target_id = e.tenant_id THEN a.at_least ELSE e.at_least END AS at_least,"
        " coalesce(v.verdict, 'NONE') AS verdict, r.since FROM policy.restricted_device r"
        " JOIN policy.gate e ON e.id = r.gate_id AND e.tenant_id = r.tenant_id"
        " LEFT JOIN policy.attestation_gate a ON a.tenant_id = e.tenant_id"
        " LEFT JOIN policy.groups g ON g.id = e.target_id AND g.tenant_id = e.tenant_id"
        " LEFT JOIN policy.device_verdict v"
        " ON v.device_id = r.device_id AND v.tenant_id = r.tenant_id"
        f" WHERE r.device_id = $1 AND e.mode = '{Mode.ENFORCE}'",
        device_id,
    )
    return None if row is None else Restriction(**row)


async def count_restricted(connection: Connection) -> tuple[int, int]:
    """The devices of the installation with the other policy of a gate, and the gates that are
    held."""
    row = await connection.fetchrow(
        "SELECT (SELECT count(*) FROM policy.restricted_device WHERE gate_id IS NOT NULL)"
        " AS devices, (SELECT count(*) FROM policy.gate WHERE mode = 'ENFORCE' AND held <> '')"
        " AS held"
    )
    assert row is not None
    return row["devices"], row["held"]
