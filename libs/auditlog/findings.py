"""What is wrong with a log, and what an entry alone shows of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum

from auditlog.chain import Columns
from auditlog.entries import Entry


class Kind(Enum):
    """What is wrong."""

    CHANGED = "changed"
    REMOVED = "removed"
    REORDERED = "reordered"
    TRUNCATED = "truncated"
    FORGED = "forged"
    RESTORED = "restored"
    """Not in the log, and the log says that it went back to a backup which is older."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: in which chain, at which entry, and how."""

    tenant_id: str
    sequence: int
    kind: Kind
    message: str


def columns(entry: Entry) -> Iterator[Finding]:
    """Whether what the log is searched by is what the record says."""
    try:
        event = json.loads(entry.record)
        true = Columns.of(event)
    except (ValueError, AttributeError, RecursionError):
        message = f"{_named(entry)} was changed: its record is not an event"
        yield Finding(entry.tenant_id, entry.sequence, Kind.CHANGED, message)
        return
    for name in Columns.__slots__:
        shown, recorded = getattr(entry.columns, name), getattr(true, name)
        if shown != recorded:
            message = (
                f"{_named(entry)} was changed: the column {name} says {short(shown)},"
                f" the record says {short(recorded)}"
            )
            yield Finding(entry.tenant_id, entry.sequence, Kind.CHANGED, message)


def misplaced(suspects: Sequence[Entry]) -> Iterator[Finding]:
    """Which entries whose hash does not fit are good ones in the wrong place."""
    for entry in suspects:
        at = next((o.sequence for o in suspects if o is not entry and _belongs(entry, o)), None)
        if at is None:
            yield changed(entry)
        else:
            message = f"what stands at entry {entry.sequence} belongs at entry {at}"
            yield Finding(entry.tenant_id, entry.sequence, Kind.REORDERED, message)


def _belongs(entry: Entry, other: Entry) -> bool:
    """Whether the entry is good where the other one stands.

    Either its record was moved to another row, or its row was given another number.
    """
    # A record may have been moved with its salt, or without.
    salted = replace(entry, salt=other.salt)
    return any(
        moved.hash_at(other.sequence, previous) == found
        for moved in (entry, salted)
        for previous, found in (
            (other.previous_hash, other.hash),
            (entry.previous_hash, entry.hash),
        )
    )


def changed(entry: Entry) -> Finding:
    """That the hash of an entry does not fit its record."""
    message = f"{_named(entry)} was changed: its hash does not fit what it says"
    return Finding(entry.tenant_id, entry.sequence, Kind.CHANGED, message)


def _named(entry: Entry) -> str:
    return f"entry {entry.sequence} ({entry.columns.id})"


def span(first: int, last: int) -> str:
    """The beginning of a sentence about entries."""
    return f"entry {first} was" if first == last else f"entries {first} to {last} were"


def short(value: str | datetime | None) -> str:
    """A value as a message has it, of at most 80 characters."""
    text = value.isoformat() if isinstance(value, datetime) else value or ""
    return f"“{text if len(text) <= 80 else text[:80] + '…'}”"
