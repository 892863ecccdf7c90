"""What the chains are told when the log goes on behind an earlier state of the database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from contract.events.audit import Restored, RestoredBackup
from servicekit.messaging.events import CloudEvent


@dataclass(frozen=True, slots=True)
class End:
    """Where a chain ended when the database went back."""

    tenant_id: UUID
    sequence: int
    hash: bytes
    point: datetime
    """Up to when the database has what happened."""


@dataclass(frozen=True, slots=True)
class Restore:
    """What each chain is told."""

    backup_id: UUID
    """Nil when the database went back without our restore."""
    release: str
    tree_before: str
    """The origin of the log that ended,"""
    tree: str
    """and of the one that began. Empty for none."""
    actor: str
    actor_id: str = ""

    def event(self, end: End) -> CloudEvent:
        """The event of a chain."""
        return CloudEvent(
            Restored(
                id=self.backup_id,
                after=RestoredBackup(
                    point=end.point,
                    sequence=end.sequence,
                    hash=end.hash.hex(),
                    release=self.release,
                    tree_before=self.tree_before,
                    tree=self.tree,
                ),
            ),
            end.tenant_id,
            actor=self.actor,
            actor_id=self.actor_id,
        )
