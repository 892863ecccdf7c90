"""Signed notes, checkpoints of the tree, and proofs of entries, as C2SP writes them.

- c2sp.org/signed-note: a text, an empty line, and lines of signatures.
- c2sp.org/tlog-checkpoint: a note of an origin, a size and a root. The origin names a log; the same
  keys sign for another log when the database was restored.
- c2sp.org/tlog-proof: a checkpoint, the index of a leaf in it, and the hashes that lead from the
  leaf to the root. The extra data are the entry's line of an export, from which its hash is made.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from auditlog.chain import Columns
from auditlog.entries import Entry
from auditlog.export import entry_of_line
from auditlog.keys import CheckpointKey
from auditlog.tree import HASH_BYTES, ProofError, leaf_hash, root_of_inclusion, sha256

PROOF_FORMAT: Final = "c2sp.org/tlog-proof@v1"
ED25519: Final = 1
COSIGNATURE: Final = 4
"""Kinds of keys: of logs, and of witnesses."""
_SIGNATURE: Final = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/=]+)")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,17}")
_MOST_LINES: Final = 64


class NoteError(ValueError):
    """A text is not what it should be; the message says what is wrong."""


def key_hash(name: str, kind: int, raw: bytes) -> bytes:
    """The 4 bytes by which a note tells keys apart."""
    return sha256(name.encode() + b"\n" + bytes([kind]) + raw)[:4]


def verifier_key(name: str, raw: bytes) -> str:
    """A public key with the name of who signs, as `golang.org/x/mod/sumdb/note` takes it."""
    body = base64.b64encode(bytes([ED25519]) + raw).decode()
    return f"{name}+{key_hash(name, ED25519, raw).hex()}+{body}"


@dataclass(frozen=True, slots=True)
class Signature:
    """A line below a note."""

    name: str
    key_hash: bytes
    value: bytes
    """Without the bytes that name the key."""

    @property
    def line(self) -> str:
        """As a note has it."""
        return f"— {self.name} {base64.b64encode(self.key_hash + self.value).decode()}\n"

    @classmethod
    def by(cls, name: str, raw: bytes, value: bytes) -> Signature:
        """An Ed25519 signature of the key with these 32 bytes."""
        return cls(name, key_hash(name, ED25519, raw), value)


def read_note(note: str) -> tuple[str, tuple[Signature, ...]]:
    """The text of a note, with its line break, and its signatures, which are not checked here.

    Raises:
        NoteError: it is none.
    """
    text, separator, below = note.partition("\n\n")
    if not separator:
        raise NoteError("there is no empty line before signatures")
    return f"{text}\n", read_signatures(below)


def read_signatures(below: str) -> tuple[Signature, ...]:
    """Lines of signatures, which are not checked here.

    Raises:
        NoteError: there is none, or a line is none.
    """
    signatures = []
    lines = below.split("\n")
    if lines[-1] or not 2 <= len(lines) <= _MOST_LINES:
        raise NoteError("it does not end with lines of signatures")
    for line in lines[:-1]:
        match = _SIGNATURE.fullmatch(line)
        raw = _base64(match[2]) if match else b""
        if match is None or len(raw) <= 4:
            raise NoteError("a line of a signature is none")
        signatures.append(Signature(match[1], raw[:4], raw[4:]))
    return tuple(signatures)


def signed_by(
    text: str, name: str, signatures: Iterable[Signature], keys: Iterable[CheckpointKey]
) -> bool | None:
    """Whether one of the keys signed a text under a name; `None` when no signature names one of
    them, `False` when one that does is forged."""
    known = None
    found = tuple(signatures)
    for key in keys:
        named = key_hash(name, ED25519, key.raw)
        for signature in found:
            if (signature.name, signature.key_hash) == (name, named):
                if not key.verifies(text.encode(), signature.value):
                    return False
                known = True
    return known


def verdicts(
    text: str, suffix: str, signatures: Iterable[Signature], keys: Iterable[CheckpointKey]
) -> dict[str, bool | None]:
    """What `signed_by` says of each name with an ending, of whichever installation."""
    found, trusted = tuple(signatures), tuple(keys)
    names = {signature.name for signature in found if signature.name.endswith(suffix)}
    return {name: signed_by(text, name, found, trusted) for name in names}


def signed_as(
    text: str, suffix: str, signatures: Iterable[Signature], keys: Iterable[CheckpointKey]
) -> bool | None:
    """Whether one of the keys signed a text under a name with an ending; as `signed_by`."""
    found = set(verdicts(text, suffix, signatures, keys).values())
    if False in found:
        return False
    return True if True in found else None


@dataclass(frozen=True, slots=True)
class TreeCheckpoint:
    """What a log says of its tree at one moment, with the signatures as they came."""

    origin: str
    size: int
    root: bytes
    signatures: tuple[Signature, ...] = ()

    @property
    def text(self) -> str:
        """What is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @property
    def key_id(self) -> str:
        """What the log's signatures say of its keys."""
        return ", ".join(s.key_hash.hex() for s in self.signatures if s.name == self.origin)

    def write(self) -> str:
        """The signed note."""
        return f"{self.text}\n{''.join(signature.line for signature in self.signatures)}"

    @classmethod
    def read(cls, note: str) -> TreeCheckpoint:
        """Reads a note; signatures are not checked here.

        Raises:
            NoteError: it is none.
        """
        text, signatures = read_note(note)
        found = cls.of_text(text)
        return cls(found.origin, found.size, found.root, signatures)

    @classmethod
    def of_text(cls, text: str) -> TreeCheckpoint:
        """Reads the text that is signed.

        Raises:
            NoteError: it is none.
        """
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1] or not lines[0] or not _NUMBER.fullmatch(lines[1]):
            raise NoteError("it does not say origin, size and root")
        root = _base64(lines[2])
        if len(root) != HASH_BYTES:
            raise NoteError("its root is not a hash")
        found = cls(lines[0], int(lines[1]), root)
        if found.text != text:
            raise NoteError("it says more than origin, size and root")
        return found

    def signed_by(self, keys: Iterable[CheckpointKey]) -> bool | None:
        """Whether one of the keys signed it; `None` when it names none of them, `False` when a
        signature that names one of them is forged."""
        return signed_by(self.text, self.origin, self.signatures, keys)


