"""Writes what the log has of before a time into an archive, on the machine of the server alone.

Files come into their places whole, the manifest last: a directory without one is no archive, and is
begun anew. The database is read in short transactions, page by page.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Final
from uuid import UUID

from auditlog.archive import (
    MANIFEST,
    SIGNS_AS,
    TREE,
    ArchivedChain,
    ArchiveManifest,
    entries_file,
    proof_file,
)
from auditlog.entries import Entry
from auditlog.export import base_line, closing_line, entry_line, opening_line
from auditlog.leaves import TreeState
from auditlog.notes import Proof, Signature, TreeCheckpoint
from auditlog.reports import ManifestFile
from auditlog.tree import inclusion_ranges
from contract.events.audit import Archived, ArchivedEntries
from servicekit.data.postgres import SYSTEM, Connection
from servicekit.errors import DomainError, failed_precondition
from servicekit.ids import new_id
from servicekit.keys import store as key_store
from servicekit.keys.ring import KeyRing
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import write
from servicekit.security.digests import Sha256
from servicekit.security.sealing import Sealer
from servicekit.times import format_rfc3339
from services.audit.log import store
from services.audit.log.domain import CHECKPOINTS, SEALED_FOR, Filters
from services.audit.tree import store as trees

_PAGE: Final = 1_000
_LAST_ID: Final = UUID(int=(1 << 128) - 1)
_PART: Final = ".part"
_ACTOR: Final = "operator (evergreen audit archive)"


@asynccontextmanager
async def seeing_all(connection: Connection) -> AsyncIterator[Connection]:
    """A transaction that sees the rows of all tenants."""
    async with connection.transaction():
        await connection.execute("SELECT set_config('evergreen.scope', $1, true)", SYSTEM.setting)
        yield connection


async def key_ring(connection: Connection, master_key: bytes, at: datetime) -> KeyRing:
    """The keys of audit, opened.

    Raises:
        SealingError: the master key is not the one that sealed them.
    """
    ring = KeyRing(Sealer(master_key, SEALED_FOR).open, lambda: at)
    ring.replace(await key_store.keys(connection, "audit"))
    return ring


def _refused(message: str) -> DomainError:
    return failed_precondition("ARCHIVE_REFUSED", message)


@dataclass(slots=True)
class _File:
    """A file that is being written."""

    name: str
    out: BinaryIO
    size: int = 0
    digest: Sha256 = field(default_factory=Sha256)

    def add(self, text: str) -> None:
        """Writes a piece."""
        data = text.encode()
        self.out.write(data)
        self.size += len(data)
        self.digest.update(data)

    @property
    def listed(self) -> ManifestFile:
        """As the manifest has it."""
        return ManifestFile(self.name, self.size, self.digest.hexdigest())


class _Directory:
    """Where an archive is written.

    Args:
        path: is made, or is empty, or has an archive that was not finished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def held(self) -> Iterator[None]:
        """Held by this process, and empty.

        Raises:
            DomainError: something else is in it.
        """
        self._make()
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise _refused(f"another process writes into {self.path}") from error
            self._clear()
            yield
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _make(self) -> None:
        """Makes the directory, and those above it, on the disk."""
        made = [one for one in (self.path, *self.path.parents) if not one.exists()]
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for one in made:
            above = os.open(one.parent, os.O_RDONLY)
            try:
                os.fsync(above)
            finally:
                os.close(above)

    def _clear(self) -> None:
        found = sorted(self.path.iterdir())
        if any(one.name == MANIFEST for one in found):
            raise _refused(f"{self.path} has an archive already; name another directory")
        own = (".jsonl", ".tlog-proof", _PART)
        if any(one.name != TREE and one.suffix not in own for one in found):
            raise _refused(f"{self.path} is not empty")
        for one in found:
            one.unlink()

    @contextmanager
    def writing(self, name: str) -> Iterator[_File]:
        """A file that is there when all of it is."""
        part = self.path / f"{name}{_PART}"
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            yield _File(name, out)
            out.flush()
            os.fsync(out.fileno())
        part.rename(self.path / name)


@dataclass(slots=True)
class _Written:
    """What became of a chain."""

    first: int = 0
    last: Entry | None = None
    provable: Entry | None = None
    """The last one that has its content, with its leaf."""
    count: int = 0
    """Entries that have their content."""


