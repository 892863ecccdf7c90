"""Steps over a JSON value without reading it, at a cost that its shape cannot raise.

A value of millions of empty lists would take seconds if each bracket were looked at. So a stretch
of text is cut down by operations on whole byte strings: escapes, strings and pairs of brackets
vanish, and what is left says how deep the stretch ends and how deep it is at its least. Only the
stretch in which the value ends is looked at character by character.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Final

_MARKS: Final = b'"[]{}'
_BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
_NO_MARKS: Final = bytes(set(range(256)) - set(_MARKS))
_RUN: Final = re.compile(rb"\[+|\]+")
_MARK: Final = re.compile(rb'[\\"\[\]{}]')
_SHORTEST: Final = 1 << 10
_LONGEST: Final = 64 << 10
"""Bytes of a stretch: below a millisecond, and some 20 ms for the one that is looked at closely."""
_PAUSE: Final = 512 << 10
_WORTH: Final = 16
"""Another round of taking pairs away is worth it when the last one took one byte of so many. Then
all rounds together read so many times the text at most, and else so few pairs are left that the
runs of brackets are few."""


class EndlessError(ValueError):
    """The value does not end."""


def closing(body: bytes, at: int) -> Generator[None, None, int]:
    """Where the list, object or string ends that begins at a position; yields where it pauses.

    Brackets of the two kinds stand for each other: whether the value is JSON is not checked.

    Raises:
        EndlessError: it ends nowhere.
    """
    depth, quoted = (0, True) if body[at : at + 1] == b'"' else (1, False)
    at += 1
    size, paused = _SHORTEST, at
    while at < len(body):
        end = min(at + size, len(body))
        part = body[at:end]
        if (len(part) - len(part.rstrip(b"\\"))) % 2:
            # An escape is not cut in two.
            end += 1
            part = body[at:end]
        plain = part.replace(b"\\\\", b"").replace(b'\\"', b"")
        if depth == 0:
            ends, lowest, change, quotes = b'"' in plain, 0, 0, 0
        else:
            pieces = plain.translate(_BRACKETS, _NO_MARKS).split(b'"')
            lowest, change = _levels(b"".join(pieces[quoted::2]))
            ends, quotes = depth + lowest <= 0, len(pieces) - 1
        if ends:
            return at + _end(part, depth, quoted)
        depth += change
        quoted ^= bool(quotes % 2)
        at, size = end, min(2 * size, _LONGEST)
        if at - paused >= _PAUSE:
            paused = at
            yield
    raise EndlessError(at)


def _levels(brackets: bytes) -> tuple[int, int]:
    """How far the depth falls at its lowest, and how far it has changed at the end."""
    while True:
        shorter = brackets.replace(b"[]", b"")
        taken = len(brackets) - len(shorter)
        brackets = shorter
        if taken * _WORTH <= len(brackets):
            break
    lowest = depth = 0
    for run in _RUN.finditer(brackets):
        begin, end = run.span()
        depth += end - begin if brackets[begin] == 0x5B else begin - end
        lowest = min(lowest, depth)
    return lowest, depth


def _end(part: bytes, depth: int, quoted: bool) -> int:
    """Where in a stretch the value ends."""
    at = 0
    while (found := _MARK.search(part, at)) is not None:
        char, at = found[0], found.end()
        if char == b"\\":
            # Of the escapes, also of those outside strings, these two alone hide something.
            at += part[at : at + 1] in (b"\\", b'"')
        elif char == b'"':
            quoted = not quoted
        elif not quoted:
            depth += 1 if char in b"[{" else -1
        if depth == 0 and not quoted:
            return at
    raise EndlessError(at)
