"""Reads JSON member by member, and knows of every value where its text stands.

`json.loads` would do for states. Events need more: the exact text of a payload (order of keys,
numbers of any size), one broken event that does not take its batch with it, and pauses while a
body with 50,000 events is read. All values go through CPython's own scanner, in C.

The text is the body decoded as Latin-1, so that positions in it are positions in the bytes and
an astral character somewhere does not make the whole text four times as large. A string with
other than ASCII characters is therefore read again from its bytes (`exact`).
"""

from __future__ import annotations

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]  # typeshed does not list it
from typing import Any, Final, NamedTuple

from servicekit.errors import DomainError, invalid_field


class Unreadable(NamedTuple):
    """Stands for a value that is JSON, but not one that can be taken."""

    rule: str


class Member(NamedTuple):
    """A value and where its text begins and ends."""

    value: Any
    start: int
    end: int


class NotJsonError(ValueError):
    """The text breaks JSON's grammar."""


def _refuse_constant(name: str) -> None:
    raise NotJsonError(name)


_decoder: Final = json.JSONDecoder(parse_constant=_refuse_constant)
_scan: Final = _decoder.scan_once  # type: ignore[attr-defined]  # typeshed does not list it
_loads: Final = _decoder.decode
_blank: Final = re.compile(r"[ \t\n\r]*").match
_plain_key: Final = re.compile(r'"([^"\\\x00-\x1f]*)"[ \t\n\r]*:[ \t\n\r]*').match
_colon: Final = re.compile(r"[ \t\n\r]*:[ \t\n\r]*").match
_separator: Final = re.compile(r"[ \t\n\r]*([,\]}])[ \t\n\r]*").match
_CLOSING: Final = {"{": "}", "[": "]"}
_BRACKET_OR_QUOTE: Final = re.compile(r'["\[\]{}]')
_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_MAX_SKIPPED: Final = 500_000
"""Brackets and strings that are stepped over one by one; a body with more is refused."""


def broken_body(rule: str = "must be valid JSON") -> DomainError:
    """The body as a whole cannot be read."""
    return invalid_field("body", rule)


class JsonText:
    """The JSON text of a request's body."""

    __slots__ = ("_skipped", "body", "text")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.text = body.decode("latin-1")
        self._skipped = 0

    def begin(self, at: int, opening: str) -> tuple[bool, int]:
        """Steps into the list or object at a position; answers whether it has items, and where."""
        at = self.skip_blank(at + 1)
        if self.text[at : at + 1] == _CLOSING[opening]:
            return False, at + 1
        return True, at

    def skip_blank(self, at: int) -> int:
        """The position of the next character that is not white space."""
        return _blank(self.text, at).end()  # type: ignore[union-attr]  # it always matches

    def value(self, at: int) -> Member:
        """Reads the value that begins at a position.

        Raises:
            NotJsonError: there is none.
        """
        try:
            value, end = _scan(self.text, at)
        except (StopIteration, json.JSONDecodeError, NotJsonError) as broken:
            raise NotJsonError(at) from broken
        except RecursionError:
            return Member(Unreadable("is nested too deeply"), at, self._skip(at))
        except ValueError:
            return Member(Unreadable("holds a number with too many digits"), at, self._skip(at))
        return Member(value, at, end)

    def key(self, at: int) -> tuple[str, int]:
        """Reads a key and its colon; answers where the value begins."""
        if (plain := _plain_key(self.text, at)) is not None:
            return plain[1], plain.end()
        try:
            if self.text[at] != '"':
                raise NotJsonError(at)
            key, at = scanstring(self.text, at + 1, True)
        except (IndexError, json.JSONDecodeError) as broken:
            raise NotJsonError(at) from broken
        if (colon := _colon(self.text, at)) is None:
            raise NotJsonError(at)
        return key, colon.end()

    def more(self, at: int, closing: str) -> tuple[bool, int]:
        """Reads what follows an item: a comma, or the end of the list or object."""
        found = _separator(self.text, at)
        if found is None:
            raise NotJsonError(at)
        char = found[1]
        if char == ",":
            return True, found.end()
        if char == closing:
            return False, found.end(1)
        raise NotJsonError(at)

    def members(self, at: int) -> tuple[dict[str, Member], int]:
        """Reads the object that begins at a position, one level deep; of equal keys the last."""
        found: dict[str, Member] = {}
        more, at = self.begin(at, "{")
        while more:
            key, at = self.key(at)
            member = found[key] = self.value(at)
            more, at = self.more(member.end, "}")
        return found, at

    def raw(self, start: int, end: int) -> str:
        """The text between two positions.

        Raises:
            UnicodeDecodeError: it is not UTF-8.
        """
        return self.body[start:end].decode("utf-8")

    def exact(self, member: Member) -> Any:
        """The value with its strings as the bytes have them.

        Raises:
            UnicodeDecodeError: they are not UTF-8.
        """
        if isinstance(member.value, Unreadable) or self._is_ascii(member):
            return member.value
        try:
            return _loads(self.raw(member.start, member.end))
        except RecursionError:  # a little deeper in the stack than the first time
            return Unreadable("is nested too deeply")

    def _is_ascii(self, member: Member) -> bool:
        return self.text[member.start : member.end].isascii()

    def _skip(self, at: int) -> int:
        """Where a value ends that the scanner gave up on."""
        if (number := _NUMBER.match(self.text, at)) is not None:
            return number.end()
        depth = 0
        while (found := _BRACKET_OR_QUOTE.search(self.text, at)) is not None:
            self._skipped += 1
            if self._skipped > _MAX_SKIPPED:
                raise broken_body("is nested too deeply")
            char, at = found[0], found.end()
            if char == '"':
                try:
                    _, at = scanstring(self.text, at, True)
                except json.JSONDecodeError as broken:
                    raise NotJsonError(at) from broken
            elif char in "[{":
                depth += 1
            else:
                depth -= 1
                if depth == 0:
                    return at
        raise NotJsonError(at)
