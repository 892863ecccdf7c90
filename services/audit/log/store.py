"""All the SQL of the audit log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg

from auditlog.chain import NO_HASH, Columns, Head
from auditlog.entries import Entry
from contract.subjects import SUBJECT_ROOT
from servicekit.data.postgres import Connection, Scope, columns
from servicekit.rpc.pagination import Page, TimePosition, rows_within
from servicekit.security.digests import sha256
from services.audit.log.domain import MOST_BASES, Arrival, Base, Bases, Filters

ENTRY: Final = (
    "tenant_id, sequence, id, occurred_at, actor, actor_id, action, resource, record,"
    " previous_hash, hash, salt, redacted, record_digest"
)
"""The columns of an entry."""
_LAST_CHARACTER: Final = "\U0010ffff"
_WRITTEN: Final = ENTRY.removesuffix(", redacted, record_digest")
_BASE: Final = (
    "chain_id AS tenant_id, sequence, hash, until_sequence, until_hash, archive_sha256, pruned_at,"
    " last_occurred_at"
)
_IN_SCOPE: Final = "($1::uuid[] IS NULL OR tenant_id = ANY ($1))"


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of a batch."""

    recorded: Sequence[Entry]
    contradicting: Sequence[Arrival]
    """Events whose id another event has in the log."""
    damaged: Sequence[UUID]
    """Tenants whose chain does not end where its head says."""
    redacted: Sequence[Arrival]
    """Events that came again, and whose entry was redacted: nothing keeps them."""


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """Up to where the stream is in the log."""

    incarnation: str
    sequence: int


@dataclass(slots=True)
class _Tail:
    sequence: int
    hash: str
    written: int = 0


def entry_of(row: asyncpg.Record) -> Entry:
    """The entry of a row with the columns `ENTRY`."""
    tenant_id = str(row["tenant_id"])
    return Entry(
        tenant_id=tenant_id,
        sequence=row["sequence"],
        previous_hash=row["previous_hash"].hex(),
        hash=row["hash"].hex(),
        record=row["record"],
        columns=Columns(
            id=str(row["id"]),
            tenant_id=tenant_id,
            occurred_at=row["occurred_at"],
            actor=row["actor"],
            actor_id=row["actor_id"],
            action=row["action"],
            resource=row["resource"],
        ),
        salt=row["salt"].hex() if row["salt"] is not None else "",
        redacted=row["redacted"],
        digest=row["record_digest"].hex() if row["record_digest"] is not None else "",
    )


def _size(row: asyncpg.Record) -> int:
    return len(row["record"]) + len(row["resource"])


async def append(
    connection: Connection, arrivals: Sequence[Arrival], salt: Callable[[], str] = str
) -> Appended:
    """Records the events that the log does not have yet, each at the end of its tenant's chain.

    Args:
        arrivals: the events.
        salt: makes the salt of an entry, in hexadecimal; empty for entries without one.
    """
    new: dict[UUID, Arrival] = {}
    contradicting = [a for a in arrivals if new.setdefault(a.id, a).record != a.record]
    tails, damaged = await _locked_tails(connection, sorted({a.tenant_id for a in arrivals}))
    known = await connection.fetch(
        "SELECT id, record, redacted FROM audit.entry WHERE id = ANY ($1)", list(new)
    )
    redacted = []
    for row in known:
        arrival = new.pop(row["id"])
        if row["redacted"]:
            redacted.append(arrival)
        elif row["record"] != arrival.record:
            contradicting.append(arrival)
    rows, recorded = [], []
    for arrival in new.values():
        tail = tails[arrival.tenant_id]
        previous, tail.sequence = tail.hash, tail.sequence + 1
        made = Entry(
            tenant_id=str(arrival.tenant_id),
            sequence=tail.sequence,
            previous_hash=previous,
            hash="",
            record=arrival.record,
            columns=arrival.columns,
            salt=salt(),
        )
        tail.hash = made.true_hash
        tail.written += 1
        rows.append(_row(arrival, tail, previous, made.salt))
        recorded.append(replace(made, hash=tail.hash))
    if rows:
        await _insert(connection, rows, tails)
    return Appended(recorded, contradicting, damaged, redacted)


