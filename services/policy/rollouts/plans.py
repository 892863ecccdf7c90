"""Plans of rollouts: the batches, the limits, and when devices get anything."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from servicekit.errors import invalid_field
from services.policy.authoring.windows import parse_window

MOST_BATCHES: Final = 20
MOST_WINDOWS: Final = 20
_EVERYBODY: Final = 100
_LONGEST: Final = timedelta(days=30)
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}
_SPAN: Final = re.compile(r"([0-9]{1,4})([mhd])")


@dataclass(frozen=True, slots=True)
class Batch:
    """Devices that get a version at the same time, with those of the batches before."""

    name: str
    percent: int = 0
    """So many percent of the devices, those of the batches before among them."""
    group_ids: tuple[UUID, ...] = ()
    soak: timedelta = timedelta(hours=24)
    """So long it is open before the next one may be."""
    approval: bool = False
    """Whether somebody else than who asked for the rollout has to let it open."""


@dataclass(frozen=True, slots=True)
class Health:
    """When a rollout stops. Percents are of the devices that got the version."""

    max_failed_percent: int = 2
    """That did not apply it."""
    max_trouble_percent: int = 5
    """That told of failures since, and of none on the day before."""
    max_lost_percent: int = 5
    """That went silent since; so much more than devices that did not get it yet."""
    at_least: int = 3
    """Fewer devices than that stop nothing before the batch could pass."""
    confirm_within: timedelta = timedelta(hours=2)
    """A device that still calls after that, without having applied it, failed."""
    min_seen_percent: int = 20
    """So many of a batch's devices have to be seen before it passes."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a version comes to devices."""

    batches: tuple[Batch, ...]
    health: Health = Health()
    roll_back: bool = False
    """Whether it is taken back, and not only stopped, when a limit is broken."""
    windows: tuple[str, ...] = ()
    """When devices get it, in the organisation's time zone; always without any."""
    max_per_minute: int = 0
    """At most so many devices get it within a minute; 0 for as fast as they ask."""

    def text(self) -> str:
        """As it is stored."""
        return json.dumps(asdict(self), default=_stored)

    @classmethod
    def read(cls, text: str) -> Plan:
        """What `text` wrote."""
        found: dict[str, Any] = json.loads(text)
        health = dict(found["health"])
        health["confirm_within"] = timedelta(seconds=health["confirm_within"])
        return cls(
            tuple(_batch(one) for one in found["batches"]),
            Health(**health),
            found["roll_back"],
            tuple(found["windows"]),
            found.get("max_per_minute", 0),
        )

    def approved_first(self) -> Plan:
        """The plan whose first batch has to be approved."""
        return replace(self, batches=(replace(self.batches[0], approval=True), *self.batches[1:]))

    def is_open(self, now: datetime, zone: ZoneInfo) -> bool:
        """Whether devices may get something at a time."""
        local = now.astimezone(zone)
        minute = (local.isoweekday() % 7 * 24 + local.hour) * 60 + local.minute
        return not self.windows or any(
            start <= minute < end for window in self.windows for start, end in parse_window(window)
        )


def _stored(value: object) -> object:
    if isinstance(value, timedelta):
        return int(value.total_seconds())
    return str(value)


def _batch(stored: Mapping[str, Any]) -> Batch:
    return Batch(
        stored["name"],
        stored["percent"],
        tuple(map(UUID, stored["group_ids"])),
        timedelta(seconds=stored["soak"]),
        stored["approval"],
    )


NOW: Final = Plan((Batch("everybody", _EVERYBODY, soak=timedelta(hours=1)),))
"""All devices at once, watched for an hour."""
PRESETS: Final[Mapping[str, Plan]] = {
    "careful": Plan(tuple(Batch(f"{percent} %", percent) for percent in (1, 10, 50)) + NOW.batches),
    "now": NOW,
}


def span_of(text: str, field: str) -> timedelta:
    """How long `24h`, `30m` or `7d` is.

    Raises:
        DomainError: INVALID_ARGUMENT with the field.
    """
    found = _SPAN.fullmatch(text)
    if found is None:
        raise invalid_field(field, "must be a time such as 30m, 24h or 7d")
    span = timedelta(**{_UNITS[found[2]]: int(found[1])})
    if span > _LONGEST:
        raise invalid_field(field, "must be at most 30d")
    return span


def checked(plan: Plan, field: str = "plan") -> Plan:
    """A plan with a last batch for everybody.

    Args:
        field: where the plan is in the request.

    Raises:
        DomainError: INVALID_ARGUMENT with the field.
    """
    if len(plan.batches) > MOST_BATCHES:
        raise invalid_field(f"{field}.batches", f"must have at most {MOST_BATCHES} items")
    last = 0
    for index, batch in enumerate(plan.batches):
        where = f"{field}.batches[{index}]"
        if bool(batch.percent) == bool(batch.group_ids):
            raise invalid_field(where, "must have either percent or groupIds")
        if not batch.group_ids and not last < batch.percent <= _EVERYBODY:
            raise invalid_field(
                f"{where}.percent", "must be above that of the batch before, and at most 100"
            )
        last = batch.percent or last
    if last == _EVERYBODY and plan.batches[-1].percent != _EVERYBODY:
        raise invalid_field(f"{field}.batches", "nobody is left for the batches behind 100 percent")
    _check_windows(plan.windows, f"{field}.windows")
    if last != _EVERYBODY:
        return replace(plan, batches=(*plan.batches, *NOW.batches))
    return plan


def _check_windows(windows: Sequence[str], field: str) -> None:
    if len(windows) > MOST_WINDOWS:
        raise invalid_field(field, f"must have at most {MOST_WINDOWS} items")
    for index, window in enumerate(windows):
        try:
            parse_window(window)
        except ValueError:
            raise invalid_field(
                f"{field}[{index}]",
                "must be such as Mon-Fri 16:00-07:00, Sat,Sun 00:00-00:00 or * 18:00-06:00",
            ) from None
