"""The SQL of guesses: counters of failures, and where accounts were logged in from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from servicekit.data.postgres import Connection

DEVICE: Final = "device"
NETWORK: Final = "network"
_MOST_FAMILIAR: Final = 100
"""Devices, and networks, that are remembered of one account."""


@dataclass(frozen=True, slots=True)
class Recognised:
    """What is known of where an attempt comes from."""

    device: bool
    """Whether the account was logged in from this browser lately."""
    network: bool
    """Whether the account was logged in from this network lately."""
    anybody: bool
    """Whether some account was logged in from this network lately."""
    failures: int
    """Failures for the account, from anywhere."""
    crowd: int
    """Failures from the network, for any account."""


@dataclass(frozen=True, slots=True)
class Counter:
    """One counter that an attempt raises."""

    key: bytes
    expires_at: datetime
    sliding: bool
    """Whether each further failure prolongs it."""
    kept: bool = False
    """Whether it stays until it expires, however many counters there are: one of an account that
    is there, and of a place that the account was logged in from. What anybody makes up is not."""


async def recognise(
    connection: Connection,
    account_id: UUID,
    network: bytes,
    device: bytes,
    counter: bytes,
    *,
    since: datetime,
    at: datetime,
) -> Recognised:
    """What is known of an attempt; the same work for an account that does not exist.

    Args:
        counter: the key of the account's failures.
        since: how recent a success has to be.
    """
    row = await connection.fetchrow(
        "SELECT EXISTS (SELECT FROM identity.familiar WHERE account_id = $1 AND kind = 'device'"
        " AND key = $3 AND seen_at > $5) AS device,"
        " EXISTS (SELECT FROM identity.familiar WHERE account_id = $1 AND kind = 'network'"
        " AND key = $2 AND seen_at > $5) AS network,"
        " EXISTS (SELECT FROM identity.familiar WHERE kind = 'network' AND key = $2"
        " AND seen_at > $5) AS anybody,"
        " coalesce((SELECT failures FROM identity.guess WHERE key = $4 AND expires_at > $6), 0)"
        " AS failures,"
        " coalesce((SELECT failures FROM identity.guess WHERE key = $2 AND expires_at > $6), 0)"
        " AS crowd",
        account_id,
        network,
        device,
        counter,
        since,
        at,
    )
    assert row is not None
    return Recognised(**row)


@dataclass(frozen=True, slots=True)
class Familiar:
    """Where an account was logged in from lately."""

    device: bool
    network: bool


async def familiar(
    connection: Connection, account_id: UUID, network: bytes, device: bytes, *, since: datetime
) -> Familiar:
    """Whether an account was logged in from a browser and from a network since a time."""
    row = await connection.fetchrow(
        "SELECT EXISTS (SELECT FROM identity.familiar WHERE account_id = $1 AND kind = 'device'"
        " AND key = $3 AND seen_at > $4) AS device,"
        " EXISTS (SELECT FROM identity.familiar WHERE account_id = $1 AND kind = 'network'"
        " AND key = $2 AND seen_at > $4) AS network",
        account_id,
        network,
        device,
        since,
    )
    assert row is not None
    return Familiar(**row)


async def count(
    connection: Connection, counters: Sequence[Counter], at: datetime
) -> dict[bytes, int]:
    """Raises counters; answers what each was before."""
    rows = await connection.fetch(
        "WITH mine AS (SELECT * FROM"
        " unnest($1::bytea[], $2::timestamptz[], $3::boolean[], $5::boolean[])"
        " AS m (key, expires_at, sliding, kept))"
        " INSERT INTO identity.guess AS g (key, failures, expires_at, kept)"
        # In one order everywhere, networks last, so that no two wait for each other.
        " SELECT key, 1, expires_at, kept FROM mine ORDER BY key"
        " ON CONFLICT (key) DO UPDATE SET kept = g.kept OR excluded.kept,"
        " failures = CASE WHEN g.expires_at <= $4 THEN 1 ELSE g.failures + 1 END,"
        " told = g.told AND g.expires_at > $4,"
        " expires_at = CASE WHEN g.expires_at <= $4"
        " OR (SELECT sliding FROM mine WHERE mine.key = g.key) THEN excluded.expires_at"
        " ELSE g.expires_at END"
        " RETURNING key, failures - 1 AS before",
        [counter.key for counter in counters],
        [counter.expires_at for counter in counters],
        [counter.sliding for counter in counters],
        at,
        [counter.kept for counter in counters],
    )
    return {row["key"]: row["before"] for row in rows}


async def failures(connection: Connection, key: bytes, at: datetime) -> int:
    """What a counter says."""
    found: int | None = await connection.fetchval(
        "SELECT failures FROM identity.guess WHERE key = $1 AND expires_at > $2", key, at
    )
    return found or 0


async def counted_until(connection: Connection, key: bytes) -> datetime | None:
    """Until when a counter counts."""
    found: datetime | None = await connection.fetchval(
        "SELECT expires_at FROM identity.guess WHERE key = $1", key
    )
    return found


async def forgive(connection: Connection, forgiven: bytes, others: Sequence[bytes]) -> None:
    """After a success: sets one counter to nothing, and takes its own attempt off the others.

    Args:
        others: the counters of the account and of the network, in this order.
    """
    await connection.executemany(
        "UPDATE identity.guess SET failures = CASE WHEN key = $2 THEN 0"
        " ELSE greatest(failures - 1, 0) END WHERE key = $1",
        # In the order of `count`, so that no two wait for each other.
        [(key, forgiven) for key in (*sorted({forgiven, *others[:1]}), *others[1:])],
    )


async def tell(connection: Connection, key: bytes, most: int) -> tuple[int, datetime] | None:
    """Marks a counter that has reached `most` as told of; answers what it says, the first time."""
    row = await connection.fetchrow(
        "UPDATE identity.guess SET told = true WHERE key = $1 AND failures >= $2 AND NOT told"
        " RETURNING failures, expires_at",
        key,
        most,
    )
    return (row["failures"], row["expires_at"]) if row else None


async def known_device(connection: Connection, device: bytes, since: datetime) -> bool:
    """Whether any account was logged in from a browser."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM identity.familiar"
        " WHERE kind = 'device' AND key = $1 AND seen_at > $2)",
        device,
        since,
    )
    return found


