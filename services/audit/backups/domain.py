"""What is known of backups and of rehearsed restores."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

Kind = Literal["backup", "rehearsal"]

KEPT: Final = 200
"""Runs of each kind of which something is known."""


@dataclass(frozen=True, slots=True)
class Run:
    """A backup or a rehearsal that has ended."""

    id: UUID
    kind: Kind
    succeeded: bool
    started_at: datetime
    """For a backup: everything that was acknowledged by then is in it."""
    ended_at: datetime
    target: str
    """Where the archive is kept."""
    name: str
    bytes: int
    max_age_seconds: int
    """After which the next backup is late."""
    detail: str
    """What went wrong, or what a rehearsal counted."""


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest runs; `None` where there was none."""

    backup: Run | None = None
    failed_backup: Run | None = None
    rehearsal: Run | None = None
    failed_rehearsal: Run | None = None
