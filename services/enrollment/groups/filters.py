"""The filter language over registered devices: what it says, and how it is read.

A subset of Google's AIP-160: comparisons with `= != < <= > >= :`, `AND`, `OR`, `NOT`, parentheses,
and `*` at the end of a text. `AND` beside `OR` needs parentheses: AIP-160 binds `OR` tighter, which
readers of other languages do not expect. What it means in SQL is in `filter_sql`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from typing import Final, TypeAlias

from servicekit.errors import invalid_field
from servicekit.serials import serial_key
from servicekit.times import format_rfc3339, parse_rfc3339

MAX_LENGTH: Final = 2_000
MAX_TERMS: Final = 50
_MAX_DEPTH: Final = 20
_MAX_DIGITS: Final = 18
_CACHED: Final = 4_096

_LOWER: Final = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
_FIELD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_OPERATOR: Final = re.compile(r"!=|<=|>=|=|<|>|:")
_BARE: Final = re.compile(r"[^\s()\"'=<>!]+")
_NUMBER: Final = re.compile(r"-?[0-9]+")
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
LABEL_KEY: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
"""What the key of a label looks like."""


class Kind(Enum):
    """What a field holds."""

    SERIAL = "serial"
    TEXT = "text"
    NUMBER = "number"
    FLAG = "flag"
    TIME = "time"
    TOKEN = "token"
    LABEL = "label"


FIELDS: Final = {
    "serial": Kind.SERIAL,
    "model": Kind.TEXT,
    "cpu_model": Kind.TEXT,
    "cpu_count": Kind.NUMBER,
    "total_ram_bytes": Kind.NUMBER,
    "has_tpm": Kind.FLAG,
    "enrollment_token": Kind.TOKEN,
    "enrolled_at": Kind.TIME,
}
_ORDER: Final = frozenset({"<", "<=", ">", ">="})
_TAKEN: Final = {
    Kind.SERIAL: frozenset({"=", "!=", ":"}),
    Kind.TEXT: frozenset({"=", "!=", ":"}),
    Kind.TOKEN: frozenset({"=", "!=", ":"}),
    Kind.NUMBER: frozenset({"=", "!="}) | _ORDER,
    Kind.TIME: frozenset({"=", "!="}) | _ORDER,
    Kind.FLAG: frozenset({"=", "!="}),
    Kind.LABEL: frozenset({"=", "!=", ":"}) | _ORDER,
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One term.

    `value` is in the form in which it is compared: a serial number's key, small ASCII letters,
    digits, `true`, RFC 3339. `key` is a label's.
    """

    kind: Kind
    field: str
    operator: str
    value: str
    key: str = ""
    is_prefix: bool = False
    """Whether the value ended in `*`."""
    is_present: bool = False
    """Whether only the label's presence is asked for."""


@dataclass(frozen=True, slots=True)
class Not:
    """What the other one does not match."""

    inner: Filter


@dataclass(frozen=True, slots=True)
class Joined:
    """Several filters of which all, or any, match."""

    parts: tuple[Filter, ...]
    is_any: bool


Filter: TypeAlias = Comparison | Not | Joined


def parse(text: str, field: str = "filter") -> Filter:
    """Reads a filter.

    Args:
        field: the request's field, for the error.

    Raises:
        DomainError: INVALID_ARGUMENT with the place and the rule.
    """
    if not text.strip():
        raise invalid_field(field, "must not be empty")
    if len(text) > MAX_LENGTH:
        raise invalid_field(field, f"must have at most {MAX_LENGTH} characters")
    try:
        return _parsed(text)
    except FilterError as wrong:
        raise invalid_field(field, str(wrong)) from None


def terms_of(found: Filter) -> int:
    """How many comparisons a filter has."""
    return sum(1 for _ in comparisons(found))


def comparisons(found: Filter) -> Iterator[Comparison]:
    """The comparisons of a filter."""
    match found:
        case Comparison():
            yield found
        case Not(inner):
            yield from comparisons(inner)
        case Joined(parts):
            for part in parts:
                yield from comparisons(part)


