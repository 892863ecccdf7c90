"""Times from outside, and times in the database: the range, and the only readers of both.

PostgreSQL's `timestamptz` holds more than Python's `datetime`: infinities, and years before 1 and
after 9999. asyncpg answers the former without an offset, and fails for the latter. So the range of
times that anybody may give is narrower than both, and what is in a database all the same is read as
the nearest time that there is.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    import asyncpg

EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""What claims to be older comes from a clock that is not set, as Go's zero time does."""
TOO_LATE: Final = datetime(9999, 12, 31, tzinfo=UTC)
"""The first time that is too late: with a day to spare, no offset leads beyond the year 9999."""
RULE: Final = "must be a time from 1970 to 9999"
BEGINNING: Final = datetime.min.replace(tzinfo=UTC)
"""Stands for PostgreSQL's `-infinity`, and for all before the year 1."""
END: Final = datetime.max.replace(tzinfo=UTC)
"""Stands for PostgreSQL's `infinity`."""

_SHAPE: Final = "must be a time in RFC 3339"
_RFC3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:)(\d\d)((?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d))", re.ASCII
)
_FAR: Final = re.compile(r"\d{5,}-", re.ASCII)
_LONGEST: Final = 64
_LEAP_SECOND: Final = "60"
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""Where PostgreSQL counts from, in microseconds."""
_MICROSECOND: Final = timedelta(microseconds=1)
_FIRST: Final = (BEGINNING - _EPOCH) // _MICROSECOND
_LAST: Final = (END - _EPOCH) // _MICROSECOND
_MINUS_INFINITY: Final = -(1 << 63)
_INFINITY: Final = (1 << 63) - 1


def is_usable(time: datetime) -> bool:
    """Whether a time is in the range that the product carries."""
    return EARLIEST <= time < TOO_LATE


def in_utc(time: datetime) -> datetime:
    """The same time in UTC; one without an offset is in UTC already, whatever `TZ` says."""
    if time.tzinfo is UTC:
        return time
    if time.tzinfo is None:
        return time.replace(tzinfo=UTC)
    try:
        return time.astimezone(UTC)
    except OverflowError:
        return BEGINNING if time.year == 1 else END


def parse_rfc3339(text: object) -> datetime:
    """Reads a time; digits behind the microseconds are dropped.

    A leap second is the second behind it, for `datetime` has none.

    Raises:
        ValueError: with the rule that the text breaks; also when the time is out of the range.
    """
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise ValueError(_SHAPE)
    if (parts := _RFC3339.fullmatch(text)) is None:
        raise ValueError(_SHAPE)
    try:
        if parts[2] == _LEAP_SECOND:
            time = datetime.fromisoformat(f"{parts[1]}59{parts[3]}".upper()) + timedelta(seconds=1)
        else:
            time = datetime.fromisoformat(text.upper())
    except OverflowError as broken:
        raise ValueError(RULE) from broken
    except ValueError as broken:
        raise ValueError(_SHAPE) from broken
    time = in_utc(time)
    if not is_usable(time):
        raise ValueError(RULE)
    return time


def format_rfc3339(time: datetime) -> str:
    """The time in RFC 3339, in UTC."""
    return f"{in_utc(time).isoformat()[:-6]}Z"


def optional_rfc3339(time: datetime | None) -> str | None:
    """The time in RFC 3339, if there is one."""
    return format_rfc3339(time) if time is not None else None


async def read_all_times(connection: asyncpg.Connection[Any]) -> None:
    """Has a connection read whatever `timestamptz` holds as a time in UTC."""
    await connection.set_type_codec(
        "timestamptz",
        schema="pg_catalog",
        encoder=to_microseconds,
        decoder=from_microseconds,
        format="tuple",
    )


def from_microseconds(value: tuple[int]) -> datetime:
    """A time as PostgreSQL counts it; the nearest one that there is."""
    microseconds = value[0]
    if _FIRST < microseconds < _LAST:
        return _EPOCH + timedelta(0, 0, microseconds)
    if microseconds == _INFINITY:
        return END
    # Not `END`, which is written as infinity again: a list goes on behind it.
    return END - _MICROSECOND if microseconds >= _LAST else BEGINNING


def from_text(text: str) -> datetime:
    """A time as PostgreSQL writes it (`DateStyle` ISO, in UTC); the nearest one that there is.

    Raises:
        ValueError: it is no such text.
    """
    if text == "infinity":
        return END
    if text == "-infinity" or text.endswith(" BC"):
        return BEGINNING
    if _FAR.match(text) is not None:
        return END - _MICROSECOND
    return in_utc(datetime.fromisoformat(text))


def to_microseconds(time: datetime) -> tuple[int]:
    """The reverse; the two that stand for an infinity become it again.

    Raises:
        ValueError: it is no time, or has no offset.
    """
    if not isinstance(time, datetime) or time.tzinfo is None:
        raise ValueError("a time with its offset is needed")
    if time == BEGINNING:
        return (_MINUS_INFINITY,)
    if time == END:
        return (_INFINITY,)
    return ((time - _EPOCH) // _MICROSECOND,)


@cache
def zone_of(name: str) -> ZoneInfo | None:
    """A time zone by its name (IANA, as `Europe/Berlin`); `None` where there is none of it."""
    try:
        return ZoneInfo(name)
    except (OSError, LookupError, ValueError):
        return None
