"""The format of the audit log: hashes, checkpoints, and the check that nothing was changed.

The audit service writes with this module and `evergreen audit verify` checks with it. Nothing
here talks to a database or a network, so that anyone can read it and check a file with it.

An entry's **record** is the whole event as canonical JSON (sorted keys, no spaces, UTF-8). Every
tenant has a chain: entry 1, 2, 3, … in the order of their arrival. The hash of an entry is the
SHA-256 of these five parts, in UTF-8, with one line feed between them:

    evergreen audit entry v1
    <tenant id>
    <sequence, decimal>
    <hash of the entry before, 64 hexadecimal digits; zeros for entry 1>
    <record>

Only the record, which comes last, could hold a line feed, so no two entries have the same parts
in different places. By hand: `printf '%s\\n%s\\n%s\\n%s\\n%s' … | sha256sum`.

An entry with a **salt** has `evergreen audit entry v2` as its first part, and as its last one not
the record but the SHA-256, in hexadecimal, of `evergreen audit record v1`, the salt in hexadecimal,
and the record, with one line feed between them. So a chain can be checked without a record, and who
has the hash alone cannot try out what the record might have been. A chain may have both kinds.

A **checkpoint** states the last hash of every chain at one moment, signed with Ed25519. Whoever
can write to the database can make a whole new chain that fits together; it will not fit a
checkpoint that was kept elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from auditlog.keys import CheckpointKey

ENTRY_FORMAT: Final = "evergreen audit entry v1"
SALTED_ENTRY_FORMAT: Final = "evergreen audit entry v2"
RECORD_FORMAT: Final = "evergreen audit record v1"
SALT_BYTES: Final = 16
CHECKPOINT_FORMAT: Final = "evergreen audit checkpoint v1"
NO_HASH: Final = "0" * 64
"""What stands for the hash of the entry before in the first entry of a chain."""
_MAX_COLUMN: Final = 256
_SIGNATURE_LINE: Final = re.compile(r"— evergreen-audit (\S+) (\S+)")
_HEAD_LINE: Final = re.compile(r"([0-9a-f-]{36}) ([1-9][0-9]{0,17}) ([0-9a-f]{64})")


def canonical(value: Mapping[str, Any]) -> str:
    """The record of an event: its JSON with sorted keys and without spaces.

    Raises:
        ValueError: when the value cannot be written in JSON, such as NaN.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def entry_hash(
    tenant_id: str, sequence: int, previous_hash: str, record: str, salt: str = ""
) -> str:
    """The hash of an entry, in hexadecimal.

    Args:
        tenant_id: whose chain it is in.
        sequence: its place in it.
        previous_hash: of the entry before, in hexadecimal.
        record: what it records.
        salt: in hexadecimal; empty for an entry without one.
    """
    if salt:
        digest = record_digest(salt, record)
        return withheld_hash(tenant_id, sequence, previous_hash, digest)
    return _sha256(f"{ENTRY_FORMAT}\n{tenant_id}\n{sequence}\n{previous_hash}\n{record}")


def record_digest(salt: str, record: str) -> str:
    """What stands for a record in the hash of an entry with a salt, in hexadecimal."""
    return _sha256(f"{RECORD_FORMAT}\n{salt}\n{record}")


def withheld_hash(tenant_id: str, sequence: int, previous_hash: str, digest: str) -> str:
    """The hash of an entry with a salt, of which only the record's digest is known."""
    return _sha256(f"{SALTED_ENTRY_FORMAT}\n{tenant_id}\n{sequence}\n{previous_hash}\n{digest}")