async def _locked_tails(
    connection: Connection, tenant_ids: Sequence[UUID]
) -> tuple[dict[UUID, _Tail], list[UUID]]:
    """The ends of chains, held until the transaction ends; always locked in the same order."""
    heads = await _locked_heads(connection, tenant_ids)
    if len(heads) < len(tenant_ids):
        await connection.execute(
            "INSERT INTO audit.chain_head (tenant_id, sequence, hash)"
            " SELECT tenant_id, 0, $2 FROM unnest($1::uuid[]) AS tenant_id ORDER BY tenant_id"
            " ON CONFLICT (tenant_id) DO NOTHING",
            tenant_ids,
            bytes.fromhex(NO_HASH),
        )
        heads = await _locked_heads(connection, tenant_ids)
    # Read behind the lock, so that it is what the holder before committed.
    last = await connection.fetch(
        "SELECT tenant_id, coalesce((SELECT max(sequence) FROM audit.entry e"
        " WHERE e.tenant_id = t.tenant_id), 0) AS sequence"
        " FROM unnest($1::uuid[]) AS t (tenant_id)",
        tenant_ids,
    )
    tails, damaged = {}, []
    for row in last:
        head = heads[row["tenant_id"]]
        if row["sequence"] != head["sequence"]:
            damaged.append(row["tenant_id"])
        # In a damaged chain the number must be free and the link stays the one that was true.
        tails[row["tenant_id"]] = _Tail(max(row["sequence"], head["sequence"]), head["hash"].hex())
    return tails, damaged


async def _locked_heads(
    connection: Connection, tenant_ids: Sequence[UUID]
) -> dict[UUID, asyncpg.Record]:
    rows = await connection.fetch(
        "SELECT tenant_id, sequence, hash FROM audit.chain_head WHERE tenant_id = ANY ($1)"
        " ORDER BY tenant_id FOR UPDATE",
        tenant_ids,
    )
    return {row["tenant_id"]: row for row in rows}


def _row(arrival: Arrival, tail: _Tail, previous: str, salt: str) -> tuple[Any, ...]:
    shown = arrival.columns
    return (
        arrival.tenant_id,
        tail.sequence,
        arrival.id,
        shown.occurred_at,
        shown.actor,
        shown.actor_id,
        shown.action,
        shown.resource,
        arrival.record,
        bytes.fromhex(previous),
        bytes.fromhex(tail.hash),
        bytes.fromhex(salt) if salt else None,
    )


async def _insert(
    connection: Connection, rows: Sequence[tuple[Any, ...]], tails: dict[UUID, _Tail]
) -> None:
    await connection.execute(
        f"INSERT INTO audit.entry ({_WRITTEN}) SELECT * FROM unnest($1::uuid[], $2::bigint[],"
        " $3::uuid[], $4::timestamptz[], $5::text[], $6::text[], $7::text[], $8::text[],"
        " $9::text[], $10::bytea[], $11::bytea[], $12::bytea[])",
        *columns(rows),
    )
    moved = [
        (t, tail.sequence, bytes.fromhex(tail.hash)) for t, tail in tails.items() if tail.written
    ]
    await connection.execute(
        "UPDATE audit.chain_head h SET sequence = n.sequence, hash = n.hash"
        " FROM unnest($1::uuid[], $2::bigint[], $3::bytea[]) AS n (tenant_id, sequence, hash)"
        " WHERE h.tenant_id = n.tenant_id",
        *columns(moved),
    )


async def quarantine(
    connection: Connection, subject: str, payload: bytes, reason: str, at: datetime
) -> bool:
    """Keeps a message that is no event; answers whether it was not there yet."""
    digest = sha256(subject.encode() + b"\n" + payload)
    done = await connection.execute(
        "INSERT INTO audit.dead_letter (digest, subject, payload, reason, received_at)"
        " VALUES ($1, $2, $3, $4, $5) ON CONFLICT (digest) DO NOTHING",
        digest,
        subject,
        payload,
        reason,
        at,
    )
    return bool(done == "INSERT 0 1")


async def stream_position(connection: Connection) -> StreamPosition | None:
    """Up to where the stream is in the log; `None` before anything was read."""
    row = await connection.fetchrow("SELECT incarnation, sequence FROM audit.stream_position")
    if row is None:
        return None
    return StreamPosition(incarnation=row["incarnation"], sequence=row["sequence"])


