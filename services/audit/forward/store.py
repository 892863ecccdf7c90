"""All the SQL of forwarders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from auditlog.verify import Entry
from servicekit.data.postgres import Connection, Scope
from servicekit.rpc.pagination import Page, rows_within
from services.audit.forward.domain import (
    Config,
    Disabled,
    Filter,
    Format,
    Forwarder,
    Kind,
    Lag,
    Quarantined,
    State,
    Syslog,
    Transport,
    Webhook,
)
from services.audit.log.store import ENTRY, entry_of

_COLUMNS: Final = (
    "id, tenant_id, name, kind, enabled, disabled_reason, below_too, filter, config,"
    " sealed_secrets, second_secret_until, start_at, revision, created_at, created_by, updated_at"
)
_QUALIFIED: Final = ", ".join(f"f.{column}" for column in _COLUMNS.split(", "))
_STATE: Final = (
    "s.failing_since, s.told, s.attempts, s.next_attempt_at, s.last_error, s.last_success_at"
)
_IN_SCOPE: Final = "($1::uuid[] IS NULL OR f.tenant_id = ANY ($1))"
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


@dataclass(frozen=True, slots=True)
class Due:
    """What a worker has to know of a forwarder."""

    forwarder: Forwarder
    is_mine: bool
    is_free: bool
    """Whether no living process sends for it."""
    held_until: datetime | None
    """When the first message that was refused is tried again."""


def _config(kind: Kind, text: str) -> Config:
    read = json.loads(text)
    if kind is Kind.WEBHOOK:
        return Webhook(
            **{**read, "format": Format(read["format"]), "headers": tuple(read["headers"])}
        )
    return Syslog(
        **{
            **read,
            "format": Format(read["format"]),
            "transport": Transport(read["transport"]),
        }
    )


def _forwarder(row: asyncpg.Record) -> Forwarder:
    kind = Kind(row["kind"])
    stored = json.loads(row["filter"])
    return Forwarder(
        id=row["id"],
        tenant_id=row["tenant_id"],
        name=row["name"],
        kind=kind,
        enabled=row["enabled"],
        disabled_reason=Disabled(row["disabled_reason"]),
        below_too=row["below_too"],
        filter=Filter(**{name: tuple(values) for name, values in stored.items()}),
        config=_config(kind, row["config"]),
        sealed_secrets=row["sealed_secrets"],
        second_secret_until=row["second_secret_until"],
        start_at=row["start_at"],
        revision=row["revision"],
        created_at=row["created_at"],
        created_by=row["created_by"],
        updated_at=row["updated_at"],
        state=_state(row),
    )


def _state(row: asyncpg.Record) -> State:
    return State(
        failing_since=row["failing_since"],
        told=row["told"],
        attempts=row["attempts"],
        next_attempt_at=row["next_attempt_at"],
        last_error=row["last_error"],
        last_success_at=row["last_success_at"],
    )


async def lock_all(connection: Connection) -> None:
    """Lets one call at a time make a forwarder, so that the bounds hold."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('audit.forwarder'))")


async def count(connection: Connection, tenant_id: UUID) -> tuple[int, int]:
    """How many forwarders a tenant has, and how many there are in all."""
    row = await connection.fetchrow(
        "SELECT count(*) FILTER (WHERE tenant_id = $1) AS own, count(*) AS found"
        " FROM audit.forwarder",
        tenant_id,
    )
    return row["own"], row["found"]


async def insert(connection: Connection, forwarder: Forwarder) -> None:
    """Adds a forwarder."""
    await connection.execute(
        f"INSERT INTO audit.forwarder ({_COLUMNS}) VALUES"
        " ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
        forwarder.id,
        forwarder.tenant_id,
        forwarder.name,
        forwarder.kind,
        forwarder.enabled,
        forwarder.disabled_reason,
        forwarder.below_too,
        json.dumps(asdict(forwarder.filter)),
        json.dumps(asdict(forwarder.config)),
        forwarder.sealed_secrets,
        forwarder.second_secret_until,
        forwarder.start_at,
        forwarder.revision,
        forwarder.created_at,
        forwarder.created_by,
        forwarder.updated_at,
    )
    await connection.execute(
        "INSERT INTO audit.forwarder_state (forwarder_id, tenant_id) VALUES ($1, $2)",
        forwarder.id,
        forwarder.tenant_id,
    )


async def update(connection: Connection, forwarder: Forwarder) -> None:
    """Stores what can be changed of a forwarder."""
    await connection.execute(
        "UPDATE audit.forwarder SET name = $3, enabled = $4, disabled_reason = $5, below_too = $6,"
        " filter = $7, config = $8, sealed_secrets = $9, second_secret_until = $10, revision = $11,"
        " updated_at = $12 WHERE id = $1 AND tenant_id = $2",
        forwarder.id,
        forwarder.tenant_id,
        forwarder.name,
        forwarder.enabled,
        forwarder.disabled_reason,
        forwarder.below_too,
        json.dumps(asdict(forwarder.filter)),
        json.dumps(asdict(forwarder.config)),
        forwarder.sealed_secrets,
        forwarder.second_secret_until,
        forwarder.revision,
        forwarder.updated_at,
    )