def _sha256(text: str) -> str:
    # A lone surrogate cannot come from the log itself; in a forged file it must not stop the check.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Columns:
    """What the database repeats outside the record so that entries can be found."""

    id: str
    tenant_id: str
    occurred_at: datetime
    actor: str
    actor_id: str
    action: str
    resource: str

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> Columns:
        """Derives the columns from the event of a record.

        Raises:
            ValueError: when the event lacks one of them.
        """
        data = event.get("data")
        if not isinstance(data, Mapping):
            raise ValueError("data must be an object")
        occurred_at = datetime.fromisoformat(_text(event, "time"))
        if occurred_at.tzinfo is None:
            raise ValueError("time must say its offset from UTC")
        return cls(
            id=_text(event, "id"),
            tenant_id=_text(event, "tenantid"),
            occurred_at=occurred_at,
            actor=_column(_text(data, "actor")),
            actor_id=_column(_text(data, "actorId")),
            action=_column(_text(data, "action")),
            resource=_column(_text(data, "resource")),
        )


def _text(value: Mapping[str, Any], name: str) -> str:
    text = value.get(name)
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a text")
    return text


def _column(text: str) -> str:
    # PostgreSQL stores no NUL, and an index no long text; the record has the whole of it.
    return text.replace("\x00", "\ufffd")[:_MAX_COLUMN]


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry of a chain at some moment."""

    tenant_id: str
    sequence: int
    hash: str


class CheckpointError(ValueError):
    """A checkpoint cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A signed statement: the heads of chains at one moment.

    `statement` is the signed text: the format's name, the time, and a line per chain with
    tenant, sequence and hash.
    """

    statement: str
    key_id: str
    signature: bytes
    taken_at: str
    heads: tuple[Head, ...]

    @staticmethod
    def state(taken_at: datetime, heads: Iterable[Head]) -> str:
        """The text to be signed."""
        lines = [CHECKPOINT_FORMAT, taken_at.isoformat().replace("+00:00", "Z")]
        lines += sorted(f"{head.tenant_id} {head.sequence} {head.hash}" for head in heads)
        return "\n".join(lines) + "\n"

    @classmethod
    def read(cls, text: str) -> Checkpoint:
        """Reads a file: the text form of `write`, or the API's JSON.

        Raises:
            CheckpointError: when it is neither.
        """
        if text.lstrip().startswith("{"):
            try:
                answer = json.loads(text)
                return cls.of(answer["statement"], answer["keyId"], answer["signature"])
            except (ValueError, KeyError, TypeError, AttributeError) as broken:
                raise CheckpointError("it is not a checkpoint in JSON") from broken
        statement, separator, signature = text.partition("\n\n")
        match = _SIGNATURE_LINE.fullmatch(signature.strip())
        if not separator or match is None:
            raise CheckpointError("it is not a checkpoint: there is no signature line")
        return cls.of(statement + "\n", match[1], match[2])

    @classmethod
    def of(cls, statement: str, key_id: str, signature: str) -> Checkpoint:
        """Makes sense of a statement; the signature is in base64 and not checked here."""
        lines = statement.split("\n")
        if len(lines) < 3 or lines[0] != CHECKPOINT_FORMAT or lines[-1]:
            raise CheckpointError(f"its first line must be: {CHECKPOINT_FORMAT}")
        heads = []
        for line in lines[2:-1]:
            match = _HEAD_LINE.fullmatch(line)
            if match is None:
                raise CheckpointError(f"this line is not tenant, sequence and hash: {line[:120]}")
            heads.append(Head(match[1], int(match[2]), match[3]))
        try:
            raw = base64.b64decode(signature, validate=True)
        except binascii.Error as broken:
            raise CheckpointError("its signature is not base64") from broken
        return cls(statement, key_id, raw, lines[1], tuple(heads))

    def write(self) -> str:
        """The file form, readable and in the manner of a signed note (C2SP)."""
        signature = base64.b64encode(self.signature).decode()
        return f"{self.statement}\n— evergreen-audit {self.key_id} {signature}\n"

    def signed_by(self, keys: Iterable[CheckpointKey]) -> bool | None:
        """Whether the signature is good; `None` when none of the keys is the one it names."""
        for key in keys:
            if key.id == self.key_id:
                return key.verifies(self.statement.encode(), self.signature)
        return None
