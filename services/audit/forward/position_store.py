"""The SQL of what a forwarder has to send, and up to where it has: its positions in chains.

Only who holds the lease moves a position, and only from where it is known to be: a replay in
between is not undone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from auditlog.entries import Entry
from servicekit.data.postgres import Connection, Scope
from servicekit.rpc.pagination import rows_within
from services.audit.forward.domain import Forwarder, Lag
from services.audit.log.store import ENTRY, entry_of

_PAGE_ROWS: Final = 200
_PAGE_BYTES: Final = 512 << 10
_MOST_BEHIND: Final = 1_000
"""Chains whose oldest waiting entry is looked for."""
_TO_SEND: Final = 64
"""Chains that are answered at once."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A chain with entries that were not sent yet."""

    chain_id: UUID
    sequence: int
    """Up to where the target has all,"""
    sent: int
    """and up to where it was sent."""
    attempts: int


_BEHIND: Final = (
    "SELECT h.tenant_id AS chain_id, h.sequence AS head, coalesce(p.sequence, 0) AS sequence,"
    " coalesce(p.sent, 0) AS sent, coalesce(p.attempts, 0) AS attempts, p.next_attempt_at"
    " FROM audit.chain_head h LEFT JOIN audit.forwarder_position p"
    " ON p.forwarder_id = $1 AND p.chain_id = h.tenant_id"
    " WHERE ($2::uuid[] IS NULL OR h.tenant_id = ANY ($2)) AND h.sequence > coalesce(p.sent, 0)"
)


async def lag(connection: Connection, forwarder_id: UUID, chains: Scope) -> Lag:
    """What waits in the chains of a forwarder."""
    row = await connection.fetchrow(
        f"WITH behind AS ({_BEHIND}), first AS (SELECT chain_id, sent FROM behind LIMIT $3)"
        # What was pruned waits for nobody.
        " SELECT (SELECT coalesce(sum(head - greatest(sent, coalesce(b.sequence, 0))), 0)"
        " FROM behind LEFT JOIN audit.chain_base b USING (chain_id)) AS backlog,"
        " (SELECT min(e.occurred_at) FROM first CROSS JOIN LATERAL (SELECT occurred_at"
        " FROM audit.entry WHERE tenant_id = first.chain_id AND sequence > first.sent"
        " ORDER BY sequence LIMIT 1) AS e) AS oldest,"
        " (SELECT count(*) FROM audit.forwarder_quarantine"
        " WHERE forwarder_id = $1 AND delivered_at IS NULL) AS quarantined",
        forwarder_id,
        chains.tenant_ids,
        _MOST_BEHIND,
    )
    return Lag(int(row["backlog"]), row["oldest"], row["quarantined"])


async def waiting(
    connection: Connection, forwarder_id: UUID, chains: Scope, at: datetime, after: UUID
) -> list[Waiting]:
    """Chains with entries to send now, those behind one first, so that all have their turn."""
    rows = await connection.fetch(
        f"SELECT chain_id, sequence, sent, attempts FROM ({_BEHIND}) AS behind"
        " WHERE next_attempt_at IS NULL OR next_attempt_at <= $3"
        " ORDER BY chain_id <= $5, chain_id LIMIT $4",
        forwarder_id,
        chains.tenant_ids,
        at,
        _TO_SEND,
        after,
    )
    return [
        Waiting(
            chain_id=row["chain_id"],
            sequence=row["sequence"],
            sent=row["sent"],
            attempts=row["attempts"],
        )
        for row in rows
    ]


async def page(connection: Connection, chain_id: UUID, after: int) -> tuple[int, list[Entry]]:
    """The end of a chain, and its next entries behind a position, as many as memory should hold."""
    head: int | None = await connection.fetchval(
        "SELECT sequence FROM audit.chain_head WHERE tenant_id = $1", chain_id
    )
    rows, _ = await rows_within(
        connection,
        f"SELECT {ENTRY} FROM audit.entry WHERE tenant_id = $1 AND sequence > $2"
        f" ORDER BY sequence LIMIT {_PAGE_ROWS}",
        [chain_id, after],
        lambda row: len(row["record"]),
        _PAGE_BYTES,
    )
    return head or 0, [entry_of(row) for row in rows]


async def entry(connection: Connection, chain_id: UUID, sequence: int) -> Entry | None:
    """One entry."""
    row = await connection.fetchrow(
        f"SELECT {ENTRY} FROM audit.entry WHERE tenant_id = $1 AND sequence = $2",
        chain_id,
        sequence,
    )
    return entry_of(row) if row else None


async def advance(
    connection: Connection,
    forwarder: Forwarder,
    lease: UUID,
    chain_id: UUID,
    *,
    known: int,
    sent: int,
    confirmed: int | None = None,
) -> bool:
    """Moves a position on; answers whether it was where it was known to be.

    Args:
        known: up to where it was sent before,
        sent: and is now.
        confirmed: up to where the target has it; all of it when not given.
    """
    done = await connection.execute(
        "INSERT INTO audit.forwarder_position AS p"
        " (forwarder_id, tenant_id, chain_id, sequence, sent)"
        " SELECT $1, $2, $3, coalesce($7::bigint, $6), $6 FROM audit.forwarder_state"
        " WHERE forwarder_id = $1 AND lease = $4 AND ($5::bigint = 0 OR EXISTS (SELECT FROM"
        " audit.forwarder_position WHERE forwarder_id = $1 AND chain_id = $3))"
        " ON CONFLICT (forwarder_id, chain_id) DO UPDATE SET sent = excluded.sent,"
        " sequence = coalesce($7::bigint, excluded.sent), attempts = 0, next_attempt_at = NULL"
        " WHERE p.sent = $5",
        forwarder.id,
        forwarder.tenant_id,
        chain_id,
        lease,
        known,
        sent,
        confirmed,
    )
    return bool(done == "INSERT 0 1")


