"""When work is due that comes again: each day at a time, or after an interval."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Final

_TIME: Final = re.compile(r"(?P<hour>[01]?\d|2[0-3]):(?P<minute>[0-5]\d)")
_INTERVAL: Final = re.compile(r"(?P<number>[1-9]\d{0,3})(?P<unit>[mhdw])")
_UNITS: Final = {
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
_LEAST: Final = timedelta(minutes=5)
FORMS: Final = "a time of day (UTC) such as 02:30, or an interval such as 6h, 1d or 1w"


def interval(text: str) -> timedelta:
    """Reads `30m`, `6h`, `1d`, `1w`.

    Raises:
        ValueError: it is no interval.
    """
    found = _INTERVAL.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no interval such as 30m, 6h, 1d or 1w")
    return int(found["number"]) * _UNITS[found["unit"]]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A daily time, or an interval."""

    every: timedelta
    at: time | None = None
    """The time of day, UTC."""

    @classmethod
    def read(cls, text: str) -> Schedule:
        """Reads a setting.

        Raises:
            ValueError: it is neither.
        """
        if found := _TIME.fullmatch(text.strip()):
            return cls(timedelta(days=1), time(int(found["hour"]), int(found["minute"])))
        try:
            every = interval(text)
        except ValueError as error:
            raise ValueError(f"{text!r} is not {FORMS}") from error
        if every < _LEAST:
            raise ValueError(f"{text!r} is less than five minutes")
        return cls(every)

    def due(self, now: datetime, last: datetime | None) -> datetime:
        """When it is next due: now, if a time for it has passed since it was last done."""
        if self.at is None:
            return now if last is None else max(now, last + self.every)
        today = datetime.combine(now.astimezone(UTC).date(), self.at, UTC)
        passed = today if today <= now else today - timedelta(days=1)
        if last is None or last < passed:
            return now
        return passed + timedelta(days=1)