@dataclass(frozen=True, slots=True)
class Proof:
    """A proof that a log had an entry.

    The entry comes with the proof, and is bound to it only by its hash, which `check` makes anew.
    """

    entry: Entry
    index: int
    hashes: tuple[bytes, ...]
    checkpoint: TreeCheckpoint
    line: str
    """The entry's line of an export."""

    def write(self) -> str:
        """The text form."""
        hashes = "".join(f"{base64.b64encode(found).decode()}\n" for found in self.hashes)
        extra = base64.b64encode(self.line.encode()).decode()
        return (
            f"{PROOF_FORMAT}\nextra {extra}\nindex {self.index}\n{hashes}\n"
            f"{self.checkpoint.write()}"
        )

    @classmethod
    def read(cls, text: str) -> Proof:
        """Reads the text form.

        Raises:
            NoteError: it is none, or holds no entry.
        """
        head, separator, note = text.partition("\n\n")
        lines = head.split("\n")
        if not separator or lines[0] != PROOF_FORMAT or len(lines) < 2:
            raise NoteError(f"it does not begin with {PROOF_FORMAT}")
        if not lines[1].startswith("extra "):
            raise NoteError("the entry itself is not in it")
        line = _base64(lines[1].removeprefix("extra ")).decode("utf-8", "replace")
        name, _, number = (lines[2] if len(lines) > 2 else "").partition(" ")
        if name != "index" or not _NUMBER.fullmatch(number):
            raise NoteError("it does not say the index of the leaf")
        hashes = tuple(_base64(value) for value in lines[3:])
        if len(hashes) > _MOST_LINES or any(len(value) != HASH_BYTES for value in hashes):
            raise NoteError("a line of the proof is not a hash")
        try:
            entry = entry_of_line(line)
        except ValueError as broken:
            raise NoteError(f"the entry in it cannot be read: {broken}") from broken
        return cls(entry, int(number), hashes, TreeCheckpoint.read(note), line)

    def check(self) -> None:
        """Checks that the entry, as it stands in the proof, is in the checkpoint's tree.

        Raises:
            ProofError: it is not.
        """
        entry = self.entry
        try:
            is_told = entry.columns == Columns.of(json.loads(entry.record))
        except (ValueError, AttributeError, RecursionError):
            is_told = False
        if not is_told or entry.hash != entry.true_hash:
            raise ProofError("the entry is not what its record says")
        leaf = leaf_hash(bytes.fromhex(entry.hash))
        found = root_of_inclusion(self.index, self.checkpoint.size, leaf, self.hashes)
        if found != self.checkpoint.root:
            raise ProofError(
                "the entry is not the one that the log had at this place, or the proof was changed"
            )


@dataclass(frozen=True, slots=True)
class Consistency:
    """A proof that nothing of an older tree was changed or removed, with the newer checkpoint."""

    old: int
    hashes: Sequence[bytes]
    checkpoint: TreeCheckpoint

    @classmethod
    def of(cls, answer: Any) -> Consistency:
        """Reads the API's JSON.

        Raises:
            NoteError: it is none.
        """
        try:
            hashes = [_base64(value) for value in answer.get("hashes", [])]
            return cls(
                int(answer.get("from", 0)), hashes, TreeCheckpoint.read(answer["checkpoint"])
            )
        except (KeyError, TypeError, AttributeError, ValueError) as broken:
            raise NoteError(f"it is no proof of consistency: {broken}") from broken


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as broken:
        raise NoteError("it is not base64") from broken


def is_tree_checkpoint(text: str) -> bool:
    """Whether a file is rather a checkpoint of the tree than one of the chains' heads."""
    lines = text.split("\n", 3)
    return len(lines) > 3 and _NUMBER.fullmatch(lines[1]) is not None and lines[0] != ""
