"""Maintenance windows: the grammar of the released agent's update manager.

`Mon-Fri 22:00-05:00`, `Mon,Tue 01:00-02:00`, `* 01:00-03:00`, `Sat Sun 00:00-00:00`, `3:00-4:30`.
Days are English names, whole or cut to three letters; a range may go over the end of the week;
without days (or with `*`) it is every day. A window that ends before it starts goes on into the
next day, and one that ends when it starts lasts all day. Times are the device's local time.
"""

from __future__ import annotations

import re
from typing import Final

_DAY_MINUTES: Final = 24 * 60
_DAYS: Final = {
    name: number
    for number, names in enumerate(
        (
            ("sun", "sunday"),
            ("mon", "monday"),
            ("tue", "tues", "tuesday"),
            ("wed", "weds", "wednesday"),
            ("thu", "thur", "thurs", "thursday"),
            ("fri", "friday"),
            ("sat", "saturday"),
        )
    )
    for name in names
}
# What Go's strings.Fields splits at; str.split also takes U+001C to U+001F.
_BLANKS: Final = re.compile(
    "[\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
)
_NUMBER: Final = re.compile(r"\+?[0-9]{1,9}")


def parse_window(text: str) -> list[tuple[int, int]]:
    """The minutes of the week, from Sunday 00:00 on, that a window covers: start and end of each.

    Raises `ValueError` for what the agent does not take, and for a blank text, which it skips.
    """
    words = [word for word in _BLANKS.split(text) if word]
    if not words:
        raise ValueError("blank")
    start, end = _range(words[-1])
    found: list[tuple[int, int]] = []
    for day in _days(words[:-1]) or range(7):
        midnight = day * _DAY_MINUTES
        if start == end:
            found.append((midnight, midnight + _DAY_MINUTES))
        elif start < end:
            found.append((midnight + start, midnight + end))
        else:
            next_midnight = (day + 1) % 7 * _DAY_MINUTES
            found.append((midnight + start, midnight + _DAY_MINUTES))
            found.append((next_midnight, next_midnight + end))
    return found


def is_blank(text: str) -> bool:
    """Whether there is nothing that could be a window."""
    return not _BLANKS.sub("", text)


def is_window(text: str) -> bool:
    """Whether the agent takes the window."""
    try:
        parse_window(text)
    except ValueError:
        return False
    return True


def _range(text: str) -> tuple[int, int]:
    start, end = text.split("-")
    return _clock(start), _clock(end)


def _clock(text: str) -> int:
    hour, minute = text.split(":")
    return _number(hour, 23) * 60 + _number(minute, 59)


def _number(text: str, largest: int) -> int:
    if not _NUMBER.fullmatch(text) or int(text) > largest:
        raise ValueError(text)
    return int(text)


def _days(words: list[str]) -> list[int]:
    if words == ["*"]:
        return []
    found: dict[int, None] = {}
    for token in filter(None, ",".join(words).split(",")):
        first, dash, last = token.partition("-")
        day, until = _day(first), _day(last) if dash else _day(first)
        found[day] = None
        while day != until:
            day = (day + 1) % 7
            found[day] = None
    return list(found)


def _day(name: str) -> int:
    if name.lower() not in _DAYS:
        raise ValueError(name)
    return _DAYS[name.lower()]
