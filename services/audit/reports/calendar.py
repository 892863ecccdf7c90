"""When schedules are due, in their own time zone."""

from __future__ import annotations

import calendar
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from servicekit.errors import invalid_field
from services.audit.reports.domain import Schedule

DAY: Final = "day"
WEEK: Final = "week"
MONTH: Final = "month"
_LAST: Final = {DAY: 1, WEEK: 7, MONTH: 31}


def zone_of(name: str) -> tzinfo:
    """The time zone with a name of IANA's.

    Raises:
        DomainError: INVALID_ARGUMENT when there is none.
    """
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise invalid_field(
            "timeZone", "must be the name of a time zone, such as Europe/Berlin"
        ) from None


def checked_day(every: str, on_day: int) -> int:
    """The day on which a schedule is due.

    Raises:
        DomainError: INVALID_ARGUMENT when the week or the month has no such day.
    """
    day = on_day or 1
    if day > _LAST[every]:
        raise invalid_field("on", f"must be at most {_LAST[every]} of a {every}")
    return day


def next_run(schedule: Schedule, after: datetime) -> datetime:
    """The first time behind another one at which a schedule is due, in UTC."""
    zone = zone_of(schedule.time_zone)
    today = after.astimezone(zone).date()
    # Two months hold a day of every kind.
    for ahead in range(63):
        day = today + timedelta(days=ahead)
        if _is_on(schedule, day):
            # An hour that the clock skips is the one behind it.
            at = datetime.combine(day, time(schedule.hour), zone).astimezone(UTC)
            if at > after:
                return at
    raise AssertionError("a schedule is due once in two months")


def period_before(schedule: Schedule, at: datetime) -> tuple[datetime, datetime]:
    """The day, the week or the month that ended last before a time, from and until, in UTC."""
    zone = zone_of(schedule.time_zone)
    today = at.astimezone(zone).date()
    begins: dict[str, Callable[[date], date]] = {
        DAY: lambda day: day,
        WEEK: lambda day: day - timedelta(days=day.weekday()),
        MONTH: lambda day: day.replace(day=1),
    }
    end = begins[schedule.every](today)
    begin = begins[schedule.every](end - timedelta(days=1))
    return _midnight(begin, zone), _midnight(end, zone)


def _is_on(schedule: Schedule, day: date) -> bool:
    if schedule.every == WEEK:
        return day.isoweekday() == schedule.on_day
    if schedule.every == MONTH:
        last = calendar.monthrange(day.year, day.month)[1]
        return day.day == min(schedule.on_day, last)
    return True


def _midnight(day: date, zone: tzinfo) -> datetime:
    return datetime.combine(day, time(), zone).astimezone(UTC)