async def delete(connection: Connection, forwarder: Forwarder) -> None:
    """Removes a forwarder and all that is known of it."""
    await connection.execute(
        "DELETE FROM audit.forwarder WHERE id = $1 AND tenant_id = $2",
        forwarder.id,
        forwarder.tenant_id,
    )


async def find(
    connection: Connection, scope: Scope, forwarder_id: UUID, *, for_update: bool = False
) -> Forwarder | None:
    """A forwarder of a scope."""
    row = await connection.fetchrow(
        f"SELECT {_QUALIFIED}, {_STATE} FROM audit.forwarder f"
        " JOIN audit.forwarder_state s ON s.forwarder_id = f.id"
        f" WHERE {_IN_SCOPE} AND f.id = $2{' FOR UPDATE OF f' if for_update else ''}",
        scope.tenant_ids,
        forwarder_id,
    )
    return None if row is None else _forwarder(row)


async def list_forwarders(
    connection: Connection, scope: Scope, after: UUID | None, limit: int
) -> Page[Forwarder, UUID]:
    """The forwarders of a scope, the oldest first."""
    rows = await connection.fetch(
        f"SELECT {_QUALIFIED}, {_STATE} FROM audit.forwarder f"
        " JOIN audit.forwarder_state s ON s.forwarder_id = f.id"
        f" WHERE {_IN_SCOPE} AND ($2::uuid IS NULL OR f.id > $2) ORDER BY f.id LIMIT $3",
        scope.tenant_ids,
        after,
        limit + 1,
    )
    return Page.of([_forwarder(row) for row in rows], limit, lambda found: found.id)


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
        " SELECT (SELECT coalesce(sum(head - sent), 0) FROM behind) AS backlog,"
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


# How far it is. Only who holds the lease moves a position, and only from where he knows it to be:
# a replay in between is not undone.


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


# How it does.


async def delivered(
    connection: Connection, forwarder_id: UUID, count: int, at: datetime
) -> tuple[bool, str]:
    """Notes a success; answers whether the log says that the forwarder fails, and since when."""
    row = await connection.fetchrow(
        "WITH before AS (SELECT told, last_error FROM audit.forwarder_state"
        " WHERE forwarder_id = $1)"
        " UPDATE audit.forwarder_state s SET failing_since = NULL, told = false, attempts = 0,"
        " next_attempt_at = NULL, last_error = '', last_success_at = $3, delivered = delivered + $2"
        " FROM before WHERE forwarder_id = $1 RETURNING before.told, before.last_error",
        forwarder_id,
        count,
        at,
    )
    return (row["told"], row["last_error"]) if row else (False, "")


async def checkpoint_at(connection: Connection, forwarder_id: UUID) -> datetime | None:
    """When a forwarder was sent a checkpoint; `None` for never."""
    found: datetime | None = await connection.fetchval(
        "SELECT checkpoint_at FROM audit.forwarder_state WHERE forwarder_id = $1", forwarder_id
    )
    return found


async def note_checkpoint(connection: Connection, forwarder_id: UUID, at: datetime) -> None:
    """Notes that a forwarder was sent a checkpoint."""
    await connection.execute(
        "UPDATE audit.forwarder_state SET checkpoint_at = $2 WHERE forwarder_id = $1",
        forwarder_id,
        at,
    )


async def attempts(connection: Connection, forwarder_id: UUID) -> int:
    """How often a forwarder has tried since it fails."""
    found: int | None = await connection.fetchval(
        "SELECT attempts FROM audit.forwarder_state WHERE forwarder_id = $1 FOR UPDATE",
        forwarder_id,
    )
    return found or 0


async def failed(
    connection: Connection,
    forwarder_id: UUID,
    reason: str,
    at: datetime,
    attempts: int,
    next_attempt_at: datetime,
) -> None:
    """Notes a failure, and when it is tried again."""
    await connection.execute(
        "UPDATE audit.forwarder_state SET failing_since = coalesce(failing_since, $3),"
        " attempts = $4, next_attempt_at = $5, last_error = $2, last_error_at = $3"
        " WHERE forwarder_id = $1",
        forwarder_id,
        reason,
        at,
        attempts,
        next_attempt_at,
    )


async def note_error(connection: Connection, forwarder_id: UUID, reason: str, at: datetime) -> None:
    """Notes what went wrong with one message."""
    await connection.execute(
        "UPDATE audit.forwarder_state SET last_error = $2, last_error_at = $3"
        " WHERE forwarder_id = $1",
        forwarder_id,
        reason,
        at,
    )


async def try_now(connection: Connection, forwarder_id: UUID) -> None:
    """Has a forwarder try at once, whatever failed before."""
    await connection.execute(
        "UPDATE audit.forwarder_state SET attempts = 0, next_attempt_at = NULL"
        " WHERE forwarder_id = $1",
        forwarder_id,
    )
    await connection.execute(
        "UPDATE audit.forwarder_position SET attempts = 0, next_attempt_at = NULL"
        " WHERE forwarder_id = $1 AND (attempts > 0 OR next_attempt_at IS NOT NULL)",
        forwarder_id,
    )


