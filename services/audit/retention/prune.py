"""Takes out entries that an archive has, on the machine of the server alone.

A chain is pruned in batches, each a transaction that moves its base and deletes what is before it.
The first one appends the entry that says so. What was cut short holds as it is, and goes on when it
is run again. The rules are checked beforehand, to say what they are, and once more in the database,
by `audit.prune`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from auditlog.archive import Archive, ArchivedChain, entries_file
from auditlog.entries import Entry, Withheld
from contract.events.audit import ArchivedEntries, Pruned
from servicekit.data.postgres import Connection, columns
from servicekit.errors import failed_precondition
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import write
from services.audit.log import store as chains
from services.audit.log.domain import read_event
from services.audit.log.recorder import new_salt
from services.audit.retention import store
from services.audit.retention.archives import seeing_all
from services.audit.retention.domain import FOR_EVER, in_force, years_before

_ACTOR: Final = "operator (evergreen audit prune)"
_BATCH: Final = 2_000
"""Entries of a transaction: some tenths of a second."""
_NEWEST: Final = 1_000
"""Entries of each chain that stay."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be pruned of a chain."""

    chain: ArchivedChain
    line: Sequence[UUID]
    """The chain's tenant, behind all above it, the root first."""
    first: int
    """The first entry that goes,"""
    last: int
    """and the last one; before the first one where none do."""
    hash: str
    """Of the last one."""
    reason: str
    """Why not all goes that the archive has; empty where it does."""

    @property
    def count(self) -> int:
        """How many go."""
        return max(0, self.last - self.first + 1)


@dataclass(frozen=True, slots=True)
class _Limit:
    last: int
    """The last entry that may go,"""
    reason: str
    """and why none behind it."""


@asynccontextmanager
async def alone(connection: Connection) -> AsyncIterator[None]:
    """While no other process prunes.

    Raises:
        DomainError: one does.
    """
    lock = "hashtext('audit.prune')"
    if not await connection.fetchval(f"SELECT pg_try_advisory_lock({lock})"):
        raise failed_precondition("PRUNING", "another process prunes the audit log")
    try:
        yield
    finally:
        await connection.execute(f"SELECT pg_advisory_unlock({lock})")


async def require_no_hold(connection: Connection, line: Sequence[UUID]) -> None:
    """Refuses what a legal hold forbids.

    None is set before the transaction has ended.

    Args:
        connection: in a transaction that sees all rows, of the role that owns the tables.
        line: a tenant, behind all above it, the root first.

    Raises:
        DomainError: FAILED_PRECONDITION.
    """
    held = await held_by(connection, line)
    if held is not None:
        raise failed_precondition("LEGAL_HOLD", _held(held))


async def held_by(connection: Connection, line: Sequence[UUID]) -> UUID | None:
    """Whose legal hold keeps a log, as `require_no_hold`."""
    await store.keep_rules(connection)
    return in_force(line, await store.rules(connection, line)).held_by


def _held(tenant_id: UUID) -> str:
    return f"a legal hold of tenant {tenant_id} keeps the log; its Owners can release it"


async def plan(
    connection: Connection,
    archive: Archive,
    chain: ArchivedChain,
    line: Sequence[UUID],
    at: datetime,
) -> Plan:
    """What may be pruned of a chain of an archive that was verified.

    Raises:
        ExportError: the archive cannot be read.
    """
    chain_id = line[-1]
    async with seeing_all(connection):
        base = await chains.base(connection, chain_id)
        limits = await _limits(connection, line, base.sequence if base else 0)
        counts = in_force(line, await store.rules(connection, line))
    first = base.sequence + 1 if base else 1
    if first < chain.first:
        limits.append(
            _Limit(0, f"the archive begins with entry {chain.first}, the log with {first}")
        )
    older = None
    if counts.held_by is not None:
        limits.append(_Limit(0, _held(counts.held_by)))
    elif counts.keep_years == FOR_EVER:
        limits.append(_Limit(0, f"tenant {counts.keep_from} keeps the log for ever"))
    else:
        older = years_before(at, counts.keep_years)
    limits.append(_Limit(chain.last, ""))
    limit = min(limits, key=lambda one: one.last)
    last, found = first - 1, ""
    for page in _pages(archive, chain.tenant_id, first, limit.last):
        for item, stored in zip(page, await _stored(connection, chain_id, page), strict=True):
            if reason := _differs(item, stored, older, counts.keep_years):
                return Plan(chain, line, first, last, found, reason)
            last, found = item.sequence, item.hash
    return Plan(chain, line, first, last, found, limit.reason)


async def _limits(connection: Connection, line: Sequence[UUID], base: int) -> list[_Limit]:
    row = await connection.fetchrow(
        "SELECT (SELECT sequence FROM audit.chain_head WHERE tenant_id = $1) AS head,"
        " (SELECT sequence FROM audit.tree_cursor WHERE tenant_id = $1"
        " AND log = (SELECT max(number) FROM audit.tree_log)) AS tree",
        line[-1],
    )
    behind = await connection.fetchrow(
        # What it has quarantined it has not delivered.
        "SELECT f.name, least(coalesce(p.sequence, 0), (SELECT min(q.sequence) - 1"
        " FROM audit.forwarder_quarantine q WHERE q.forwarder_id = f.id AND q.chain_id = $1"
        " AND q.sequence > $3 AND q.delivered_at IS NULL)) AS sequence FROM audit.forwarder f"
        " LEFT JOIN audit.forwarder_position p ON p.forwarder_id = f.id AND p.chain_id = $1"
        " WHERE f.enabled AND (f.tenant_id = $1 OR f.below_too AND f.tenant_id = ANY ($2))"
        " ORDER BY 2 LIMIT 1",
        line[-1],
        line,
        base,
    )
    found = [
        _Limit((row["head"] or 0) - _NEWEST, f"the last {_NEWEST:,} entries of a chain stay"),
        _Limit(row["tree"] or 0, "the tree does not have those behind yet"),
    ]
    if behind is not None:
        reason = f"the forwarder {behind['name']!r} has not delivered those behind"
        found.append(_Limit(behind["sequence"], reason))
    return found


