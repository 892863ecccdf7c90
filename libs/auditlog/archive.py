"""Archives: what the audit log had before a time, as files that are verified without a server.

A directory has a file for each chain, in the form of an export; the proof that the tree over all
entries had the chain's last entry; a checkpoint of that tree; and a manifest, which is a signed
note of C2SP:

evergreen audit archive v1
id 01936d2e-9c14-7a02-8b77-51d2c3e4f506
until 2024-01-01T00:00:00Z
takenAt 2026-11-30T09:00:00Z
tree evergreen.school.example/audit/5f0c2a17
chain 01936d2e-5a70-7c31-9d0e-3f6f1a8b2c01 1 48112 <hash of entry 48112>
file <SHA-256> 4711 01936d2e-5a70-7c31-9d0e-3f6f1a8b2c01.jsonl

— evergreen.school.example/archives <signature>
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from auditlog.chain import Checkpoint, Head
from auditlog.entries import Entry, Place, Withheld
from auditlog.export import ArchivedItem, ExportError, items_of
from auditlog.findings import Finding, Kind
from auditlog.keys import CheckpointKey
from auditlog.notes import NoteError, Proof, Signature, TreeCheckpoint, read_note, signed_as
from auditlog.reports import ManifestFile
from auditlog.verify import Verifier

FIRST_LINE: Final = "evergreen audit archive v1"
SIGNS_AS: Final = "/archives"
"""Behind the installation's name: the name that signs."""
MANIFEST: Final = "manifest.txt"
TREE: Final = "tree.checkpoint"
"""The checkpoint of the tree that the proofs are of."""
_HEAD: Final = ("id", "until", "takenAt", "tree")
_CHAIN: Final = re.compile(
    r"chain ([0-9a-f-]{36}) ([1-9][0-9]{0,17}) ([1-9][0-9]{0,17}) ([0-9a-f]{64})"
)
_PIECE: Final = 1 << 20


class ArchiveError(ValueError):
    """A directory is no archive, or not whole; the message says why."""


def entries_file(tenant_id: str) -> str:
    """The name of the file with a chain's entries,"""
    return f"{tenant_id}.jsonl"


def proof_file(tenant_id: str) -> str:
    """and of that with the proof of its last one."""
    return f"{tenant_id}.tlog-proof"


@dataclass(frozen=True, slots=True)
class ArchivedChain:
    """Which entries of a chain an archive has: all from the first to the last."""

    tenant_id: str
    first: int
    last: int
    hash: str
    """Of the last one."""

    @property
    def line(self) -> str:
        """As a manifest has it."""
        return f"chain {self.tenant_id} {self.first} {self.last} {self.hash}"


