"""Reads JSON member by member, and knows of every value where its text stands.

`json.loads` would do for states. Events need more: the exact text of a payload (order of keys,
numbers of any size), one broken event that does not take its batch with it, and pauses while a
body with 50,000 events is read. All values go through CPython's own scanner, in C.

Of a large body the scanner sees a window at a time: read values take up to thirty times the room
of their text, and a value that does not end within the window is too large for everything here.
It is stepped over without being read, with pauses (`skip`).

The text is the body decoded as Latin-1, so that positions in it are positions in the bytes and
an astral character somewhere does not make the whole text four times as large. A string with
other than ASCII characters is therefore read again from its bytes (`exact`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Generator
from json.decoder import scanstring  # type: ignore[attr-defined]  # typeshed does not list it
from typing import Any, Final, NamedTuple

from servicekit.errors import DomainError, invalid_field
from services.telemetry.reports.json_skip import EndlessError, closing


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


class UnreadableError(Exception):
    """What begins here cannot be taken, which rule says why; `skip` tells where it ends."""

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


def _refuse_constant(name: str) -> None:
    raise NotJsonError(name)


_decoder: Final = json.JSONDecoder(parse_constant=_refuse_constant)
_scan: Final = _decoder.scan_once  # type: ignore[attr-defined]  # typeshed does not list it
_loads: Final = _decoder.decode
_blank: Final = re.compile(r"[ \t\n\r]*").match
_plain_key: Final = re.compile(r'"([^"\\\x00-\x1f]*)"[ \t\n\r]*:[ \t\n\r]*').match
_separator: Final = re.compile(r"[ \t\n\r]*([,\]}])[ \t\n\r]*").match
_CLOSING: Final = {"{": "}", "[": "]"}
_number: Final = re.compile(r"[-+.0-9eE]*").match
WINDOW: Final = 1 << 20
LARGEST: Final = 128 << 10
"""A value of so many characters is always read, if it can be."""
_BEGIN_OF_A_NUMBER: Final = frozenset("-0123456789")
MAX_MEMBERS: Final = 1_000
"""Of an object whose members are read one by one."""
_TOO_LARGE: Final = "is too large"


def broken_body(rule: str = "must be valid JSON") -> DomainError:
    """The body as a whole cannot be read."""
    return invalid_field("body", rule)


class JsonText:
    """The JSON text of a request's body."""

    __slots__ = ("_begin", "_end", "_ends", "_seen", "_turn", "body", "text")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.text = body.decode("latin-1")
        self._begin = self._end = self._turn = 0
        self._seen = ""
        # Of large values, so that a body that is first checked and then read is stepped over once.
        self._ends: dict[int, int] = {}
        self._look(0)

    def _look(self, at: int) -> None:
        """Moves the window."""
        if len(self.text) <= WINDOW:
            self._end, self._seen = len(self.text), self.text
        else:
            self._begin, self._end = at, min(at + WINDOW, len(self.text))
            self._seen = self.text[self._begin : self._end]
        # From where on a value may need the next one.
        self._turn = self._end - LARGEST if self._end < len(self.text) else self._end

    def begin(self, at: int, opening: str) -> tuple[bool, int]:
        """Steps into the list or object at a position; answers whether it has items, and where."""
        at = self.skip_blank(at + 1)
        if self.text[at : at + 1] == _CLOSING[opening]:
            return False, at + 1
        return True, at

    def skip_blank(self, at: int) -> int:
        """The position of the next character that is not white space.

        Raises:
            UnreadableError: it is further away than anything needs.
        """
        end: int = _blank(self.text, at, at + LARGEST).end()  # type: ignore[union-attr]  # matches
        if end - at == LARGEST:
            raise UnreadableError("holds too much white space")
        return end

    def value(self, at: int) -> Member:
        """Reads the value that begins at a position.

        Raises:
            NotJsonError: there is none.
            UnreadableError: it cannot be read.
        """
        if not self._begin <= at <= self._turn:
            self._look(at)
        try:
            value, end = _scan(self._seen, at - self._begin)
        except (StopIteration, json.JSONDecodeError, NotJsonError) as broken:
            if self._end < len(self.text):
                raise UnreadableError(_TOO_LARGE) from broken
            raise NotJsonError(at) from broken
        except RecursionError as broken:
            raise UnreadableError("is nested too deeply") from broken
        except ValueError as broken:
            raise UnreadableError("holds a number with too many digits") from broken
        end += self._begin
        if end == self._end < len(self.text):
            raise UnreadableError(_TOO_LARGE)
        return Member(value, at, end)

    def key(self, at: int) -> tuple[str, int]:
        """Reads a key and its colon; answers where the value begins.

        Raises:
            NotJsonError: there is none.
            UnreadableError: it is too long.
        """
        end = at + LARGEST
        if (plain := _plain_key(self.text, at, end)) is not None and plain.end() < end:
            return plain[1], plain.end()
        if self.text[at : at + 1] != '"':
            raise NotJsonError(at)
        try:
            key, length = scanstring(self.text[at:end], 1, True)
        except json.JSONDecodeError as broken:
            if end < len(self.text):
                raise UnreadableError("holds a key that is too long") from broken
            raise NotJsonError(at) from broken
        at = self.skip_blank(at + length)
        if self.text[at : at + 1] != ":":
            raise NotJsonError(at)
        return key, self.skip_blank(at + 1)

    def more(self, at: int, closing: str) -> tuple[bool, int]:
        """Reads what follows an item: a comma, or the end of the list or object.

        Raises:
            NotJsonError: there is neither.
            UnreadableError: there is too much white space.
        """
        found = _separator(self.text, at, at + LARGEST)
        if found is None:
            self.skip_blank(at)
            raise NotJsonError(at)
        char = found[1]
        if char == ",":
            end = found.end()
            return True, end if end < at + LARGEST else self.skip_blank(found.end(1))
        if char == closing:
            return False, found.end(1)
        raise NotJsonError(at)

    def members(
        self, at: int, wanted: Container[str] | None = None
    ) -> Generator[None, None, tuple[dict[str, Member], int]]:
        """Reads the object that begins at a position, one level deep; of equal keys the last.

        Yields where it pauses. Only the `wanted` members are kept, for read values are large.

        Raises:
            UnreadableError: it has more than `MAX_MEMBERS`, of which some are wanted.
        """
        found: dict[str, Member] = {}
        more, at = self.begin(at, "{")
        seen = 0
        while more:
            key, at = self.key(at)
            member = yield from self.any_value(at)
            if wanted is None or key in wanted:
                found[key] = member
            more, at = self.more(member.end, "}")
            seen += 1
            if seen > MAX_MEMBERS and wanted is not None:
                raise UnreadableError(f"must have at most {MAX_MEMBERS} members")
        return found, at

    def any_value(self, at: int) -> Generator[None, None, Member]:
        """As `value`; stands `Unreadable` for what cannot be read."""
        try:
            return self.value(at)
        except UnreadableError as error:
            end = yield from self.skip(at, error.rule)
            return Member(Unreadable(error.rule), at, end)

    def skip(self, at: int, rule: str) -> Generator[None, None, int]:
        """Where a value ends that breaks a rule; yields where it pauses.

        Raises:
            NotJsonError: it ends nowhere.
        """
        begin = at
        if self.text[at : at + 1] in _BEGIN_OF_A_NUMBER:
            end = at
            while (part := self._of_number(end)) == LARGEST:
                end += part
                yield
            end += part
        elif (known := self._ends.get(at)) is not None:
            end = known
        else:
            if self.text[at : at + 1] not in ("[", "{", '"'):
                raise NotJsonError(at)
            try:
                end = yield from closing(self.body, at)
            except EndlessError as endless:
                raise NotJsonError(at) from endless
            if end - at > LARGEST:
                self._ends[at] = end
        if rule is _TOO_LARGE and end < self._end:
            raise NotJsonError(begin)  # it was seen to its end
        return end

    def _of_number(self, at: int) -> int:
        """How many of the next characters may belong to a number."""
        end: int = _number(self.text, at, at + LARGEST).end()  # type: ignore[union-attr]  # matches
        return end - at

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


def members_of(body: bytes, inner: str) -> dict[str, Any]:
    """An object's members, where `json.loads` gives up on a value deep in it.

    `Unreadable` stands for what cannot be read, but of the object `inner` each member is read
    alone. What is no UTF-8 is replaced. It does not pause: a body must not be large.

    Raises:
        NotJsonError: the body is no JSON object, or not one whose members can be told apart.
    """
    text = JsonText(body.decode("utf-8", "replace").encode())
    try:
        found, end = _object(text, text.skip_blank(0))
        if text.skip_blank(end) != len(text.text):
            raise NotJsonError(end)
        values = {key: text.exact(member) for key, member in found.items()}
        if isinstance(values.get(inner), Unreadable) and text.text[found[inner].start] == "{":
            members, _ = _object(text, found[inner].start)
            values[inner] = {key: text.exact(member) for key, member in members.items()}
    except UnreadableError as unreadable:
        raise NotJsonError(unreadable.rule) from unreadable
    return values


def _object(text: JsonText, at: int) -> tuple[dict[str, Member], int]:
    if not text.text.startswith("{", at):
        raise NotJsonError(at)
    steps = text.members(at)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: tuple[dict[str, Member], int] = end.value
            return result