@dataclass(frozen=True, slots=True)
class _Stored:
    hash: str
    redacted: bool
    occurred_at: datetime


async def _stored(
    connection: Connection, chain_id: UUID, page: Sequence[Entry | Withheld]
) -> list[_Stored | None]:
    async with seeing_all(connection):
        rows = await connection.fetch(
            "SELECT sequence, hash, redacted, occurred_at FROM audit.entry"
            " WHERE tenant_id = $1 AND sequence BETWEEN $2 AND $3",
            chain_id,
            page[0].sequence,
            page[-1].sequence,
        )
    found = {
        row["sequence"]: _Stored(row["hash"].hex(), row["redacted"], row["occurred_at"])
        for row in rows
    }
    return [found.get(item.sequence) for item in page]


def _differs(
    item: Entry | Withheld, stored: _Stored | None, older: datetime | None, years: int
) -> str:
    """Why an entry stays; empty where it may go."""
    if stored is None or stored.hash != item.hash:
        return f"entry {item.sequence} is not the one that the archive has: verify the log"
    if stored.redacted != isinstance(item, Withheld):
        return (
            f"entry {item.sequence} was redacted since: delete this archive, and make another one"
            if stored.redacted
            else f"a restore brought the content of entry {item.sequence}, which the archive lacks"
        )
    if older is None or stored.occurred_at >= older:
        return f"entry {item.sequence} is younger than {years} years"
    return ""


def _pages(
    archive: Archive, tenant_id: str, first: int, last: int, size: int = _BATCH
) -> Iterator[list[Entry | Withheld]]:
    """Entries of an archive, from one to another."""
    page: list[Entry | Withheld] = []
    if last < first:
        return
    for item in archive.items(tenant_id):
        if isinstance(item, Entry | Withheld) and first <= item.sequence <= last:
            page.append(item)
            if len(page) == size:
                yield page
                page = []
    if page:
        yield page


async def prune(
    connection: Connection,
    archive: Archive,
    wanted: Plan,
    operator: str,
    tell: Callable[[int], None] = lambda _: None,
) -> int:
    """Prunes a chain; answers how many entries went.

    Args:
        connection: of the role that owns the tables.
        archive: was verified.
        wanted: what is to go.
        operator: the account of the machine that asks for it.
        tell: hears after each batch how many went so far.

    Raises:
        DomainError: FAILED_PRECONDITION for what a rule forbids by now, and for an archive that has
            changed; what went before is gone.
    """
    chain_id, tenant_id = wanted.line[-1], wanted.chain.tenant_id
    sha256 = archive.sha256(entries_file(tenant_id))
    # It was verified before somebody was asked, who may have taken hours.
    if wrong := next(archive.check_chain(tenant_id), None):
        raise failed_precondition("ARCHIVE_CHANGED", f"the archive has changed: {wrong}")
    gone = 0
    for page in _pages(archive, tenant_id, wanted.first, wanted.last):
        if changed := next((item for item in page if item.true_hash != item.hash), None):
            raise failed_precondition(
                "ARCHIVE_CHANGED", f"the archive has changed: entry {changed.sequence}"
            )
        try:
            async with seeing_all(connection):
                base = await chains.base(connection, chain_id)
                gone += await _batch(connection, wanted, page, sha256)
                if base is None or (base.until_sequence, base.until_hash.hex()) != (
                    wanted.last,
                    wanted.hash,
                ):
                    await _say(connection, chain_id, wanted, sha256, operator)
        except asyncpg.RaiseError as refused:
            _, _, message = str(refused).partition(": ")
            raise failed_precondition("NOT_PRUNED", message) from refused
        tell(gone)
    return gone


async def _batch(
    connection: Connection, wanted: Plan, page: Sequence[Entry | Withheld], sha256: str
) -> int:
    """Takes out some entries, in a transaction that sees all rows; answers how many."""
    gone: int = await connection.fetchval(
        "SELECT audit.prune($1, $2::bigint[], $3::bytea[], $4::boolean[], $5, $6, $7)",
        wanted.line,
        *columns([(i.sequence, bytes.fromhex(i.hash), isinstance(i, Withheld)) for i in page]),
        wanted.last,
        bytes.fromhex(wanted.hash),
        bytes.fromhex(sha256),
    )
    return gone


async def _say(
    connection: Connection, chain_id: UUID, wanted: Plan, sha256: str, operator: str
) -> None:
    """Appends the entry that says what is pruned, in the transaction that begins it."""
    event = Pruned(
        id=chain_id,
        after=ArchivedEntries(
            from_=wanted.first,
            to=wanted.last,
            count=wanted.count,
            hash=wanted.hash,
            archive_sha256=sha256,
        ),
    )
    told = CloudEvent(event, chain_id, actor=_ACTOR, actor_id=operator)
    await write(connection, "audit", told)
    arrival = read_event(told.subject, told.payload().encode())
    salted = await connection.fetchval(
        "SELECT salt IS NOT NULL FROM audit.entry WHERE tenant_id = $1"
        " ORDER BY sequence DESC LIMIT 1",
        chain_id,
    )
    await chains.append(connection, [arrival], new_salt if salted else str)
