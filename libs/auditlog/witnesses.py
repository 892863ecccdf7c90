"""Witnesses: others who sign that a tree only grew, as C2SP has it.

- c2sp.org/tlog-cosignature: a witness signs the text of a checkpoint, and when it saw it.
- c2sp.org/tlog-witness: how a log asks for that. The witness remembers the last tree, and signs a
  larger one only with the proof that it holds the one before.
- c2sp.org/tlog-policy: a file that names witnesses, and says how many of them have to have signed.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from auditlog.keys import CheckpointKey, PrivateKey
from auditlog.notes import (
    COSIGNATURE,
    ED25519,
    NoteError,
    Signature,
    TreeCheckpoint,
    key_hash,
    read_signatures,
)
from auditlog.tree import HASH_BYTES

SIZE_TYPE: Final = "text/x.tlog.size"
"""The media type of an answer that says which size a witness knows."""
MOST_WITNESSES: Final = 16
_MOST_LINES: Final = 1000
_MOST_HASHES: Final = 63
_NAME: Final = re.compile(r"[^\s+]{1,255}")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,17}")
_STAMP: Final = struct.Struct(">Q")
_NONE: Final = "none"


@dataclass(frozen=True, slots=True)
class NoteKey:
    """A public key with the name of who signs, as signed notes have it."""

    name: str
    kind: int
    raw: bytes

    @classmethod
    def read(cls, text: str, kind: int) -> NoteKey:
        """Reads `name+hash+base64`.

        Raises:
            NoteError: it is no such key, or of another kind.
        """
        name, _, rest = text.strip().partition("+")
        given, _, encoded = rest.partition("+")
        try:
            body = base64.b64decode(encoded, validate=True)
        except ValueError as broken:
            raise NoteError("the key is not base64") from broken
        if len(body) != 1 + 32 or not _NAME.fullmatch(name):
            raise NoteError("it is not the name and the Ed25519 key of who signs")
        if body[0] != kind:
            wanted = "a witness" if kind == COSIGNATURE else "a log"
            raise NoteError(f"it is not the key of {wanted}")
        key = cls(name, kind, body[1:])
        if key.hash.hex() != given:
            raise NoteError("its hash does not fit name and key")
        return key

    @property
    def hash(self) -> bytes:
        """The 4 bytes that name it in a signature."""
        return key_hash(self.name, self.kind, self.raw)

    @property
    def text(self) -> str:
        """As programs take it."""
        body = base64.b64encode(bytes([self.kind]) + self.raw).decode()
        return f"{self.name}+{self.hash.hex()}+{body}"

    def signature(self, value: bytes) -> Signature:
        """The line below a note."""
        return Signature(self.name, self.hash, value)

    def among(self, signatures: Iterable[Signature]) -> bytes | None:
        """What this key signed, of several; `None` for nothing."""
        for found in signatures:
            if (found.name, found.key_hash) == (self.name, self.hash):
                return found.value
        return None


def cosigned_message(text: str, at: int) -> bytes:
    """What a witness signs: the text of a checkpoint, and when, in seconds since 1970."""
    return f"cosignature/v1\ntime {at}\n{text}".encode()


def cosigned_at(
    checkpoint: TreeCheckpoint, witness: NoteKey, signatures: Iterable[Signature] | None = None
) -> int | None:
    """When a witness signed a checkpoint, in seconds since 1970; `None` when it did not.

    Args:
        checkpoint: of a tree.
        witness: the key.
        signatures: where its signature is looked for; below the checkpoint if not given.

    Raises:
        NoteError: the signature that names the key is forged.
    """
    found = witness.among(checkpoint.signatures if signatures is None else signatures)
    if found is None:
        return None
    if len(found) == _STAMP.size + 64:
        (at,) = _STAMP.unpack(found[: _STAMP.size])
        message = cosigned_message(checkpoint.text, at)
        if CheckpointKey(witness.raw).verifies(message, found[_STAMP.size :]):
            return int(at)
    raise NoteError(f"the signature of the witness {witness.name} is forged")


@dataclass(frozen=True, slots=True)
class Witness:
    """A witness of a policy."""

    name: str
    """In the policy."""
    key: NoteKey
    url: str
    """Where it is asked; empty when the log does not ask it."""


@dataclass(frozen=True, slots=True)
class _Group:
    least: int
    members: Sequence[str]


@dataclass(frozen=True, slots=True)
class Policy:
    """Whose signatures count, and how many are needed."""

    witnesses: Mapping[str, Witness]
    quorum: str
    """A witness or a group; empty when none is needed."""
    _groups: Mapping[str, _Group]

    @classmethod
    def read(cls, text: str) -> Policy:
        """Reads a file; lines that name logs are left alone.

        Raises:
            NoteError: it is none; the message names the line.
        """
        made = _Reading()
        for number, line in enumerate(text.splitlines(), start=1):
            words = line.split()
            if number > _MOST_LINES:
                raise NoteError(f"it has more than {_MOST_LINES} lines")
            if not words or words[0].startswith("#"):
                continue
            try:
                made.line(words)
            except NoteError as wrong:
                raise NoteError(f"line {number}: {wrong}") from wrong
        if made.quorum is None:
            raise NoteError("it has no line `quorum`")
        return cls(made.witnesses, made.quorum, made.groups)

    def is_met(self, signed: Collection[str]) -> bool:
        """Whether these witnesses, by their names in the policy, are enough."""
        return not self.quorum or self._is_met(self.quorum, signed)

    def _is_met(self, name: str, signed: Collection[str]) -> bool:
        if name in self.witnesses:
            return name in signed
        group = self._groups[name]
        return sum(self._is_met(member, signed) for member in group.members) >= group.least

    def check_asked(self) -> None:
        """Checks that the witnesses that can be asked are enough.

        Raises:
            NoteError: they are not; the message names those without an address.
        """
        if self.is_met([one.name for one in self.witnesses.values() if one.url]):
            return
        without = ", ".join(one.name for one in self.witnesses.values() if not one.url)
        raise NoteError(
            f"the quorum {self.quorum} can never sign: without an address, the last word of a line"
            f" `witness`, nobody asks {without}"
        )

    def signed(self, checkpoint: TreeCheckpoint) -> dict[str, int]:
        """Which witnesses signed a checkpoint, and when, in seconds since 1970.

        Raises:
            NoteError: the signature of one is forged.
        """
        times = {name: cosigned_at(checkpoint, one.key) for name, one in self.witnesses.items()}
        return {name: at for name, at in times.items() if at is not None}


class _Reading:
    """A policy whose lines are read one after the other: a line names only what is above it."""

    def __init__(self) -> None:
        self.witnesses: dict[str, Witness] = {}
        self.groups: dict[str, _Group] = {}
        self.quorum: str | None = None

    def line(self, words: Sequence[str]) -> None:
        match words:
            case ["log", _] | ["log", _, _]:
                pass
            case ["witness", name, key, *url] if len(url) <= 1:
                self._free(name)
                if len(self.witnesses) == MOST_WITNESSES:
                    raise NoteError(f"there are more than {MOST_WITNESSES} witnesses")
                self.witnesses[name] = self._witness(name, key, url)
            case ["group", name, least, *members] if members:
                self._free(name)
                for member in members:
                    self._known(member)
                self.groups[name] = _Group(_least(least, members), members)
            case ["quorum", name] if self.quorum is None:
                if name != _NONE:
                    self._known(name)
                self.quorum = "" if name == _NONE else name
            case _:
                raise NoteError(f"it is no line `{words[0]}` of a policy, or the second one")

    def _witness(self, name: str, text: str, url: Sequence[str]) -> Witness:
        key = NoteKey.read(text, COSIGNATURE)
        if any(key.raw == other.key.raw for other in self.witnesses.values()):
            raise NoteError("another witness has this key")
        return Witness(name, key, _address(url[0]) if url else "")

    def _free(self, name: str) -> None:
        if name == _NONE or name in self.witnesses or name in self.groups:
            raise NoteError(f"the name {name} is taken")

    def _known(self, name: str) -> None:
        if name not in self.witnesses and name not in self.groups:
            raise NoteError(f"no line above it is about {name}")


def _least(text: str, members: Sequence[str]) -> int:
    if len(set(members)) != len(members):
        raise NoteError("a member is there twice")
    named = {"any": 1, "all": len(members)}.get(text)
    least = named or (int(text) if _NUMBER.fullmatch(text) else 0)
    if not 1 <= least <= len(members):
        raise NoteError(f"any, all, or a number from 1 to {len(members)} must stand before members")
    return least


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        named = parts.scheme in {"http", "https"} and parts.hostname and (parts.port or True)
    except ValueError:
        named = False
    if not named or "@" in parts.netloc or parts.query or parts.fragment:
        raise NoteError("the address must be http:// or https://, a host, and a path")
    return url.rstrip("/")


@dataclass(frozen=True, slots=True)
class Request:
    """What a witness is asked: to sign a checkpoint, given that it knows a tree of some size."""

    old: int
    hashes: Sequence[bytes]
    checkpoint: TreeCheckpoint

    def write(self) -> str:
        """The body of `POST …/add-checkpoint`."""
        hashes = "".join(f"{base64.b64encode(one).decode()}\n" for one in self.hashes)
        return f"old {self.old}\n{hashes}\n{self.checkpoint.write()}"

    @classmethod
    def read(cls, body: str) -> Request:
        """Reads a body.

        Raises:
            NoteError: it is none.
        """
        head, separator, note = body.partition("\n\n")
        first, *lines = head.split("\n")
        word, _, size = first.partition(" ")
        if not separator or word != "old" or not _NUMBER.fullmatch(size):
            raise NoteError("it does not say which size is known")
        try:
            hashes = [base64.b64decode(line, validate=True) for line in lines]
        except ValueError as broken:
            raise NoteError("a hash is not base64") from broken
        if len(hashes) > _MOST_HASHES or any(len(one) != HASH_BYTES for one in hashes):
            raise NoteError("a line of the proof is not a hash")
        return cls(int(size), hashes, TreeCheckpoint.read(note))


def read_answer(body: str) -> tuple[Signature, ...]:
    """The signatures that a witness answers.

    Raises:
        NoteError: it answers something else.
    """
    return read_signatures(body)


def read_size(body: str) -> int:
    """The size of the tree that a witness knows, as it says it.

    Raises:
        NoteError: it says something else.
    """
    text = body.removesuffix("\n")
    if not _NUMBER.fullmatch(text):
        raise NoteError("it does not say which size it knows")
    return int(text)


class WitnessKey:
    """The private key of a witness.

    Args:
        name: what the witness is called.
        seed: 32 bytes.
    """

    def __init__(self, name: str, seed: bytes) -> None:
        self._private = PrivateKey(seed)
        self.public = NoteKey(name, COSIGNATURE, self._private.raw)

    def cosign(self, text: str, at: int) -> Signature:
        """Signs the text of a checkpoint, with the time in seconds since 1970."""
        signed = self._private.sign(cosigned_message(text, at))
        return self.public.signature(_STAMP.pack(at) + signed)


def log_keys(text: str) -> Mapping[str, Sequence[CheckpointKey]]:
    """The keys of logs, one a line, by the logs' names.

    Raises:
        NoteError: a line is none, or there is none.
    """
    found: dict[str, list[CheckpointKey]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        key = NoteKey.read(line, ED25519)
        found.setdefault(key.name, []).append(CheckpointKey(key.raw))
    if not found:
        raise NoteError("there is no key of a log in it")
    return found
