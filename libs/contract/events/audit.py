"""What audit tells: exports of the audit log, and restores of the installation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Final

from contract.events.base import AT, ID, Action, Export, KeyRotation


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredBackup:
    """Up to when, and up to which entry of the chain, the backup goes."""

    point: datetime
    sequence: int
    hash: str
    release: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditExported(Action):
    """A user began to export the audit log, or to verify it."""

    NAME: ClassVar[str] = "audit.exported"
    RESOURCE: ClassVar[str] = "tenants/{id}/audit"
    after: Export


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored(Action):
    """The database went back to a backup; the chain goes on behind the entry that it ends with."""

    NAME: ClassVar[str] = "audit.restored"
    RESOURCE: ClassVar[str] = "backups/{id}"
    after: RestoredBackup


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRotated(KeyRotation):
    """The next key that signs checkpoints was made."""

    NAME: ClassVar[str] = "audit.key_rotated"


EXAMPLES: Final[tuple[Action, ...]] = (
    AuditExported(
        id=ID, after=Export(format="csv", filter={"occurredAfter": "2026-09-01T07:58:03Z"})
    ),
    Restored(id=ID, after=RestoredBackup(point=AT, sequence=41, hash="9f" * 32, release="0.1.0")),
    KeyRotated.example("audit"),
)
"""One of each; this is the list of what audit sends."""