class FilterError(Exception):
    """A text is no filter."""

    def __init__(self, at: int, rule: str) -> None:
        super().__init__(f"at character {at + 1}: {rule}")


@lru_cache(_CACHED)
def _parsed(text: str) -> Filter:
    return _Reader(text).whole()


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._terms = 0

    def whole(self) -> Filter:
        found = self._joined(0)
        if not self._ended():
            raise FilterError(self._at, self._surplus())
        return found

    def _surplus(self) -> str:
        if self._text[self._at] == ")":
            return "there is no ( for this )"
        word = _FIELD.match(self._text, self._at)
        if word and word[0].upper() in {"AND", "OR"}:
            return f"write {word[0].upper()} in capital letters"
        return "must be AND or OR between two comparisons"

    def _ended(self) -> bool:
        while self._at < len(self._text) and self._text[self._at].isspace():
            self._at += 1
        return self._at == len(self._text)

    def _word(self, word: str) -> bool:
        """Takes a word of the language, if it is next."""
        if self._ended():
            return False
        found = _FIELD.match(self._text, self._at)
        if found is None or found[0] != word:
            return False
        self._at = found.end()
        return True

    def _sign(self, sign: str) -> bool:
        if self._ended() or self._text[self._at] != sign:
            return False
        self._at += 1
        return True

    def _joined(self, depth: int) -> Filter:
        parts = [self._one(depth)]
        word = ""
        while True:
            for other in ("AND", "OR"):
                at = self._at
                if self._word(other):
                    if word and word != other:
                        raise FilterError(at, "AND beside OR needs parentheses")
                    word = other
                    parts.append(self._one(depth))
                    break
            else:
                break
        return parts[0] if len(parts) == 1 else Joined(tuple(parts), word == "OR")

    def _one(self, depth: int) -> Filter:
        if depth > _MAX_DEPTH:
            raise FilterError(self._at, f"has more than {_MAX_DEPTH} levels")
        if self._word("NOT"):
            return Not(self._one(depth + 1))
        if self._sign("("):
            at = self._at - 1
            found = self._joined(depth + 1)
            if not self._sign(")"):
                raise FilterError(at, "there is no ) for this (")
            return found
        return self._comparison()

    def _comparison(self) -> Comparison:
        if self._ended():
            raise FilterError(self._at, 'must be a comparison, as model = "Book 14"')
        at = self._at
        found = _FIELD.match(self._text, at)
        if found is None:
            raise FilterError(at, "must be a field, as model or labels.room")
        self._at = found.end()
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise FilterError(at, f"has more than {MAX_TERMS} comparisons")
        name = found[0]
        if name in {"AND", "OR"}:
            raise FilterError(at, f"must be a comparison, not {name}")
        operator_at = self._at if not self._ended() else len(self._text)
        sign = _OPERATOR.match(self._text, operator_at)
        if sign is None:
            raise FilterError(operator_at, "must be one of = != < <= > >= :")
        self._at = sign.end()
        value_at = self._at if not self._ended() else len(self._text)
        value, is_prefix = self._value()
        if name == "labels":
            if sign[0] != ":":
                raise FilterError(
                    operator_at, "must be : (labels:KEY), or name a label, labels.KEY"
                )
            return _presence(value, is_prefix, value_at)
        kind, key = _kind_of(name, at)
        if sign[0] not in _TAKEN[kind]:
            known = " ".join(o for o in ("=", "!=", "<", "<=", ">", ">=", ":") if o in _TAKEN[kind])
            raise FilterError(operator_at, f"must be one of {known} for {name}")
        if kind is Kind.LABEL and sign[0] == ":" and is_prefix and not value:
            return Comparison(kind, name, ":", "", key, is_present=True)
        if is_prefix and sign[0] not in {"=", "!="}:
            raise FilterError(value_at, "* stands at the end of a text behind = or !=")
        return _compared(kind, name, key, sign[0], value, is_prefix, value_at)

    def _value(self) -> tuple[str, bool]:
        """A value, and whether a `*` was at its end."""
        if self._at == len(self._text):
            raise FilterError(self._at, "must be a value")
        quote = self._text[self._at]
        if quote not in "\"'":
            found = _BARE.match(self._text, self._at)
            if found is None:
                raise FilterError(self._at, "must be a value; put it into quotation marks")
            value, begins = found[0], self._at
            self._at = found.end()
            is_prefix = value.endswith("*")
            value = value[:-1] if is_prefix else value
            if "*" in value:
                raise FilterError(begins, "* may only be at the end; write \\* in quotation marks")
            return value, is_prefix
        begins = self._at
        text: list[str] = []
        stars: list[int] = []
        self._at += 1
        while self._at < len(self._text):
            character = self._text[self._at]
            self._at += 1
            if character == quote:
                if any(star != len(text) - 1 for star in stars):
                    raise FilterError(begins, "* may only be at the end; \\* is the character")
                return "".join(text[:-1] if stars else text), bool(stars)
            if character == "\\":
                if self._at == len(self._text) or self._text[self._at] not in "\"'\\*":
                    raise FilterError(self._at - 1, "\\ stands before a quotation mark, \\ or *")
                character = self._text[self._at]
                self._at += 1
            elif character == "*":
                stars.append(len(text))
            text.append(character)
        raise FilterError(begins, "the quotation mark is not closed")


