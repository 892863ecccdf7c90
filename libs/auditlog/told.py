"""What entries tell of others: that they were redacted or pruned, or that the log was restored."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from auditlog.chain import Columns

RESTORED_ACTION: Final = "audit.restored"
REDACTED_ACTION: Final = "audit.entry_redacted"
PRUNED_ACTION: Final = "audit.pruned"


class Telling(Protocol):
    """An entry, as far as it is read here."""

    @property
    def tenant_id(self) -> str:
        """Whose chain it is in,"""

    @property
    def sequence(self) -> int:
        """where,"""

    @property
    def record(self) -> str:
        """what it records,"""

    @property
    def columns(self) -> Columns:
        """and what is repeated of that."""


def _after(entry: Telling) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(entry.record)["data"]["after"]
    return found


@dataclass(frozen=True, slots=True)
class Redaction:
    """What an entry says of another one that lost its content."""

    tenant_id: str
    entry: int
    """The one that says it."""
    actor_id: str
    sequence: int
    """The one that was redacted."""
    hash: str
    id: str
    action: str
    occurred_at: datetime
    reason: str

    @classmethod
    def of(cls, entry: Telling) -> Redaction | None:
        """Reads it from an entry that tells of one."""
        try:
            after = _after(entry)
            return cls(
                tenant_id=entry.tenant_id,
                entry=entry.sequence,
                actor_id=entry.columns.actor_id,
                sequence=int(after["sequence"]),
                hash=str(after["hash"]),
                id=entry.columns.resource.rpartition("/")[2],
                action=str(after["action"]),
                occurred_at=datetime.fromisoformat(after["occurredAt"]),
                reason=str(after["reason"]),
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None


@dataclass(frozen=True, slots=True)
class Pruning:
    """What an entry says of those at the beginning of its chain that were taken out."""

    tenant_id: str
    entry: int
    """The one that says it."""
    actor_id: str
    first: int
    last: int
    hash: str
    """Of the last one."""
    archive: str
    """The SHA-256 of the archived file that has them."""

    @classmethod
    def of(cls, entry: Telling) -> Pruning | None:
        """Reads it from an entry that tells of one."""
        try:
            after = _after(entry)
            return cls(
                tenant_id=entry.tenant_id,
                entry=entry.sequence,
                actor_id=entry.columns.actor_id,
                first=int(after["from"]),
                last=int(after["to"]),
                hash=str(after["hash"]),
                archive=str(after["archiveSha256"]),
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None

    def explains(self, base: int, end: int, found: str) -> bool:
        """Whether it is what was taken out up to a base, on the way to an end with this hash."""
        return self.first - 1 <= base and (self.last, self.hash) == (end, found)

    def reaches(self, base: int, found: str) -> bool:
        """Whether it took out an entry with this hash: its last one, or one behind which it was cut
        short and another pruning went on."""
        return self.first <= base < self.last or (self.last, self.hash) == (base, found)


@dataclass(frozen=True, slots=True)
class Restore:
    """What an entry says of a restore: up to where the backup had the chain, and when."""

    entry: int
    kept: int
    point: datetime

    @classmethod
    def of(cls, entry: Telling) -> Restore | None:
        """Reads it from an entry that tells of one."""
        try:
            after = _after(entry)
            point = datetime.fromisoformat(after["point"])
            return cls(entry.sequence, int(after["sequence"]), point)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None
