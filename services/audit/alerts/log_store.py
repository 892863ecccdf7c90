"""The SQL of what alerts know of the log: entries, and devices that fail their check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from servicekit.data.postgres import Connection, columns
from services.audit.alerts.domain import ATTESTATION_FAILED, MOST_FAILED

_CHAINS: Final = 200
_ENTRIES: Final = 5_000
"""Entries of a chain that are looked through at a time."""
_MOST_TIMES: Final = 50_000
"""Entries that are counted within an hour, the newest."""


@dataclass(frozen=True, slots=True)
class News:
    """Entries of a chain that alerts do not know yet."""

    tenant_id: UUID
    sequence: int
    """Up to which entry they know it,"""
    until: int
    """and to which they do then."""


@dataclass(frozen=True, slots=True)
class Noted:
    """An entry that alerts are made of."""

    sequence: int
    action: str
    resource: str
    occurred_at: datetime
    record: str
    """Empty for one that was redacted, and where it is not asked for."""


async def news(
    connection: Connection, actions: Sequence[str], without: Sequence[UUID]
) -> tuple[list[News], bool]:
    """Chains with entries of some actions that alerts do not know; and whether there may be more.

    Of others they know it afterwards.

    Args:
        connection: of all tenants.
        actions: what alerts are made of.
        without: chains that are left alone.
    """
    rows = await connection.fetch(
        "WITH grown AS (SELECT h.tenant_id, coalesce(c.sequence, 0) AS known,"
        f" least(h.sequence, coalesce(c.sequence, 0) + {_ENTRIES}) AS until"
        " FROM audit.chain_head h LEFT JOIN audit.alert_position c ON c.chain_id = h.tenant_id"
        " WHERE h.sequence > coalesce(c.sequence, 0) AND h.tenant_id <> ALL ($2)"
        f" ORDER BY h.tenant_id LIMIT {_CHAINS})"
        " SELECT tenant_id, known, until, EXISTS (SELECT FROM audit.entry e"
        " WHERE e.tenant_id = g.tenant_id AND e.sequence > g.known AND e.sequence <= g.until"
        " AND e.action = ANY ($1)) AS any FROM grown g",
        list(actions),
        list(without),
    )
    await know(connection, [(row["tenant_id"], row["until"]) for row in rows if not row["any"]])
    found = [News(row["tenant_id"], row["known"], row["until"]) for row in rows if row["any"]]
    return found, bool(rows)


async def known(connection: Connection, chain_id: UUID) -> int:
    """Up to which entry alerts know a chain, held by the transaction."""
    await connection.execute(
        "INSERT INTO audit.alert_position (chain_id, sequence) VALUES ($1, 0)"
        " ON CONFLICT (chain_id) DO NOTHING",
        chain_id,
    )
    found: int = await connection.fetchval(
        "SELECT sequence FROM audit.alert_position WHERE chain_id = $1 FOR UPDATE", chain_id
    )
    return found


async def know(connection: Connection, chains: Sequence[tuple[UUID, int]]) -> None:
    """Notes up to which entries alerts know chains."""
    if chains:
        await connection.execute(
            "INSERT INTO audit.alert_position (chain_id, sequence)"
            " SELECT * FROM unnest($1::uuid[], $2::bigint[])"
            " ON CONFLICT (chain_id) DO UPDATE SET sequence ="
            " greatest(alert_position.sequence, excluded.sequence)",
            *columns(chains),
        )


async def noted(
    connection: Connection, tenant_id: UUID, actions: Sequence[str], first: int, last: int
) -> list[Noted]:
    """The entries of a chain behind one and up to another that have some actions, in order."""
    rows = await connection.fetch(
        "SELECT sequence, action, resource, occurred_at, record FROM audit.entry"
        " WHERE tenant_id = $1 AND sequence > $2 AND sequence <= $3 AND action = ANY ($4)"
        " ORDER BY sequence",
        tenant_id,
        first,
        last,
        list(actions),
    )
    return [Noted(**row) for row in rows]


async def within(
    connection: Connection,
    tenant_id: UUID,
    actions: Sequence[str],
    after: datetime,
    until: datetime,
) -> list[Noted]:
    """What happened in some time, in the order of time; of very many the newest."""
    rows = await connection.fetch(
        "SELECT sequence, action, resource, occurred_at,"
        " CASE WHEN action = 'identity.logins_refused' THEN record ELSE '' END AS record"
        " FROM audit.entry WHERE tenant_id = $1 AND action = ANY ($2) AND occurred_at > $3"
        f" AND occurred_at <= $4 ORDER BY occurred_at DESC, id DESC LIMIT {_MOST_TIMES}",
        tenant_id,
        list(actions),
        after,
        until,
    )
    return [Noted(**row) for row in reversed(rows)]


# Devices that fail their check


async def note_verdicts(
    connection: Connection, tenant_id: UUID, failed: Sequence[str], good: Sequence[str]
) -> None:
    """Notes devices that fail their check since now, and those that do no more."""
    await connection.execute(
        "DELETE FROM audit.alert_failed_device WHERE tenant_id = $1 AND subject = ANY ($2)",
        tenant_id,
        list(good),
    )
    await connection.execute(
        "INSERT INTO audit.alert_failed_device (tenant_id, subject) SELECT $1, one"
        " FROM unnest($2::text[]) AS one LIMIT greatest(0, $3 - (SELECT count(*)"
        " FROM audit.alert_failed_device WHERE tenant_id = $1)) ON CONFLICT DO NOTHING",
        tenant_id,
        list(failed),
        MOST_FAILED,
    )


async def failed_devices(connection: Connection, tenant_id: UUID) -> list[str]:
    """The devices of a tenant that fail their check."""
    rows = await connection.fetch(
        "SELECT subject FROM audit.alert_failed_device WHERE tenant_id = $1 ORDER BY subject",
        tenant_id,
    )
    return [row["subject"] for row in rows]


async def untold_failures(connection: Connection) -> set[UUID]:
    """Tenants with devices that fail their check, and have no open alert."""
    rows = await connection.fetch(
        "SELECT DISTINCT tenant_id FROM audit.alert_failed_device f WHERE NOT EXISTS"
        " (SELECT FROM audit.alert a WHERE a.tenant_id = f.tenant_id AND a.kind = $1"
        " AND a.subject = f.subject AND a.resolved_at IS NULL)",
        ATTESTATION_FAILED,
    )
    return {row["tenant_id"] for row in rows}
