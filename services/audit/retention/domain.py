"""For how long a tenant's log is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

FOR_EVER: Final = 0
"""Instead of a number of years."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Why nothing of a log, and of those below it, may be pruned or redacted."""

    reason: str
    set_from: UUID
    """The tenant of who set it: nobody below may release it."""
    set_by: str
    set_at: datetime


@dataclass(frozen=True, slots=True)
class Rule:
    """What is said of the log of a tenant, by itself and by those above it."""

    tenant_id: UUID
    years: Mapping[UUID, int] = field(default_factory=dict)
    """For how many, by the tenant of who said it: this one, or one above it."""
    hold: Hold | None = None
    revision: int = 0
    updated_at: datetime | None = None
    updated_by: str = ""

    @property
    def keep_from(self) -> UUID | None:
        """Who said the longest time; `None` where nobody says one."""
        return max(self.years, key=lambda one: length(self.years[one]), default=None)

    @property
    def keep_years(self) -> int | None:
        """The longest time."""
        return None if self.keep_from is None else self.years[self.keep_from]


@dataclass(frozen=True, slots=True)
class InForce:
    """What counts for a log."""

    keep_years: int
    keep_from: UUID
    """Whose rule it is,"""
    held_by: UUID | None
    """and whose hold keeps it."""


def in_force(line: Sequence[UUID], said: Mapping[UUID, Rule]) -> InForce:
    """What counts for the log of a tenant.

    The longest time counts, so that a tenant can keep its log longer than those above it say, and
    not shorter. Until the root says something, all logs are kept for ever.

    Args:
        line: the tenant, behind all above it, the root first.
        said: what tenants say.
    """
    rules = [said[one] for one in line if one in said]
    held = next((rule.tenant_id for rule in reversed(rules) if rule.hold is not None), None)
    of_root = said.get(line[0])
    if of_root is None or of_root.keep_years is None:
        return InForce(FOR_EVER, line[0], held)
    years = {rule.tenant_id: rule.keep_years for rule in rules if rule.keep_years is not None}
    # Of equal ones that nearest to the root.
    longest = max(years, key=lambda one: (length(years[one]), -line.index(one)))
    return InForce(years[longest], longest, held)


def length(years: int | None) -> int:
    """What compares times: for ever is the longest, nothing the shortest."""
    if years is None:
        return -1
    return 1_000 if years == FOR_EVER else years


def years_before(at: datetime, years: int) -> datetime:
    """The same day some years ago; of the 29th of February the 28th, as PostgreSQL has it."""
    try:
        return at.replace(year=at.year - years)
    except ValueError:
        return at.replace(year=at.year - years, day=28)


def is_above(line: Iterable[UUID], upper: UUID, own: UUID) -> bool:
    """Whether a tenant is above the caller's own, of those in a line, the root first."""
    found = list(line)
    return upper in found and found.index(upper) < found.index(own)
