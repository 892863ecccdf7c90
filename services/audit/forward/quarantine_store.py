"""The SQL of quarantined messages of forwarders."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection
from servicekit.rpc.pagination import Page
from services.audit.forward.domain import Forwarder, Quarantined

_DELIVERED_KEPT: Final = 1_000
"""Of a forwarder, the newest."""
_QUARANTINED: Final = (
    "id, entry_id, chain_id, sequence, reason, attempts, quarantined_at, delivered_at"
)


def _quarantined(row: asyncpg.Record) -> Quarantined:
    return Quarantined(
        id=row["id"],
        entry_id=row["entry_id"],
        chain_id=row["chain_id"],
        sequence=row["sequence"],
        reason=row["reason"],
        attempts=row["attempts"],
        quarantined_at=row["quarantined_at"],
        delivered_at=row["delivered_at"],
    )


async def undelivered(connection: Connection, forwarder_id: UUID) -> int:
    """How many messages are quarantined."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM audit.forwarder_quarantine"
        " WHERE forwarder_id = $1 AND delivered_at IS NULL",
        forwarder_id,
    )
    return found


async def quarantine(connection: Connection, forwarder: Forwarder, message: Quarantined) -> None:
    """Quarantines a message, and forgets the oldest that were delivered after all."""
    await connection.execute(
        "INSERT INTO audit.forwarder_quarantine (id, forwarder_id, tenant_id, chain_id, sequence,"
        " entry_id, reason, attempts, quarantined_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        message.id,
        forwarder.id,
        forwarder.tenant_id,
        message.chain_id,
        message.sequence,
        message.entry_id,
        message.reason,
        message.attempts,
        message.quarantined_at,
    )
    await connection.execute(
        "DELETE FROM audit.forwarder_quarantine WHERE id IN (SELECT id"
        " FROM audit.forwarder_quarantine WHERE forwarder_id = $1 AND delivered_at IS NOT NULL"
        " ORDER BY id DESC OFFSET $2)",
        forwarder.id,
        _DELIVERED_KEPT,
    )


async def list_quarantined(
    connection: Connection, forwarder_id: UUID, after: UUID | None, limit: int
) -> Page[Quarantined, UUID]:
    """The quarantined messages of a forwarder, the newest first."""
    rows = await connection.fetch(
        f"SELECT {_QUARANTINED} FROM audit.forwarder_quarantine WHERE forwarder_id = $1"
        " AND ($2::uuid IS NULL OR id < $2) ORDER BY id DESC LIMIT $3",
        forwarder_id,
        after,
        limit + 1,
    )
    return Page.of([_quarantined(row) for row in rows], limit, lambda found: found.id)


async def ask_again(connection: Connection, forwarder_id: UUID, ids: Sequence[UUID] | None) -> int:
    """Marks messages to be sent once more; answers how many."""
    done: str = await connection.execute(
        "UPDATE audit.forwarder_quarantine SET retry = true WHERE forwarder_id = $1"
        " AND delivered_at IS NULL AND ($2::uuid[] IS NULL OR id = ANY ($2))",
        forwarder_id,
        ids,
    )
    return int(done.rsplit(" ", 1)[1])


async def asked_again(connection: Connection, forwarder_id: UUID) -> Quarantined | None:
    """The oldest message that is to be sent once more."""
    row = await connection.fetchrow(
        f"SELECT {_QUARANTINED} FROM audit.forwarder_quarantine"
        " WHERE forwarder_id = $1 AND retry ORDER BY id LIMIT 1",
        forwarder_id,
    )
    return _quarantined(row) if row else None


async def note_again(
    connection: Connection, message_id: UUID, reason: str, delivered_at: datetime | None
) -> None:
    """Notes what came of a message that was sent once more."""
    await connection.execute(
        "UPDATE audit.forwarder_quarantine SET retry = false, attempts = attempts + 1,"
        " reason = CASE WHEN $2 = '' THEN reason ELSE $2 END, delivered_at = $3 WHERE id = $1",
        message_id,
        reason,
        delivered_at,
    )
