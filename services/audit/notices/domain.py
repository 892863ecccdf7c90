"""Notices: what they say, and their bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from servicekit.texts import plain_name, plain_text

MOST_WAITING: Final = 200
"""Notices of a tenant and of what they tell that identity does not have yet."""
MOST_AN_HOUR: Final = 20
"""Notices of a tenant about alerts, besides the first of each kind."""
KEPT: Final = timedelta(days=1)
"""So long one that has ended stays, to be counted."""
LIFE: Final = timedelta(days=3)
"""So long it is tried."""
_LONGEST_SUBJECT: Final = 150
_PAUSES: Final = (10.0, 30.0, 120.0, 600.0)


@dataclass(frozen=True, slots=True)
class Source:
    """What a notice tells of, and how many of that a tenant gets in an hour."""

    group: str
    most: int
    kind: str = ""
    """The first of each kind in an hour is never left out."""

    @property
    def name(self) -> str:
        """As it is stored."""
        return f"{self.group}:{self.kind}"

    @classmethod
    def alert(cls, kind: str) -> Source:
        """Alerts of a kind."""
        return cls("alert", MOST_AN_HOUR, kind)


DIGEST: Final = Source("digest", 2)
"""The daily mail."""
CHECKPOINT: Final = Source("checkpoint", 1)
"""The checkpoint of the day."""
REPORTS: Final = Source("reports", 100)
"""Reports of schedules, of which a tenant has at most 50."""


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
            "subject": plain_name(" ".join(self.subject.split()))[:_LONGEST_SUBJECT],
            "paragraphs": [plain_text(one) for one in self.paragraphs],
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