async def advance(connection: Connection, sequence: int) -> None:
    """Notes that the stream is in the log up to a message, in the transaction that recorded it."""
    await connection.execute(
        "UPDATE audit.stream_position SET sequence = $1 WHERE sequence < $1", sequence
    )


async def start_position(connection: Connection, position: StreamPosition) -> None:
    """Notes from where on the stream is read (again)."""
    await connection.execute(
        "INSERT INTO audit.stream_position (incarnation, sequence) VALUES ($1, $2)"
        " ON CONFLICT (only_row) DO UPDATE SET incarnation = excluded.incarnation,"
        " sequence = excluded.sequence",
        position.incarnation,
        position.sequence,
    )


async def list_entries(
    connection: Connection, scope: Scope, filters: Filters, after: TimePosition | None, limit: int
) -> Page[Entry, TimePosition]:
    """Entries of a scope, newest first, behind a position."""
    arguments: list[Any] = [scope.tenant_ids]
    where = [_IN_SCOPE]

    def add(condition: str, *values: Any) -> None:
        # Only what is asked for stands in the statement, so that its plan can use an index.
        numbers = range(len(arguments) + 1, len(arguments) + len(values) + 1)
        arguments.extend(values)
        where.append(condition.format(*(f"${number}" for number in numbers)))

    if filters.actor:
        add("(actor = {0} OR actor = lower({0}) OR actor_id = lower({0}))", filters.actor)
    if filters.action:
        add("action = {0}", filters.action)
    if filters.resource:
        add("resource = {0}", filters.resource)
    if filters.actions:
        exact = [one for one in filters.actions if not one.endswith("*")]
        begun = [one.removesuffix("*") for one in filters.actions if one.endswith("*")]
        add("(action = ANY ({0}) OR split_part(action, '.', 1) || '.' = ANY ({1}))", exact, begun)
    # As the indexes have them.
    words = {
        "kind": filters.actor_kind,
        "outcome": filters.outcome,
        "ip": filters.source_ip.lower(),
        "request": filters.request_id,
    }
    for word in (f"{name}:{value}" for name, value in words.items() if value):
        add("audit.entry_words(record) @> ARRAY[{0}::text]", word)
    if filters.related_to:
        add(
            "(resource = {0} OR audit.entry_words(record) @> ARRAY[{1}::text])",
            filters.related_to,
            f"related:{filters.related_to}",
        )
    if filters.search:
        # A range, and no pattern: what is looked for may hold % and _.
        ranges = (
            f'({text} COLLATE "C" >= lower({{0}}::text) COLLATE "C"'
            f' AND {text} COLLATE "C" < lower({{0}}::text) || {{1}}::text COLLATE "C")'
            for text in ("audit.entry_name(record)", "lower(actor)", "lower(resource)")
        )
        add(f"({' OR '.join(ranges)})", filters.search, _LAST_CHARACTER)
    if filters.occurred_after:
        add("occurred_at >= {0}", filters.occurred_after)
    if filters.occurred_before:
        add("occurred_at < {0}", filters.occurred_before)
    if after:
        add("(occurred_at, id) < ({0}, {1})", after.at, after.id)
    rows, left = await rows_within(
        connection,
        f"SELECT {ENTRY} FROM audit.entry WHERE {' AND '.join(where)}"
        f" ORDER BY occurred_at DESC, id DESC LIMIT {int(limit) + 1}",
        arguments,
        _size,
    )
    return Page.of([entry_of(row) for row in rows], limit, _position, more=left < 0)


def _position(entry: Entry) -> TimePosition:
    return TimePosition(entry.columns.occurred_at, UUID(entry.columns.id))


async def entry(connection: Connection, scope: Scope, entry_id: UUID) -> Entry | None:
    """One entry of a scope."""
    row = await connection.fetchrow(
        f"SELECT {ENTRY} FROM audit.entry WHERE {_IN_SCOPE} AND id = $2",
        scope.tenant_ids,
        entry_id,
    )
    return entry_of(row) if row else None


