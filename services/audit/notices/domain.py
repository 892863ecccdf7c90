"""Notices: what they say, and their bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

MOST_WAITING: Final = 200
"""Notices of a tenant that identity does not have yet."""
MOST_AN_HOUR: Final = 20
"""Notices of a tenant."""
KEPT: Final = timedelta(days=1)
"""So long one that has ended stays, to be counted."""
LIFE: Final = timedelta(days=3)
"""So long it is tried."""
_LONGEST_SUBJECT: Final = 150
_PAUSES: Final = (10.0, 30.0, 120.0, 600.0)


@dataclass(frozen=True, slots=True)
class Text:
    """What a mail says in one language: `en` or `de`."""

    language: str
    subject: str
    paragraphs: Sequence[str]

    def json(self) -> Mapping[str, Any]:
        """As it is stored."""
        return {
            "language": self.language,
            "subject": " ".join(self.subject.split())[:_LONGEST_SUBJECT],
            "paragraphs": list(self.paragraphs),
        }


@dataclass(frozen=True, slots=True)
class Notice:
    """A mail that waits."""

    id: UUID
    """The same mail has the same one, however often it is sent."""
    tenant_id: UUID
    texts: Sequence[Text]
    addresses: Sequence[str]
    roles: Sequence[str]
    """Active users of the tenant with these roles get it, too."""
    created_at: datetime
    attempts: int = 0


def pause(attempts: int) -> timedelta:
    """When it is tried again after so many attempts (at least one)."""
    return timedelta(seconds=_PAUSES[min(attempts, len(_PAUSES)) - 1])