@dataclass(frozen=True, slots=True)
class ArchiveManifest:
    """What an archive is."""

    id: str
    until: str
    """Its entries are of before this time."""
    taken_at: str
    tree: str
    """The origin of the tree that its proofs are of."""
    chains: tuple[ArchivedChain, ...]
    files: tuple[ManifestFile, ...]
    signatures: tuple[Signature, ...] = ()

    @property
    def text(self) -> str:
        """What is signed."""
        values = (self.id, self.until, self.taken_at, self.tree)
        lines = [f"{name} {value}" for name, value in zip(_HEAD, values, strict=True)]
        lines += [chain.line for chain in self.chains]
        lines += [file.line for file in self.files]
        return "\n".join([FIRST_LINE, *lines]) + "\n"

    @property
    def key_id(self) -> str:
        """What its signatures say of their keys."""
        found = (s.key_hash.hex() for s in self.signatures if s.name.endswith(SIGNS_AS))
        return ", ".join(found)

    def sha256(self, name: str) -> str:
        """What it says of a file; empty for none."""
        return next((file.sha256 for file in self.files if file.name == name), "")

    def write(self) -> str:
        """The signed note."""
        return f"{self.text}\n{''.join(signature.line for signature in self.signatures)}"

    @classmethod
    def read(cls, note: str) -> ArchiveManifest:
        """Reads a note; signatures are not checked here.

        Raises:
            NoteError: it is no manifest of an archive.
        """
        text, signatures = read_note(note)
        first, *lines = text.removesuffix("\n").split("\n")
        if first != FIRST_LINE:
            raise NoteError(f"it does not begin with {FIRST_LINE}")
        head = [line.partition(" ") for line in lines[: len(_HEAD)]]
        if [name for name, _, _ in head] != list(_HEAD):
            raise NoteError("it does not say what the archive is")
        rest = lines[len(_HEAD) :]
        chains = [match for line in rest if (match := _CHAIN.fullmatch(line))]
        values = [value for _, _, value in head]
        found = cls(
            id=values[0],
            until=values[1],
            taken_at=values[2],
            tree=values[3],
            chains=tuple(ArchivedChain(m[1], int(m[2]), int(m[3]), m[4]) for m in chains),
            files=tuple(ManifestFile.read(line) for line in rest[len(chains) :]),
            signatures=signatures,
        )
        if found.text != text:
            raise NoteError("it says more than a manifest")
        return found

    def signed_by(self, keys: Iterable[CheckpointKey]) -> bool | None:
        """Whether one of the keys signed it for an installation's archives; `None` when it names
        none of them, `False` when a signature that names one of them is forged."""
        return signed_as(self.text, SIGNS_AS, self.signatures, keys)


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive in a directory."""

    directory: Path
    manifest: ArchiveManifest

    @classmethod
    def open(cls, directory: Path) -> Archive:
        """Reads the manifest.

        Raises:
            ArchiveError: there is none, or it is none.
        """
        try:
            text = (directory / MANIFEST).read_bytes().decode()
            return cls(directory, ArchiveManifest.read(text))
        except OSError as error:
            raise ArchiveError(f"{directory} is no archive: {error.strerror}") from error
        except ValueError as broken:
            raise ArchiveError(f"{directory} is no archive: {broken}") from broken

    @property
    def anchor(self) -> Checkpoint:
        """What it says of chains, as a checkpoint says it."""
        heads = tuple(Head(c.tenant_id, c.last, c.hash) for c in self.manifest.chains)
        return Checkpoint("", "", b"", self.manifest.taken_at, heads)

    def sha256(self, name: str) -> str:
        """What the manifest says of a file; empty for none."""
        return self.manifest.sha256(name)

    def check_files(self) -> Iterator[str]:
        """What is wrong with its files, a sentence each."""
        listed = {file.name for file in self.manifest.files}
        for chain in self.manifest.chains:
            if entries_file(chain.tenant_id) not in listed:
                yield f"the manifest names no file for the chain of {chain.tenant_id}"
        for file in self.manifest.files:
            yield from self._check(file)

    def check_chain(self, tenant_id: str) -> Iterator[str]:
        """What is wrong with the file of a chain's entries; as `check_files`."""
        for file in self.manifest.files:
            if file.name == entries_file(tenant_id):
                yield from self._check(file)

    def _check(self, file: ManifestFile) -> Iterator[str]:
        digest, size = hashlib.sha256(), 0
        try:
            with (self.directory / file.name).open("rb") as opened:
                while piece := opened.read(_PIECE):
                    digest.update(piece)
                    size += len(piece)
        except OSError as error:
            yield f"{file.name} cannot be read: {error.strerror}"
            return
        if (size, digest.hexdigest()) != (file.bytes, file.sha256):
            yield f"{file.name} is not the file that the manifest names"

    def items(self, tenant_id: str) -> Iterator[ArchivedItem]:
        """What the file of a chain has: its base, if it has one, and its entries.

        Raises:
            ExportError: it cannot be read, or is not whole.
        """
        path = self.directory / entries_file(tenant_id)
        try:
            with path.open(encoding="utf-8", newline="\n") as file:
                yield from items_of(file)
        except (OSError, UnicodeDecodeError) as error:
            raise ExportError(f"{path} cannot be read: {error}") from error

    def hash_at(self, chain: ArchivedChain, sequence: int) -> str:
        """The hash that it has of an entry of a chain, or of that before its first one; empty for
        none.

        Raises:
            ExportError: as `items`.
        """
        if sequence == chain.last:
            return chain.hash
        for item in self.items(chain.tenant_id):
            if isinstance(item, Place):
                continue
            if item.sequence == sequence:
                return item.hash
            if item.sequence > sequence:
                return item.previous_hash
        return ""

    def tree(self) -> TreeCheckpoint:
        """The checkpoint of the tree that its proofs are of.

        Raises:
            ArchiveError: it cannot be read.
        """
        return TreeCheckpoint.read(self._text(TREE))

    def proof(self, chain: ArchivedChain) -> Proof | None:
        """The proof that the tree had the last entry of a chain; `None` where all are redacted.

        Raises:
            ArchiveError: it cannot be read.
        """
        name = proof_file(chain.tenant_id)
        return Proof.read(self._text(name)) if self.sha256(name) else None

    def _text(self, name: str) -> str:
        try:
            return (self.directory / name).read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise ArchiveError(f"{name} cannot be read: {error}") from error

    def verify(
        self, chain: ArchivedChain, verifier: Verifier, proof: Proof | None = None
    ) -> Iterator[Finding]:
        """Checks the entries of a chain, and that they are those that the manifest names.

        Args:
            chain: of the manifest.
            verifier: takes parts of a log.
            proof: of one of its entries, which was checked.

        Raises:
            ExportError: its file cannot be read, or is not whole.
        """
        verifier.in_part()
        first = last = 0
        found = proved = ""
        for item in self.items(chain.tenant_id):
            if item.tenant_id != chain.tenant_id:
                message = f"there are entries of another tenant, {item.tenant_id}"
                yield Finding(chain.tenant_id, 0, Kind.FORGED, message)
                return
            if isinstance(item, Entry | Withheld):
                first, last, found = first or item.sequence, item.sequence, item.hash
                if proof is not None and item.sequence == proof.entry.sequence:
                    proved = item.hash
            yield from verifier.take(item)
        yield from verifier.finish()
        if (first, last, found) != (chain.first, chain.last, chain.hash):
            message = "its entries are not those that the manifest names"
            yield Finding(chain.tenant_id, chain.last, Kind.TRUNCATED, message)
        if proof is not None and (proof.entry.tenant_id, proof.entry.hash) != (
            chain.tenant_id,
            proved,
        ):
            message = "the proof beside its entries is of another one"
            yield Finding(chain.tenant_id, proof.entry.sequence, Kind.FORGED, message)


