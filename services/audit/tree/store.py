"""All the SQL of the tree over all entries. Its rows are read by number, never by tenant."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, TypeAlias
from uuid import UUID

import asyncpg

from auditlog.leaves import beginning
from auditlog.notes import TreeCheckpoint
from auditlog.tree import (
    EMPTY_ROOT,
    TILE_HEIGHT,
    TILE_WIDTH,
    Reader,
    Subtree,
    complete_root,
    leaf_hash,
    prove,
    range_root,
    subtrees,
)
from servicekit.data.postgres import Connection, columns
from services.audit.tree.restores import End

_LOG_ID_BYTES: Final = 4
_CHAINS: Final = 256
"""Chains that the tree takes entries of at a time,"""
_ENTRIES: Final = 4096
"""and about how many entries."""
_LEAST: Final = 16
"""Entries of each of them."""


_Leaf: TypeAlias = "tuple[UUID | None, int | None, bytes]"
"""Whose entry it is, of which number, and its hash."""


class DamagedError(Exception):
    """Rows of the tree are missing; somebody removed them."""


@dataclass(frozen=True, slots=True)
class Log:
    """A log, and the tree that it has so far."""

    number: int
    origin: str
    before: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """What a checkpoint says of it."""
        return TreeCheckpoint(self.origin, self.size, self.root).text


async def newest(connection: Connection, *, lock: bool = False) -> Log | None:
    """The log that grows; `None` before there is one, or while another process holds it."""
    # Only the newest one: the one before it must not grow because the newest is locked.
    row = await connection.fetchrow(
        "SELECT number, origin, before, size, root FROM audit.tree_log"
        " WHERE number = (SELECT max(number) FROM audit.tree_log)"
        f"{' FOR UPDATE SKIP LOCKED' if lock else ''}"
    )
    return Log(**row) if row else None


async def hold(connection: Connection) -> Log | None:
    """The log that grows, held by this transaction; waits for the process that holds it.

    `None` before there is a log.
    """
    held = None
    while True:
        found = await newest(connection)
        # Another one may have begun while this waited.
        if found is None or (held is not None and held.number == found.number):
            return found
        held = found
        await connection.execute(
            "SELECT FROM audit.tree_log WHERE number = $1 FOR UPDATE", found.number
        )


async def begin(
    connection: Connection, number: int, host: str, before: str, at: datetime
) -> Log | None:
    """Begins a log; `None` when there is one with that number already, which stays as it is.

    Args:
        connection: in a transaction.
        number: behind that of the log before.
        host: what its origin begins with.
        before: the text of the last checkpoint of the log before; empty for none.
        at: the time.
    """
    origin = f"{host}/audit/{secrets.token_hex(_LOG_ID_BYTES)}"
    log = Log(number, origin, before, 0, EMPTY_ROOT)
    begun = await connection.fetchval(
        "INSERT INTO audit.tree_log (number, origin, before, size, root, began_at)"
        " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING RETURNING number",
        log.number,
        log.origin,
        log.before,
        log.size,
        log.root,
        at,
    )
    return log if begun is not None else None


async def begin_behind(connection: Connection, ended: Log, at: datetime) -> Log:
    """Begins a log behind another one, which went back in time.

    Raises:
        RuntimeError: another process has begun one.
    """
    host = ended.origin.rsplit("/audit/", 1)[0]
    begun = await begin(connection, ended.number + 1, host, ended.text, at)
    if begun is None:
        raise RuntimeError(f"another log began behind {ended.origin}")
    return begun


async def ends(connection: Connection, at: datetime) -> list[End]:
    """Where all chains end now; a chain whose last entry is gone has what happened until `at`."""
    rows = await connection.fetch(
        "SELECT h.tenant_id, h.sequence, h.hash, coalesce(e.occurred_at, $1) AS point"
        " FROM audit.chain_head h LEFT JOIN audit.entry e USING (tenant_id, sequence)"
        " ORDER BY h.tenant_id",
        at,
    )
    return [End(**row) for row in rows]


async def grow(connection: Connection, log: Log) -> Log:
    """Takes in some entries that the tree does not have yet; answers the log as it is then.

    Args:
        connection: in a transaction that sees all tenants and holds the log.
        log: as it is.
    """
    leaves: list[_Leaf] = []
    if log.size == 0 and log.before:
        leaves.append((None, None, beginning(log.before)))
    heads = await connection.fetch(
        "SELECT h.tenant_id, coalesce(c.sequence, 0) AS known, h.sequence FROM audit.chain_head h"
        " LEFT JOIN audit.tree_cursor c ON c.log = $1 AND c.tenant_id = h.tenant_id"
        f" WHERE h.sequence > coalesce(c.sequence, 0) ORDER BY h.tenant_id LIMIT {_CHAINS}",
        log.number,
    )
    if heads:
        leaves += await _entries(connection, log.number, heads)
    return await _add(connection, log, leaves) if leaves else log


async def _entries(
    connection: Connection, log: int, heads: Sequence[asyncpg.Record]
) -> list[_Leaf]:
    """The next entries of some chains, which count as taken in."""
    most = max(_LEAST, _ENTRIES // len(heads))
    found = await connection.fetch(
        "SELECT e.tenant_id, e.sequence, e.hash FROM unnest($1::uuid[], $2::bigint[], $3::bigint[])"
        " AS w (tenant_id, known, last) CROSS JOIN LATERAL (SELECT tenant_id, sequence, hash"
        " FROM audit.entry WHERE tenant_id = w.tenant_id AND sequence > w.known"
        f" AND sequence <= w.last ORDER BY sequence LIMIT {most}) e"
        " ORDER BY e.tenant_id, e.sequence",
        *columns([(row["tenant_id"], row["known"], row["sequence"]) for row in heads]),
    )
    of_chain: dict[UUID, list[int]] = {}
    for row in found:
        of_chain.setdefault(row["tenant_id"], []).append(row["sequence"])
    cursors = []
    for row in heads:
        taken = of_chain.get(row["tenant_id"], [])
        # What is missing before the chain's end was removed, and does not come back.
        is_full = len(taken) == most
        cursors.append((log, row["tenant_id"], taken[-1] if is_full else row["sequence"]))
    await connection.execute(
        "INSERT INTO audit.tree_cursor (log, tenant_id, sequence)"
        " SELECT * FROM unnest($1::integer[], $2::uuid[], $3::bigint[])"
        " ON CONFLICT (log, tenant_id) DO UPDATE SET sequence = excluded.sequence",
        *columns(cursors),
    )
    return [(row["tenant_id"], row["sequence"], row["hash"]) for row in found]


async def _add(connection: Connection, log: Log, leaves: Sequence[_Leaf]) -> Log:
    await connection.execute(
        "INSERT INTO audit.tree_leaf (log, index, tenant_id, sequence, data) SELECT $1, * FROM"
        " unnest($2::bigint[], $3::uuid[], $4::bigint[], $5::bytea[])",
        log.number,
        *columns([(log.size + at, *leaf) for at, leaf in enumerate(leaves)]),
    )
    size = log.size + len(leaves)
    level = 1
    while first_last := _completed(log.size, size, level):
        first, last = first_last
        below = await row_of(
            connection, log.number, level - 1, first * TILE_WIDTH, (last - first) * TILE_WIDTH
        )
        await connection.execute(
            "INSERT INTO audit.tree_node (log, level, index, hash)"
            " SELECT $1, $2, * FROM unnest($3::bigint[], $4::bytea[])",
            log.number,
            level,
            list(range(first, last)),
            [complete_root(below[at : at + TILE_WIDTH]) for at in range(0, len(below), TILE_WIDTH)],
        )
        level += 1
    reader = await reader_of(connection, log.number, subtrees(0, size))
    grown = replace(log, size=size, root=range_root(0, size, reader))
    await connection.execute(
        "UPDATE audit.tree_log SET size = $2, root = $3 WHERE number = $1",
        log.number,
        grown.size,
        grown.root,
    )
    return grown


def _completed(old: int, new: int, level: int) -> tuple[int, int] | None:
    """The nodes of a level that became complete: the first, and the one behind the last."""
    first, last = old >> (TILE_HEIGHT * level), new >> (TILE_HEIGHT * level)
    return (first, last) if first < last else None


async def row_of(
    connection: Connection, log: int, level: int, first: int, count: int
) -> list[bytes]:
    """Hashes of a level, as tiles have them.

    Raises:
        DamagedError: they are not all there.
    """
    subtree_rows = await _hashes(connection, log, level, [(first, count)])
    return _all(subtree_rows, first, count)


async def leaves(connection: Connection, log: int, first: int, count: int) -> list[bytes]:
    """The data of leaves.

    Raises:
        DamagedError: they are not all there.
    """
    rows = await connection.fetch(
        "SELECT index, data FROM audit.tree_leaf WHERE log = $1 AND index >= $2 AND index < $3",
        log,
        first,
        first + count,
    )
    return _all({row["index"]: row["data"] for row in rows}, first, count)


async def reader_of(connection: Connection, log: int, wanted: Sequence[Subtree]) -> Reader:
    """What answers the roots of some subtrees.

    Raises:
        DamagedError: they cannot be made.
    """
    roots: dict[Subtree, bytes] = {}
    for level in {subtree.level for subtree in wanted}:
        of_level = [subtree for subtree in wanted if subtree.level == level]
        found = await _hashes(connection, log, level, [(s.first, s.count) for s in of_level])
        for subtree in of_level:
            roots[subtree] = complete_root(_all(found, subtree.first, subtree.count))
    return roots.__getitem__


async def prove_ranges(
    connection: Connection, log: Log, ranges: Sequence[tuple[int, int]]
) -> list[bytes]:
    """The hashes of a proof, from the ranges of leaves that they are of.

    Raises:
        DamagedError: they cannot be made.
    """
    wanted = [subtree for first, end in ranges for subtree in subtrees(first, end)]
    return prove(ranges, await reader_of(connection, log.number, wanted))


async def _hashes(
    connection: Connection, log: int, level: int, ranges: Sequence[tuple[int, int]]
) -> dict[int, bytes]:
    first_count = columns(list(ranges))
    if level == 0:
        rows = await connection.fetch(
            "SELECT l.index, l.data FROM unnest($2::bigint[], $3::bigint[]) AS w (first, count)"
            " JOIN audit.tree_leaf l ON l.log = $1 AND l.index >= w.first"
            " AND l.index < w.first + w.count",
            log,
            *first_count,
        )
        return {row["index"]: leaf_hash(row["data"]) for row in rows}
    rows = await connection.fetch(
        "SELECT n.index, n.hash FROM unnest($3::bigint[], $4::bigint[]) AS w (first, count)"
        " JOIN audit.tree_node n ON n.log = $1 AND n.level = $2 AND n.index >= w.first"
        " AND n.index < w.first + w.count",
        log,
        level,
        *first_count,
    )
    return {row["index"]: row["hash"] for row in rows}


def _all(found: Mapping[int, bytes], first: int, count: int) -> list[bytes]:
    try:
        return [found[index] for index in range(first, first + count)]
    except KeyError as missing:
        raise DamagedError(f"hash {missing} of the tree is missing") from missing


async def taken(connection: Connection, log: int, tenant_id: UUID) -> int:
    """Up to which entry of a chain the tree has it; 0 for none."""
    found = await connection.fetchval(
        "SELECT sequence FROM audit.tree_cursor WHERE log = $1 AND tenant_id = $2", log, tenant_id
    )
    return found or 0


async def page_of_leaves(
    connection: Connection, origin: str, tenant_id: UUID, after: int, last: int
) -> dict[int, tuple[int, str]]:
    """Sequence of a chain's entry → its leaf and its hash, in order, some of those up to one."""
    rows = await connection.fetch(
        "SELECT sequence, index, data FROM audit.tree_leaf WHERE tenant_id = $2"
        " AND log = (SELECT number FROM audit.tree_log WHERE origin = $1)"
        f" AND sequence > $3 AND sequence <= $4 ORDER BY sequence LIMIT {TILE_WIDTH}",
        origin,
        tenant_id,
        after,
        last,
    )
    return {row["sequence"]: (row["index"], row["data"].hex()) for row in rows}


async def places(
    connection: Connection, origin: str, tenant_id: UUID, first: int, last: int
) -> dict[int, int]:
    """Sequence of a chain's entry → its leaf, of those that are in the tree of a log."""
    rows = await connection.fetch(
        "SELECT sequence, index FROM audit.tree_leaf WHERE tenant_id = $2"
        " AND log = (SELECT number FROM audit.tree_log WHERE origin = $1)"
        " AND sequence BETWEEN $3 AND $4",
        origin,
        tenant_id,
        first,
        last,
    )
    return {row["sequence"]: row["index"] for row in rows}