def _kind_of(name: str, at: int) -> tuple[Kind, str]:
    if name.startswith("labels."):
        key = name.removeprefix("labels.")
        if LABEL_KEY.fullmatch(key) is None:
            raise FilterError(at, f"{key or 'nothing'} is no label; keys are as room or loan_to")
        return Kind.LABEL, key
    kind = FIELDS.get(name)
    if kind is None:
        raise FilterError(at, f"no such field; known are {', '.join(FIELDS)}, labels.KEY")
    return kind, ""


def _presence(key: str, is_prefix: bool, at: int) -> Comparison:
    if is_prefix or LABEL_KEY.fullmatch(key) is None:
        raise FilterError(at, "must be a label's key, as room or loan_to")
    return Comparison(Kind.LABEL, f"labels.{key}", ":", "", key, is_present=True)


def _compared(
    kind: Kind, name: str, key: str, operator: str, value: str, is_prefix: bool, at: int
) -> Comparison:
    match kind:
        case Kind.SERIAL:
            value = serial_key(value)
        case Kind.TEXT:
            value = value.translate(_LOWER)
        case Kind.LABEL if operator in _ORDER:
            value = _number(value, at)
        case Kind.LABEL | Kind.TOKEN:
            # As what people type is kept; some keyboards send letters and accents apart.
            value = unicodedata.normalize("NFC", value).translate(_LOWER)
        case Kind.NUMBER:
            value = _number(value, at, is_prefix=is_prefix)
        case Kind.FLAG:
            value = value.lower()
            if is_prefix or value not in {"true", "false"}:
                raise FilterError(at, "must be true or false")
        case Kind.TIME:
            value = _time(value, at, is_prefix=is_prefix)
    if operator == ":" and not value:
        raise FilterError(at, "must not be empty")
    return Comparison(kind, name, operator, value, key, is_prefix)


def _number(value: str, at: int, *, is_prefix: bool = False) -> str:
    if is_prefix or _NUMBER.fullmatch(value) is None or len(value.lstrip("-")) > _MAX_DIGITS:
        raise FilterError(at, f"must be a whole number of at most {_MAX_DIGITS} digits")
    return str(int(value))


def _time(value: str, at: int, *, is_prefix: bool) -> str:
    if is_prefix:
        raise FilterError(at, "must be a date or a time, without *")
    try:
        if _DATE.fullmatch(value):
            value = datetime.fromisoformat(value).replace(tzinfo=UTC).isoformat()
        return format_rfc3339(parse_rfc3339(value))
    except ValueError:
        raise FilterError(
            at,
            'must be a date, as 2026-08-31, or a quoted time, as "2026-08-31T07:00:00Z"',
        ) from None