class Archiver:
    """Writes an archive.

    Args:
        connection: of the role that owns the tables.
        ring: the keys that sign,
        at: now,
        operator: and the account of the machine that asks for it.
    """

    def __init__(self, connection: Connection, ring: KeyRing, at: datetime, operator: str) -> None:
        self._connection = connection
        self._ring = ring
        self._at = at
        self._operator = operator

    async def write(
        self, directory: Path, until: datetime, tenant_id: UUID | None
    ) -> ArchiveManifest:
        """Writes the entries of before a time, of one tenant or of all, and says so in their logs.

        A chain ends before its first entry of the time, for what is behind it can be pruned only
        later. One without entries of before is not in the archive.

        Raises:
            DomainError: the directory is in use, there is no tree, or nothing to archive.
        """
        target = _Directory(directory)
        with target.held():
            async with seeing_all(self._connection) as connection:
                log = await trees.newest(connection)
                found = await store.chains(connection, SYSTEM)
            if log is None:
                raise _refused("there is no tree over the log yet; try again in a minute")
            wanted = [one for one in found if tenant_id in {None, one}]
            checkpoint = self._signed(log)
            chains: list[ArchivedChain] = []
            files: list[ManifestFile] = []
            for chain_id in wanted:
                chain = await self._chain(target, chain_id, until, log, checkpoint, files)
                if chain is not None:
                    chains.append(chain)
            if not chains:
                raise _refused(f"no chain begins with entries of before {format_rfc3339(until)}")
            with target.writing(TREE) as file:
                file.add(checkpoint.write())
            files.append(file.listed)
            manifest = ArchiveManifest(
                id=str(new_id()),
                until=format_rfc3339(until),
                taken_at=format_rfc3339(self._at),
                tree=log.origin,
                chains=tuple(chains),
                files=tuple(files),
            )
            name = f"{_host(log.origin)}{SIGNS_AS}"
            manifest = replace(manifest, signatures=self._signatures(name, manifest.text))
            async with seeing_all(self._connection) as connection:
                # Only of an archive that is one, and of that with the last step.
                for chain in chains:
                    await self._tell(connection, chain, manifest)
                with target.writing(MANIFEST) as file:
                    file.add(manifest.write())
        return manifest

    async def _chain(
        self,
        target: _Directory,
        chain_id: UUID,
        until: datetime,
        log: trees.Log,
        checkpoint: TreeCheckpoint,
        files: list[ManifestFile],
    ) -> ArchivedChain | None:
        """Writes the files of a chain."""
        name = entries_file(str(chain_id))
        with target.writing(name) as file:
            written = await self._entries(file, chain_id, until, log)
        last = written.last
        if last is None:
            (target.path / name).unlink()
            return None
        files.append(file.listed)
        if (entry := written.provable) is not None and entry.leaf is not None:
            async with seeing_all(self._connection) as connection:
                ranges = inclusion_ranges(entry.leaf, log.size)
                hashes = await trees.prove_ranges(connection, log, ranges)
            proof = Proof(entry, entry.leaf, tuple(hashes), checkpoint, entry_line(entry))
            with target.writing(proof_file(str(chain_id))) as proved:
                proved.add(proof.write())
            files.append(proved.listed)
        return ArchivedChain(str(chain_id), written.first, last.sequence, last.hash)

    async def _entries(
        self, file: _File, chain_id: UUID, until: datetime, log: trees.Log
    ) -> _Written:
        state = TreeState(log.origin, log.size, log.before)
        file.add(opening_line(self._at, complete=False, tree=state))
        done = _Written()
        async with seeing_all(self._connection) as connection:
            base = await store.base(connection, chain_id)
        at = base.sequence if base else 0
        while page := await self._page(chain_id, at, until, log):
            if page[0].sequence != at + 1:
                raise _refused(f"the chain of {chain_id} has no entry {at + 1}: verify the log")
            if done.last is None:
                done.first = page[0].sequence
                if base is not None:
                    file.add(base_line(page[0]))
            for entry in page:
                file.add(entry_line(entry))
                if not entry.redacted:
                    done.count, done.provable = done.count + 1, entry
            done.last = page[-1]
            at = done.last.sequence
        # No head: the chain goes on. Where the file ends, the manifest says.
        file.add(closing_line(done.count))
        return done

    async def _page(
        self, chain_id: UUID, after: int, until: datetime, log: trees.Log
    ) -> list[Entry]:
        """The next entries of a chain that belong in the archive; none at its end.

        What the tree does not have yet stays for the next archive.
        """
        async with seeing_all(self._connection) as connection:
            _, page = await store.chain_page(
                connection, chain_id, Filters(), (after, _LAST_ID), _PAGE
            )
            if not page:
                return []
            leaves = await trees.places(
                connection, log.origin, chain_id, page[0].sequence, page[-1].sequence
            )
        found: list[Entry] = []
        for entry in page:
            leaf = leaves.get(entry.sequence)
            if entry.columns.occurred_at >= until or leaf is None or leaf >= log.size:
                break
            found.append(replace(entry, leaf=leaf))
        return found

    async def _tell(
        self, connection: Connection, chain: ArchivedChain, manifest: ArchiveManifest
    ) -> None:
        chain_id = UUID(chain.tenant_id)
        event = Archived(
            id=chain_id,
            after=ArchivedEntries(
                from_=chain.first,
                to=chain.last,
                count=chain.last - chain.first + 1,
                hash=chain.hash,
                archive_sha256=manifest.sha256(entries_file(chain.tenant_id)),
            ),
        )
        told = CloudEvent(event, chain_id, actor=_ACTOR, actor_id=self._operator)
        await write(connection, "audit", told)

    def _signed(self, log: trees.Log) -> TreeCheckpoint:
        unsigned = TreeCheckpoint(log.origin, log.size, log.root)
        return replace(unsigned, signatures=self._signatures(log.origin, unsigned.text))

    def _signatures(self, name: str, text: str) -> tuple[Signature, ...]:
        return tuple(
            Signature.by(name, signer.public.raw, signer.sign(text.encode()))
            for signer in self._ring.signers(CHECKPOINTS)
        )


def _host(origin: str) -> str:
    return origin.rsplit("/audit/", 1)[0]