async def begin_anew(connection: Connection, forwarder_id: UUID) -> None:
    """Forgets since when a forwarder fails, which was disabled since."""
    await connection.execute(
        "UPDATE audit.forwarder_state SET failing_since = NULL WHERE forwarder_id = $1",
        forwarder_id,
    )


async def failing_untold(connection: Connection, before: datetime) -> list[Forwarder]:
    """Marks forwarders that have failed since before a time as told, and answers them."""
    rows = await connection.fetch(
        "UPDATE audit.forwarder_state s SET told = true FROM audit.forwarder f"
        " WHERE f.id = s.forwarder_id AND f.enabled AND NOT s.told AND s.failing_since <= $1"
        f" RETURNING {_QUALIFIED}, {_STATE}",
        before,
    )
    return [_forwarder(row) for row in rows]


async def disable(
    connection: Connection, forwarder: Forwarder, reason: Disabled, at: datetime
) -> bool:
    """Disables a forwarder by the system; answers whether it was enabled, and unchanged."""
    done = await connection.execute(
        "UPDATE audit.forwarder SET enabled = false, disabled_reason = $3, revision = revision + 1,"
        " updated_at = $4 WHERE id = $1 AND enabled AND revision = $2",
        forwarder.id,
        forwarder.revision,
        reason,
        at,
    )
    if done != "UPDATE 1":
        return False
    await connection.execute(
        "UPDATE audit.forwarder_state SET failing_since = coalesce(failing_since, $2)"
        " WHERE forwarder_id = $1",
        forwarder.id,
        at,
    )
    return True


# Who sends for it.


async def recorded(connection: Connection) -> tuple[str, int]:
    """Changes with everything that the log takes in."""
    row = await connection.fetchrow("SELECT incarnation, sequence FROM audit.stream_position")
    return (row["incarnation"], row["sequence"]) if row else ("", 0)


async def enabled(
    connection: Connection, lease: UUID, known: Mapping[UUID, Forwarder]
) -> tuple[list[Due], bool]:
    """The enabled forwarders that no other process sends for, and whether there are any at all.

    Args:
        known: by id; of these only the state is read, unless they were changed.
    """
    rows = await connection.fetch(
        f"SELECT f.id, f.revision, {_STATE}, s.lease = $1 AS is_mine,"
        " s.lease IS NULL OR s.lease_until < now() AS is_free,"
        " (SELECT min(next_attempt_at) FROM audit.forwarder_position p"
        " WHERE p.forwarder_id = f.id AND next_attempt_at IS NOT NULL) AS held_until"
        " FROM audit.forwarder f"
        " JOIN audit.forwarder_state s ON s.forwarder_id = f.id WHERE f.enabled ORDER BY f.id",
        lease,
    )
    kept = {
        row["id"]: replace(known[row["id"]], state=_state(row))
        for row in rows
        if row["id"] in known and known[row["id"]].revision == row["revision"]
    }
    wanted = [
        row["id"] for row in rows if row["id"] not in kept and (row["is_mine"] or row["is_free"])
    ]
    if wanted:
        read = await connection.fetch(
            f"SELECT {_QUALIFIED}, {_STATE} FROM audit.forwarder f"
            " JOIN audit.forwarder_state s ON s.forwarder_id = f.id WHERE f.id = ANY ($1)",
            wanted,
        )
        kept |= {row["id"]: _forwarder(row) for row in read}
    due = [
        Due(
            forwarder=kept[row["id"]],
            is_mine=bool(row["is_mine"]),
            is_free=bool(row["is_free"]),
            held_until=row["held_until"],
        )
        for row in rows
        if row["id"] in kept
    ]
    return due, bool(rows)


async def take(connection: Connection, forwarder_id: UUID, lease: UUID, seconds: float) -> bool:
    """Takes the lease of a forwarder, if nobody else has it."""
    done = await connection.execute(
        "UPDATE audit.forwarder_state SET lease = $2,"
        " lease_until = now() + make_interval(secs => $3) WHERE forwarder_id = $1"
        " AND (lease IS NULL OR lease = $2 OR lease_until < now())",
        forwarder_id,
        lease,
        seconds,
    )
    return bool(done == "UPDATE 1")


async def renew(connection: Connection, lease: UUID, seconds: float) -> set[UUID]:
    """Holds the leases for some time more; answers for which forwarders."""
    rows = await connection.fetch(
        "UPDATE audit.forwarder_state SET lease_until = now() + make_interval(secs => $2)"
        " WHERE lease = $1 RETURNING forwarder_id",
        lease,
        seconds,
    )
    return {row["forwarder_id"] for row in rows}


async def release(connection: Connection, forwarder_id: UUID, lease: UUID) -> None:
    """Gives a lease back."""
    await connection.execute(
        "UPDATE audit.forwarder_state SET lease = NULL, lease_until = NULL"
        " WHERE forwarder_id = $1 AND lease = $2",
        forwarder_id,
        lease,
    )


# Quarantine.

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
        _MOST_BEHIND,
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
