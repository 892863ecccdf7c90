"""What a plan would mean: how many devices get a version with which batch, and when.

Nothing here looks at a clock or a database.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Final
from uuid import UUID

from services.policy.authoring.windows import parse_window
from services.policy.rollouts.plans import Plan
from services.policy.rollouts.settings import InEffect

_FARTHEST: Final = timedelta(days=366)
_DAY_MINUTES: Final = 24 * 60
_WHOLE: Final = (0, _DAY_MINUTES)
_NONE: Final = timedelta(0)


@dataclass(frozen=True, slots=True)
class Kind:
    """Devices with the same groups."""

    group_ids: frozenset[UUID]
    devices: int


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A batch as it would come."""

    name: str
    devices: int
    """That get it with this batch, beside those of the batches before."""
    opens_at: datetime | None
    """At the earliest; `None` for in more than a year."""
    approval: bool


@dataclass(frozen=True, slots=True)
class Outlook:
    """How a version would come to devices."""

    plan: Plan
    steps: tuple[PlannedStep, ...]
    completes_at: datetime | None
    """At the earliest; `None` for in more than a year."""
    outside_windows: bool
    """Whether the first batch waits for the plan's next window."""


def outlook(
    plan: Plan, kinds: Sequence[Kind], effect: InEffect, starts_at: datetime, *, urgent: bool
) -> Outlook:
    """How a version would come to devices, if each batch passes as soon as it may.

    Args:
        plan: as `plans.checked` has it.
        kinds: the devices that it is for.
        effect: what counts for publishes of their organisation.
        starts_at: when the first batch may be opened.
        urgent: whether freezes and windows do not count.
    """
    hours = _Hours(plan, effect, starts_at, urgent=urgent)
    steps: list[PlannedStep] = []
    before, served = 0, _NONE
    for batch, all_of in zip(plan.batches, _cumulated(plan, kinds), strict=True):
        opens_at = hours.next_open()
        steps.append(PlannedStep(batch.name, all_of - before, opens_at, batch.approval))
        is_last = len(steps) == len(plan.batches)
        wanted = all_of if is_last else ceil(all_of * plan.health.min_seen_percent / 100)
        needs = batch.soak
        if plan.max_per_minute:
            needs = max(needs, timedelta(minutes=wanted / plan.max_per_minute) - served)
        hours.serve(needs)
        before, served = all_of, served + needs
    return Outlook(
        plan,
        tuple(steps),
        hours.next_open(),
        not urgent and not plan.is_open(starts_at, effect.zone),
    )


def _cumulated(plan: Plan, kinds: Sequence[Kind]) -> list[int]:
    """How many devices are in open batches, batch by batch."""
    found: list[int] = []
    percent, groups = 0, frozenset[UUID]()
    for batch in plan.batches:
        percent, groups = max(percent, batch.percent), groups | set(batch.group_ids)
        hundredths = sum(
            one.devices * (percent if groups.isdisjoint(one.group_ids) else 100) for one in kinds
        )
        found.append(round(hundredths / 100))
    return found


class _Hours:
    """The times at which devices get something, from a moment on, for a year."""

    def __init__(self, plan: Plan, effect: InEffect, start: datetime, *, urgent: bool) -> None:
        self._spans = iter([(start, start + _FARTHEST)]) if urgent else _spans(plan, effect, start)
        self._now: tuple[datetime, datetime] | None = next(self._spans, None)

    def next_open(self) -> datetime | None:
        """The first moment that is left; `None` for none."""
        while self._now is not None and self._now[0] >= self._now[1]:
            self._now = next(self._spans, None)
        return None if self._now is None else self._now[0]

    def serve(self, needs: timedelta) -> None:
        """Lets so much of the time pass."""
        while needs > _NONE and self.next_open() is not None:
            assert self._now is not None
            begin, end = self._now
            passed = min(needs, end - begin)
            self._now = (begin + passed, end)
            needs -= passed


def _spans(plan: Plan, effect: InEffect, start: datetime) -> Iterator[tuple[datetime, datetime]]:
    """The spans outside of freezes and within windows, in UTC, each within a day of the zone."""
    windows = [span for window in plan.windows for span in parse_window(window)]
    latest = start
    first = start.astimezone(effect.zone).replace(hour=0, minute=0, second=0, microsecond=0)
    for number in range(_FARTHEST.days):
        midnight = first + timedelta(days=number)
        day = midnight.date()
        if any(one.first <= day <= one.last for one in effect.freezes):
            continue
        begins = midnight.isoweekday() % 7 * _DAY_MINUTES
        minutes = [(one - begins, end - begins) for one, end in windows] if windows else [_WHOLE]
        for begin, end in sorted(one for one in minutes if 0 <= one[0] < _DAY_MINUTES):
            # Times of the wall: a day in which clocks are set has another length.
            span = [
                (midnight + timedelta(minutes=minute)).astimezone(UTC) for minute in (begin, end)
            ]
            if span[1] > latest:
                # Windows may overlap.
                yield max(span[0], latest), span[1]
                latest = span[1]