async def heads(connection: Connection, scope: Scope) -> list[Head]:
    """The ends of all chains of a scope that have entries."""
    rows = await connection.fetch(
        "SELECT tenant_id, sequence, hash FROM audit.chain_head"
        f" WHERE {_IN_SCOPE} AND sequence > 0 ORDER BY tenant_id",
        scope.tenant_ids,
    )
    return [Head(str(row["tenant_id"]), row["sequence"], row["hash"].hex()) for row in rows]


async def chains(connection: Connection, scope: Scope) -> list[UUID]:
    """The tenants of a scope that have a chain, or entries without a chain's head."""
    rows = await connection.fetch(
        f"SELECT tenant_id FROM audit.chain_head WHERE {_IN_SCOPE} AND sequence > 0"
        f" UNION SELECT tenant_id FROM audit.entry WHERE {_IN_SCOPE} ORDER BY tenant_id",
        scope.tenant_ids,
    )
    return [row["tenant_id"] for row in rows]


async def chain_page(
    connection: Connection,
    tenant_id: UUID,
    filters: Filters,
    after: tuple[int, UUID],
    limit: int,
) -> tuple[Head | None, list[Entry]]:
    """The next entries of a chain, oldest first, and its head as it was before they were read.

    There are none only at its end.
    """
    head = await connection.fetchrow(
        "SELECT tenant_id, sequence, hash FROM audit.chain_head WHERE tenant_id = $1", tenant_id
    )
    rows, _ = await rows_within(
        connection,
        f"SELECT {ENTRY} FROM audit.entry WHERE tenant_id = $1"
        " AND (sequence, id) > ($2, $6)"
        " AND ($3::timestamptz IS NULL OR occurred_at >= $3)"
        " AND ($4::timestamptz IS NULL OR occurred_at < $4)"
        " ORDER BY sequence, id LIMIT $5",
        [
            tenant_id,
            after[0],
            filters.occurred_after,
            filters.occurred_before,
            limit,
            after[1],
        ],
        _size,
    )
    found = Head(str(tenant_id), head["sequence"], head["hash"].hex()) if head else None
    return found, [entry_of(row) for row in rows]


async def base(connection: Connection, tenant_id: UUID) -> Base | None:
    """Up to where a chain was pruned; `None` for a whole one."""
    row = await connection.fetchrow(
        f"SELECT {_BASE} FROM audit.chain_base WHERE chain_id = $1", tenant_id
    )
    return Base(**row) if row is not None else None


async def bases(
    connection: Connection, scope: Scope, start: datetime | None, limit: int = MOST_BASES
) -> Bases:
    """The chains of a scope of which entries were pruned that happened at or after a time."""
    rows = await connection.fetch(
        f"SELECT {_BASE}, count(*) OVER () AS bases FROM audit.chain_base"
        " WHERE ($1::uuid[] IS NULL OR chain_id = ANY ($1))"
        " AND ($2::timestamptz IS NULL OR last_occurred_at >= $2)"
        " ORDER BY pruned_at DESC, chain_id LIMIT $3",
        scope.tenant_ids,
        start,
        limit,
    )
    found = [Base(**{name: row[name] for name in Base.__slots__}) for row in rows]
    return Bases(found, rows[0]["bases"] if rows else 0)


async def span(connection: Connection, tenant_id: UUID, filters: Filters) -> tuple[int, int] | None:
    """The first and the last entry of a chain within some times; `None` when there is none."""
    row = await connection.fetchrow(
        "SELECT min(sequence) AS first, max(sequence) AS last FROM audit.entry"
        " WHERE tenant_id = $1 AND ($2::timestamptz IS NULL OR occurred_at >= $2)"
        " AND ($3::timestamptz IS NULL OR occurred_at < $3)",
        tenant_id,
        filters.occurred_after,
        filters.occurred_before,
    )
    return (row["first"], row["last"]) if row and row["first"] is not None else None


async def forget_dead_letters(connection: Connection, tenant_id: UUID, most: int) -> int:
    """Deletes some quarantined messages of a tenant; answers how many."""
    done: str = await connection.execute(
        "DELETE FROM audit.dead_letter WHERE digest IN (SELECT digest FROM audit.dead_letter"
        " WHERE starts_with(subject, $1) LIMIT $2)",
        f"{SUBJECT_ROOT}.{tenant_id}.",
        most,
    )
    return int(done.rsplit(" ", 1)[1])
