"""The use cases of the tree: its checkpoints, its pieces, and what is proved with it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from auditlog.entries import Entry
from auditlog.export import entry_line
from auditlog.leaves import TreeState
from auditlog.notes import Consistency, Proof, Signature, TreeCheckpoint, verifier_key
from auditlog.tree import (
    TILE_HEIGHT,
    TILE_WIDTH,
    ProofError,
    consistency_ranges,
    inclusion_ranges,
)
from servicekit.data.postgres import Connection, Database
from servicekit.errors import (
    Code,
    DomainError,
    failed_precondition,
    invalid_field,
    not_found,
    unavailable,
)
from servicekit.keys.service import SigningKeys
from servicekit.security.signing import Signer
from services.audit.tree import store
from services.audit.tree.sequencer import Sequencer
from services.audit.tree.store import DamagedError, Log

_WAIT_SECONDS: Final = 2.0
_LOOK_SECONDS: Final = 0.25
_NEAR: Final = 4096
"""So many entries of a chain the tree takes in while somebody waits."""
_BACKLOG_SECONDS: Final = 10.0
_ORIGIN_SECONDS: Final = 10.0
_TILE: Final = re.compile(r"(entries|\d{1,2})((?:/x\d{3})*/\d{3})(?:\.p/(\d{1,3}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Tile:
    """A piece of the tree."""

    level: int
    is_data: bool
    """Whether it is what is hashed, and not hashes."""
    first: int
    width: int

    @classmethod
    def read(cls, path: str) -> _Tile:
        match = _TILE.fullmatch(path)
        if match is None:
            raise invalid_field("path", "must be the path of a piece of the tree")
        kind, index, width = match.groups()
        number = int(index.replace("/", "").replace("x", ""))
        wanted = TILE_WIDTH if width is None else int(width)
        if not 1 <= wanted <= TILE_WIDTH or (width is not None and wanted == TILE_WIDTH):
            raise invalid_field("path", f"a width must be from 1 to {TILE_WIDTH - 1}")
        is_data = kind == "entries"
        return cls(0 if is_data else int(kind), is_data, number * TILE_WIDTH, wanted)


class Tree:
    """Reads the tree, and signs what it says.

    Any size can be signed at any time: a checkpoint says nothing but the size and the root, so
    all processes sign the same.

    Args:
        database: the service's.
        keys: the service's keys,
        purpose: and which of them sign.
        sequencer: grows the tree.
    """

    def __init__(
        self, database: Database, keys: SigningKeys, purpose: str, sequencer: Sequencer
    ) -> None:
        self._database = database
        self._keys = keys
        self._purpose = purpose
        self._sequencer = sequencer
        self._origin = ""
        self._origin_until = 0.0
        self._witnessed: TreeCheckpoint | None = None
        self.asks_witnesses = False
        """Whether there are witnesses."""

    async def checkpoint(self) -> TreeCheckpoint:
        """The newest checkpoint.

        Raises:
            DomainError: UNAVAILABLE in the moment before there is a tree.
        """
        async with self._reading() as (_, log):
            return self._signed(log)

    async def witnessed(self) -> TreeCheckpoint:
        """The newest checkpoint that enough witnesses signed, too.

        Raises:
            DomainError: NOT_FOUND when none are asked, UNAVAILABLE when they did not sign one yet.
        """
        if not self.asks_witnesses:
            raise DomainError(Code.NOT_FOUND, "NO_WITNESSES", "this installation asks no witnesses")
        async with self._reading() as (_, log):
            if (found := self._witnessed_of(log)) is not None:
                return found
        raise unavailable("not enough witnesses have signed yet", retry_after=_BACKLOG_SECONDS)

    def witness(self, checkpoint: TreeCheckpoint) -> None:
        """Takes a checkpoint that enough witnesses signed."""
        known = self._witnessed
        if known is None or known.origin != checkpoint.origin or known.size <= checkpoint.size:
            self._witnessed = checkpoint

    def _witnessed_of(self, log: Log) -> TreeCheckpoint | None:
        """What witnesses signed of this log."""
        found = self._witnessed
        return found if found is not None and found.origin == log.origin else None

    async def state(self, *, all_tenants: bool) -> TreeState | None:
        """What an export says of the tree; `None` in the moment before there is one."""
        async with self._database.system_transaction("the tree has no tenant") as connection:
            log = await store.newest(connection)
        return TreeState(log.origin, log.size, log.before, all_tenants) if log else None

    async def placed(self, entries: Sequence[Entry], state: TreeState | None) -> list[Entry]:
        """Entries of one chain, in their order, with their leaves in the tree of an export."""
        if not entries or state is None:
            return list(entries)
        first, last = entries[0], entries[-1]
        async with self._database.system_transaction("the tree has no tenant") as connection:
            places = await store.places(
                connection,
                state.origin,
                UUID(first.tenant_id),
                first.sequence,
                last.sequence,
            )
        return [replace(entry, leaf=places.get(entry.sequence)) for entry in entries]

    async def leaves_up_to(
        self, tenant_id: UUID, last: int, state: TreeState
    ) -> AsyncIterator[dict[int, tuple[int, str]]]:
        """The leaves of a chain up to an entry in the tree of an export, page by page: sequence →
        leaf and hash."""
        after = 0
        while after < last:
            async with self._database.system_transaction("the tree has no tenant") as connection:
                page = await store.page_of_leaves(connection, state.origin, tenant_id, after, last)
            if not page:
                return
            yield page
            after = max(page)

    async def prove(self, entry: Entry) -> Proof:
        """The proof that an entry is in the tree; waits a moment for a new entry.

        Raises:
            DomainError: UNAVAILABLE when the tree does not have it yet; at once when there is a
                backlog before it.
        """
        until = asyncio.get_running_loop().time() + _WAIT_SECONDS
        while True:
            async with self._reading() as (connection, log):
                at = await store.places(
                    connection, log.origin, UUID(entry.tenant_id), entry.sequence, entry.sequence
                )
                index = at.get(entry.sequence)
                if index is not None and index < log.size:
                    checkpoint = self._witnessed_of(log)
                    if checkpoint is None or index >= checkpoint.size:
                        checkpoint = self._signed(log)
                    hashes = await store.prove_ranges(
                        connection, log, inclusion_ranges(index, checkpoint.size)
                    )
                    line = entry_line(replace(entry, leaf=index))
                    return Proof(entry, index, tuple(hashes), checkpoint, line)
                known = await store.taken(connection, log.number, UUID(entry.tenant_id))
            if entry.sequence - known > _NEAR:
                raise unavailable("the entry is not in the tree yet", retry_after=_BACKLOG_SECONDS)
            if asyncio.get_running_loop().time() > until:
                raise unavailable("the entry is not in the tree yet", retry_after=1.0)
            self._sequencer.wake()
            await asyncio.sleep(_LOOK_SECONDS)

    async def grown(self, old: int, checkpoint: TreeCheckpoint) -> list[bytes] | None:
        """The hashes that prove that a tree of so many leaves is in that of a checkpoint of ours.

        `None` when that has fewer, or another log began since.
        """
        async with self._reading() as (connection, log):
            if old > checkpoint.size or log.origin != checkpoint.origin:
                return None
            ranges = consistency_ranges(old, checkpoint.size)
            return await store.prove_ranges(connection, log, ranges)

    async def consistency(self, old: int) -> Consistency:
        """The proof that a tree of so many leaves is in the present one.

        Raises:
            DomainError: INVALID_ARGUMENT when the present one has fewer.
        """
        async with self._reading() as (connection, log):
            try:
                ranges = consistency_ranges(old, log.size)
            except ProofError as wrong:
                raise invalid_field("from", f"must be at most {log.size}") from wrong
            return Consistency(
                old, await store.prove_ranges(connection, log, ranges), self._signed(log)
            )

    async def tile(self, path: str) -> bytes:
        """A piece of the tree.

        Raises:
            DomainError: INVALID_ARGUMENT for no such path, NOT_FOUND for what is not there (yet).
        """
        tile = _Tile.read(path)
        async with self._reading() as (connection, log):
            if tile.first + tile.width > log.size >> (TILE_HEIGHT * tile.level):
                raise not_found("piece of the tree", path)
            if tile.is_data:
                found = await store.leaves(connection, log.number, tile.first, tile.width)
                return b"".join(len(data).to_bytes(2, "big") + data for data in found)
            row = await store.row_of(connection, log.number, tile.level, tile.first, tile.width)
            return b"".join(row)

    async def verifier_keys(self) -> str:
        """The public keys that verify checkpoints, newest first, a line each."""
        # Anyone may ask for them, as often as they like.
        now = asyncio.get_running_loop().time()
        if now >= self._origin_until:
            async with self._reading() as (_, log):
                self._origin, self._origin_until = log.origin, now + _ORIGIN_SECONDS
        keys = reversed(self._keys.ring.verifying(self._purpose))
        return "".join(f"{verifier_key(self._origin, key.raw)}\n" for key in keys)

    def _signed(self, log: Log) -> TreeCheckpoint:
        unsigned = TreeCheckpoint(log.origin, log.size, log.root)
        message = unsigned.text.encode()

        def sign(signer: Signer) -> Signature:
            return Signature.by(log.origin, signer.public.raw, signer.sign(message))

        signatures = tuple(map(sign, self._keys.ring.signers(self._purpose)))
        return replace(unsigned, signatures=signatures)

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[tuple[Connection, Log]]:
        try:
            async with self._database.system_transaction("the tree has no tenant") as connection:
                log = await store.newest(connection)
                if log is None:
                    raise unavailable("there is no tree yet", retry_after=1.0)
                yield connection, log
        except DamagedError as damaged:
            raise _damaged() from damaged


def _damaged() -> DomainError:
    return failed_precondition(
        "AUDIT_TREE_DAMAGED", "the tree over the audit log was damaged; `evergreen audit verify`"
    )
