"""What a log is made of, as exports have it: entries, those without their record, and places."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from auditlog.chain import Columns, Head, entry_hash, withheld_hash


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry as an export has it: the record, and the columns as they are stored."""

    tenant_id: str
    sequence: int
    previous_hash: str
    hash: str
    record: str
    columns: Columns
    salt: str = ""
    """In hexadecimal; empty for an entry whose hash is made without one."""
    leaf: int | None = None
    """Its place in the tree over all entries; `None` before it has one, and in older exports."""
    redacted: bool = False
    """Whether its record was taken out; then it has neither record nor salt,"""
    digest: str = ""
    """and what stands for the record in its hash, if it had a salt."""

    @property
    def true_hash(self) -> str:
        """The hash that it ought to have."""
        return self.hash_at(self.sequence, self.previous_hash)

    def hash_at(self, sequence: int, previous_hash: str) -> str:
        """The hash that its record would have at another place of its chain; of a redacted entry
        without a digest the one that it has."""
        if self.redacted:
            if not self.digest:
                return self.hash
            return withheld_hash(self.tenant_id, sequence, previous_hash, self.digest)
        return entry_hash(self.tenant_id, sequence, previous_hash, self.record, self.salt)


@dataclass(frozen=True, slots=True)
class Withheld:
    """An entry that a filter left out of an export: all but its record."""

    tenant_id: str
    sequence: int
    previous_hash: str
    hash: str
    digest: str
    """What stands for the record in the hash; empty for an entry without a salt, whose hash cannot
    be made without the record."""
    leaf: int | None = None
    redacted: bool = False
    """Whether the log has no record any more: an entry behind it says who took it out."""
    id: str = ""
    """What the log still shows of a redacted entry; empty where an export does not say it,"""
    action: str = ""
    occurred_at: datetime | None = None

    @property
    def true_hash(self) -> str:
        """The hash that it ought to have, as far as that can be known."""
        if not self.digest:
            return self.hash
        return withheld_hash(self.tenant_id, self.sequence, self.previous_hash, self.digest)


def withheld(entry: Entry) -> Withheld:
    """A redacted entry, as what there is of it."""
    return Withheld(
        tenant_id=entry.tenant_id,
        sequence=entry.sequence,
        previous_hash=entry.previous_hash,
        hash=entry.hash,
        digest=entry.digest,
        leaf=entry.leaf,
        redacted=True,
        id=entry.columns.id,
        action=entry.columns.action,
        occurred_at=entry.columns.occurred_at,
    )


@dataclass(frozen=True, slots=True)
class Place:
    """Where the entries of a chain begin, or end, in an export."""

    head: Head
    """The entry before the first one, or the last one."""
    is_base: bool
    """Whether they begin there."""
    until: Head | None = None
    """Up to where those are taken out that were pruned, if some of them are still there."""

    @property
    def tenant_id(self) -> str:
        """Whose chain it is."""
        return self.head.tenant_id


@dataclass(frozen=True, slots=True)
class Missing:
    """What a part of a log says that it is without: entries of its time that were pruned."""

    head: Head
    """The last one that is gone."""
    last_occurred_at: datetime
    """When the latest of them happened."""
    pruned_at: datetime
    archive: str
    """The SHA-256 of the archived file that has the last one."""