async def remember(
    connection: Connection,
    account_id: UUID,
    kind: str,
    key: bytes,
    at: datetime,
    *,
    unless_since: datetime,
) -> None:
    """Remembers where an account was logged in from; nothing is written when that is fresh."""
    done: str = await connection.execute(
        "INSERT INTO identity.familiar AS f (account_id, kind, key, seen_at)"
        " VALUES ($1, $2, $3, $4) ON CONFLICT (account_id, kind, key)"
        " DO UPDATE SET seen_at = excluded.seen_at WHERE f.seen_at < $5",
        account_id,
        kind,
        key,
        at,
        unless_since,
    )
    if done == "INSERT 0 1":
        await connection.execute(
            "DELETE FROM identity.familiar WHERE account_id = $1 AND kind = $2 AND key IN"
            " (SELECT key FROM identity.familiar WHERE account_id = $1 AND kind = $2"
            " ORDER BY seen_at DESC, key OFFSET $3)",
            account_id,
            kind,
            _MOST_FAMILIAR,
        )


async def forget_account(connection: Connection, account_id: UUID) -> None:
    """Forgets where an account was logged in from."""
    await connection.execute("DELETE FROM identity.familiar WHERE account_id = $1", account_id)


async def forget_old(
    connection: Connection, at: datetime, since: datetime, most_counters: int
) -> None:
    """Deletes what is too old, and above a number the smallest counters that are not kept."""
    # What somebody counts at this moment is left: nobody waits for this, nor this for anybody.
    await connection.execute(
        "DELETE FROM identity.guess WHERE key IN (SELECT key FROM identity.guess"
        " WHERE expires_at <= $1 FOR UPDATE SKIP LOCKED)",
        at,
    )
    await connection.execute("DELETE FROM identity.familiar WHERE seen_at <= $1", since)
    others = await connection.fetchval("SELECT count(*) FROM identity.guess WHERE NOT kept")
    if others > most_counters:
        await connection.execute(
            "DELETE FROM identity.guess WHERE key IN (SELECT key FROM identity.guess WHERE NOT kept"
            " ORDER BY failures, expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)",
            others - most_counters,
        )