async def confirm(
    connection: Connection,
    forwarder_id: UUID,
    lease: UUID,
    chain_id: UUID,
    sequence: int,
    sent: int,
) -> bool:
    """Notes up to where a target has what was sent; answers whether that was still so."""
    done = await connection.execute(
        "UPDATE audit.forwarder_position p SET sequence = $4 FROM audit.forwarder_state s"
        " WHERE p.forwarder_id = $1 AND p.chain_id = $2 AND p.sent = $5 AND p.sequence <= $4"
        " AND s.forwarder_id = $1 AND s.lease = $3",
        forwarder_id,
        chain_id,
        lease,
        sequence,
        sent,
    )
    return bool(done == "UPDATE 1")


async def go_back_to_confirmed(connection: Connection, forwarder_id: UUID, lease: UUID) -> None:
    """Has everything sent again that the target may not have."""
    await connection.execute(
        "UPDATE audit.forwarder_position p SET sent = p.sequence FROM audit.forwarder_state s"
        " WHERE p.forwarder_id = $1 AND p.sent > p.sequence AND s.forwarder_id = $1"
        " AND s.lease = $2",
        forwarder_id,
        lease,
    )


async def hold(
    connection: Connection,
    forwarder: Forwarder,
    lease: UUID,
    chain_id: UUID,
    *,
    known: int,
    attempts: int,
    next_attempt_at: datetime,
) -> None:
    """Notes that the message behind a position was refused, and when it is tried again."""
    await connection.execute(
        "INSERT INTO audit.forwarder_position AS p"
        " (forwarder_id, tenant_id, chain_id, sequence, sent, attempts, next_attempt_at)"
        " SELECT $1, $2, $3, 0, 0, $6, $7 FROM audit.forwarder_state"
        " WHERE forwarder_id = $1 AND lease = $4"
        " ON CONFLICT (forwarder_id, chain_id) DO UPDATE SET attempts = $6, next_attempt_at = $7"
        " WHERE p.sent = $5",
        forwarder.id,
        forwarder.tenant_id,
        chain_id,
        lease,
        known,
        attempts,
        next_attempt_at,
    )


async def keep_beginning(connection: Connection, forwarder: Forwarder) -> None:
    """Notes that a forwarder is at the beginning of its tenant's chain, unless it is further."""
    await connection.execute(
        "INSERT INTO audit.forwarder_position (forwarder_id, tenant_id, chain_id, sequence, sent)"
        " VALUES ($1, $2, $2, 0, 0) ON CONFLICT (forwarder_id, chain_id) DO NOTHING",
        forwarder.id,
        forwarder.tenant_id,
    )


async def start_now(connection: Connection, forwarder: Forwarder, chains: Scope) -> None:
    """Lets a forwarder begin behind all that there is, in chains in which it has no position."""
    await connection.execute(
        "INSERT INTO audit.forwarder_position (forwarder_id, tenant_id, chain_id, sequence, sent)"
        " SELECT $1, $2, tenant_id, sequence, sequence FROM audit.chain_head"
        " WHERE ($3::uuid[] IS NULL OR tenant_id = ANY ($3)) AND sequence > 0"
        " ON CONFLICT (forwarder_id, chain_id) DO NOTHING",
        forwarder.id,
        forwarder.tenant_id,
        chains.tenant_ids,
    )


_SINCE: Final = (
    "(SELECT h.tenant_id AS chain_id, coalesce((SELECT min(e.sequence) - 1 FROM audit.entry e"
    " WHERE e.tenant_id = h.tenant_id AND e.occurred_at >= $3), h.sequence) AS first"
    " FROM audit.chain_head h"
    " WHERE ($2::uuid[] IS NULL OR h.tenant_id = ANY ($2)) AND h.sequence > 0)"
)
"""Chains, and the sequence before the first entry that happened since a time."""


async def start_from(
    connection: Connection, forwarder: Forwarder, chains: Scope, at: datetime
) -> None:
    """Lets a forwarder begin with the first entry of each chain that happened since a time, where
    it has not begun yet."""
    await connection.execute(
        "INSERT INTO audit.forwarder_position (forwarder_id, tenant_id, chain_id, sequence, sent)"
        f" SELECT $1, $4, f.chain_id, f.first, f.first FROM {_SINCE} AS f"
        " ON CONFLICT (forwarder_id, chain_id) DO NOTHING",
        forwarder.id,
        chains.tenant_ids,
        at,
        forwarder.tenant_id,
    )


async def go_back(
    connection: Connection, forwarder: Forwarder, chains: Scope, at: datetime
) -> None:
    """Has all sent again that happened since a time.

    Positions that are before it stay, and chains without one: nothing of them was sent yet.
    """
    await connection.execute(
        "UPDATE audit.forwarder_position p SET sequence = least(p.sequence, f.first),"
        " sent = least(p.sent, f.first), attempts = 0, next_attempt_at = NULL"
        f" FROM {_SINCE} AS f"
        " WHERE p.forwarder_id = $1 AND p.chain_id = f.chain_id AND f.first < p.sent",
        forwarder.id,
        chains.tenant_ids,
        at,
    )
