"""Times as options have them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from cli.errors import CliError

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_AHEAD: Final = re.compile(r"([0-9]+)(m|h|d|w)")
_AHEAD_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def duration(text: str, option: str) -> float:
    """Seconds of `90`, `90s`, `5m`, `2h` or `250ms`.

    Raises:
        CliError: it is none of these.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise CliError(f"{option} is a time like 90, 90s, 5m or 2h, not {text!r}")
    return float(match[1]) * _UNITS[match[2] or "s"]


def rfc3339(text: str, option: str) -> str:
    """A time as the API takes it; empty stays so.

    A day begins at midnight, and what has no offset is in UTC.

    Raises:
        CliError: it is no time.
    """
    if not text:
        return ""
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise CliError(
            f"{option} is a day like 2026-08-31, or a time like 2026-08-31T07:00:00Z, not {text!r}"
        ) from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).isoformat()


def later(text: str, option: str, at: datetime) -> str:
    """A time as the API takes it: so long after `at` (`30d`, `12h`), or as `rfc3339` takes it.

    Empty stays so.

    Raises:
        CliError: it is none of these.
    """
    text = text.strip()
    match = _AHEAD.fullmatch(text)
    try:
        if match is not None:
            ahead = timedelta(**{_AHEAD_UNITS[match[2]]: int(match[1])})
            return (at + ahead).isoformat(timespec="seconds")
        return rfc3339(text, option)
    except (CliError, OverflowError, ValueError):
        raise CliError(
            f"{option} is how long from now, like 30d or 12h, a day like 2026-08-31, or a time like"
            f" 2026-08-31T07:00:00Z, not {text!r}"
        ) from None