class Archives:
    """Several archives, of which each continues others."""

    def __init__(self, archives: Iterable[Archive]) -> None:
        self._archives = tuple(archives)

    def __bool__(self) -> bool:
        return bool(self._archives)

    def before(self, base: Head) -> Pieces | None:
        """What the archives have of a chain up to a base, as far back as they go without a gap.

        `None` when they do not have what is right before the base.

        Raises:
            ExportError: a file cannot be read, or is not whole.
        """
        pieces: list[Piece] = []
        need = base
        while need.sequence > 0 and (found := self._with(need)):
            chain, archive = min(found, key=lambda one: one[0].first)
            pieces.insert(0, Piece(archive, chain.first, need.sequence))
            before = chain.first - 1
            need = Head(base.tenant_id, before, archive.hash_at(chain, before))
        return Pieces(base.tenant_id, pieces) if pieces else None

    def _with(self, need: Head) -> list[tuple[ArchivedChain, Archive]]:
        """The archives that have an entry."""
        found = [
            (chain, archive)
            for archive in self._archives
            for chain in archive.manifest.chains
            if chain.tenant_id == need.tenant_id and chain.first <= need.sequence <= chain.last
        ]
        if len(found) == 1:
            return found
        # One of before a restore may have another entry there.
        return [one for one in found if one[1].hash_at(one[0], need.sequence) == need.hash] or found


@dataclass(frozen=True, slots=True)
class Piece:
    """Entries of a chain that are taken of an archive."""

    archive: Archive
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Pieces:
    """What archives have of a chain: entries that follow one another."""

    tenant_id: str
    pieces: Sequence[Piece]

    @property
    def first(self) -> int:
        """The first of them."""
        return self.pieces[0].first

    @property
    def origins(self) -> set[str]:
        """The trees that their leaves are of."""
        return {piece.archive.manifest.tree for piece in self.pieces}

    def items(self) -> Iterator[ArchivedItem]:
        """The base, if they do not begin with entry 1, and the entries.

        Raises:
            ExportError: a file cannot be read, or is not whole.
        """
        for number, piece in enumerate(self.pieces):
            for item in piece.archive.items(self.tenant_id):
                if isinstance(item, Entry | Withheld):
                    if piece.first <= item.sequence <= piece.last:
                        yield item
                elif item.is_base and number == 0:
                    yield item
