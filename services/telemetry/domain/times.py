"""Times as devices write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

_RFC3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII
)
_SHAPE: Final = "must be a time in RFC 3339"


def parse_time(text: object) -> datetime:
    """Reads an RFC 3339 time; digits behind the microseconds are dropped.

    Raises:
        ValueError: with the rule that the text breaks.
    """
    if not isinstance(text, str):
        raise ValueError(_SHAPE)
    if len(text) > 64 or _RFC3339.fullmatch(text) is None:
        raise ValueError(_SHAPE)
    try:
        time = datetime.fromisoformat(text.upper())
        return time if time.tzinfo is UTC else time.astimezone(UTC)
    except (ValueError, OverflowError) as broken:
        raise ValueError(_SHAPE) from broken


def format_time(time: datetime) -> str:
    """The time in RFC 3339, in UTC."""
    in_utc = time if time.tzinfo is UTC else time.astimezone(UTC)
    return f"{in_utc.isoformat()[:-6]}Z"
