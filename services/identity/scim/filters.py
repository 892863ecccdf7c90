"""Filters (RFC 7644, section 3.4.2.2): read into a tree, bounded, and asked of the database or of a
value."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NoReturn, TypeAlias
from uuid import UUID

from servicekit.errors import DomainError
from servicekit.texts import text_fault
from services.identity.scim.domain import is_text, refused

_LONGEST: Final = 2_000
_DEEPEST: Final = 20
_MOST: Final = 100
"""Comparisons of one filter."""
_TOKEN: Final = re.compile(
    r"\s*(?:(?P<sign>[()\[\]])"
    r'|(?P<text>"(?:[^"\\]|\\.)*")'
    r"|(?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)(?![\w.:$-])"
    r"|(?P<word>[A-Za-z$][\w:.$-]*))"
)
_OPERATORS: Final = frozenset({"eq", "ne", "co", "sw", "ew", "gt", "ge", "lt", "le"})
_LITERALS: Final = {"true": True, "false": False, "null": None}
_TIMES: Final = {"created": "created_at", "lastmodified": "updated_at"}

Value: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """An attribute compared with a value; `pr` has none."""

    path: str
    """In lower case."""
    operator: str
    value: Value = None


@dataclass(frozen=True, slots=True)
class Element:
    """One value of an attribute with several for which a filter holds."""

    path: str
    of: Filter


@dataclass(frozen=True, slots=True)
class Not:
    """What does not hold."""

    of: Filter


@dataclass(frozen=True, slots=True)
class Both:
    """All (`and`) or one (`or`) of some that hold."""

    word: str
    of: tuple[Filter, ...]


Filter: TypeAlias = Comparison | Element | Not | Both


def parse(text: str) -> Filter:
    """Reads a filter.

    Raises:
        DomainError: INVALID_ARGUMENT, `invalidFilter`.
    """
    if len(text) > _LONGEST:
        raise refused("invalidFilter", f"filter: must have at most {_LONGEST} characters")
    reader = _Reader(_tokens(text))
    found = reader.any_of(0)
    if reader.left():
        reader.fail()
    return found


def _tokens(text: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while text[at:].strip():
        token = _TOKEN.match(text, at)
        if token is None:
            raise refused("invalidFilter", f"filter: is not understood from {text[at : at + 30]!r}")
        kind = token.lastgroup or ""
        found.append((kind, token[kind]))
        at = token.end()
    return found


class _Reader:
    """Reads tokens from left to right; each step of depth is counted."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._at = 0
        self._comparisons = 0

    def left(self) -> bool:
        """Whether there are tokens left."""
        return self._at < len(self._tokens)

    def fail(self) -> NoReturn:
        """Says where it is not understood."""
        at = f"from {self._tokens[self._at][1][:30]!r}" if self.left() else "at its end"
        raise refused("invalidFilter", f"filter: is not understood {at}")

    def any_of(self, depth: int) -> Filter:
        """Reads what `or` joins."""
        return self._joined("or", lambda: self._joined("and", lambda: self._one(depth)))

    def _joined(self, word: str, read: Callable[[], Filter]) -> Filter:
        found = [read()]
        while self._word() == word:
            self._at += 1
            found.append(read())
        return found[0] if len(found) == 1 else Both(word, tuple(found))

    def _one(self, depth: int) -> Filter:
        if depth > _DEEPEST:
            raise refused("invalidFilter", f"filter: must be nested at most {_DEEPEST} deep")
        if self._word() == "not":
            self._at += 1
            self._expect("(")
            inside = self.any_of(depth + 1)
            self._expect(")")
            return Not(inside)
        if self._is("("):
            self._at += 1
            inside = self.any_of(depth + 1)
            self._expect(")")
            return inside
        path = self._word()
        if not path or path in _LITERALS:
            self.fail()
        self._at += 1
        if self._is("["):
            self._at += 1
            inside = self.any_of(depth + 1)
            self._expect("]")
            return Element(path, inside)
        return self._comparison(path)

    def _comparison(self, path: str) -> Comparison:
        self._comparisons += 1
        if self._comparisons > _MOST:
            raise refused("invalidFilter", f"filter: must have at most {_MOST} comparisons")
        operator = self._word()
        if operator == "pr":
            self._at += 1
            return Comparison(path, operator)
        if operator not in _OPERATORS:
            self.fail()
        self._at += 1
        return Comparison(path, operator, self._value())

    def _value(self) -> Value:
        if not self.left():
            self.fail()
        kind, text = self._tokens[self._at]
        if kind == "word" and text.lower() in _LITERALS:
            value: Value = _LITERALS[text.lower()]
        elif kind in {"text", "number"}:
            try:
                value = json.loads(text)
            except ValueError:
                self.fail()
        else:
            self.fail()
        self._at += 1
        if isinstance(value, str) and (text_fault(value) or not is_text(value)):
            raise refused("invalidFilter", "filter: a text has a character that is not allowed")
        return value

    def _is(self, sign: str) -> bool:
        return self.left() and self._tokens[self._at] == ("sign", sign)

    def _expect(self, sign: str) -> None:
        if not self._is(sign):
            self.fail()
        self._at += 1

    def _word(self) -> str:
        if not self.left() or self._tokens[self._at][0] != "word":
            return ""
        return self._tokens[self._at][1].lower()


# Asked of a value


def matches(found: Filter, value: Mapping[str, Any]) -> bool:
    """Whether a filter holds for one value of an attribute with several.

    Args:
        value: its sub-attributes.
    """
    if isinstance(found, Both):
        return (all if found.word == "and" else any)(matches(one, value) for one in found.of)
    if isinstance(found, Not):
        return not matches(found.of, value)
    if isinstance(found, Element):
        raise refused("invalidFilter", f"filter: {found.path} has no values of its own")
    has = {name.lower(): sub for name, sub in value.items()}.get(found.path)
    return _compares(found.operator, has, found.value)


def _compares(operator: str, has: Any, wanted: Value) -> bool:
    if operator == "pr":
        return has is not None and has != ""
    if isinstance(has, str) and isinstance(wanted, str):
        has, wanted = has.casefold(), wanted.casefold()
        texts = {
            "co": wanted in has,
            "sw": has.startswith(wanted),
            "ew": has.endswith(wanted),
            "gt": has > wanted,
            "ge": has >= wanted,
            "lt": has < wanted,
            "le": has <= wanted,
        }
        if operator in texts:
            return bool(texts[operator])
    if operator not in {"eq", "ne"}:
        return False
    # Entra writes booleans as texts.
    same = bool(has == wanted) or (isinstance(has, bool) and _as_bool(wanted) == has)
    return same is (operator == "eq")


def equalities(found: Filter) -> dict[str, Value] | None:
    """The sub-attributes that a filter wants to be equal to something, all of them; `None` for a
    filter that wants anything else."""
    parts = found.of if isinstance(found, Both) and found.word == "and" else (found,)
    wanted = {}
    for one in parts:
        if not isinstance(one, Comparison) or one.operator != "eq":
            return None
        wanted[one.path] = one.value
    return wanted


# Asked of the database


@dataclass(frozen=True, slots=True)
class Field:
    """What an attribute is in SQL."""

    sql: str
    kind: str = "text"
    """`text`, in which upper and lower case are the same; `folded`, where the column is casefolded
    and never null; `exact`, `id`, `bool` or `time`."""


@dataclass(frozen=True, slots=True)
class Several:
    """An attribute with several values."""

    sql: str
    """The rows of its values, as what stands behind FROM, with the condition that they are the
    resource's: `{where}` is for more."""
    fields: Mapping[str, Field]
    """Its sub-attributes; `value` stands for the attribute itself."""


Fields: TypeAlias = Mapping[str, Field | Several]


def to_sql(found: Filter, fields: Fields, parameters: list[Any], urn: str) -> str:
    """A filter as a condition; what it compares with is added to the parameters.

    Args:
        fields: the attributes by their names in lower case.
        urn: the resource's schema, with which names may begin.

    Raises:
        DomainError: INVALID_ARGUMENT, `invalidFilter`.
    """
    if isinstance(found, Both):
        parts = (to_sql(one, fields, parameters, urn) for one in found.of)
        return "(" + f" {found.word} ".join(parts) + ")"
    if isinstance(found, Not):
        return f"NOT {to_sql(found.of, fields, parameters, urn)}"
    path = found.path.removeprefix(f"{urn.lower()}:")
    if isinstance(found, Element):
        several = fields.get(path)
        if not isinstance(several, Several):
            raise refused("invalidFilter", f"filter: {path} has no several values")
        inside = to_sql(found.of, several.fields, parameters, "")
        return several.sql.format(where=inside)
    head, _, sub = path.partition(".")
    field = fields.get(path) or fields.get(head)
    if isinstance(field, Several):
        of_value = field.fields.get(sub or "value")
        if of_value is not None:
            compared = _compared(found, of_value, parameters)
            return field.sql.format(where=compared)
    elif field is not None and path in fields:
        return _compared(found, field, parameters)
    raise refused("invalidFilter", f"filter: {found.path[:60]} is no attribute to filter by")


_SQL: Final = {"eq": "=", "ne": "<>", "gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def _compared(found: Comparison, field: Field, parameters: list[Any]) -> str:
    operator, value = found.operator, found.value
    if operator == "pr" or value is None:
        there = f"coalesce({field.sql}::text, '') <> ''"
        return there if operator in {"pr", "ne"} else f"NOT ({there})"
    if field.kind == "bool":
        wanted = _as_bool(value)
        if wanted is None or operator not in {"eq", "ne"}:
            raise refused("invalidFilter", f"filter: {found.path} is true or false")
        return f"coalesce({field.sql}, false) {_SQL[operator]} {'true' if wanted else 'false'}"
    if not isinstance(value, str):
        raise refused("invalidFilter", f"filter: {found.path} is compared with a text in quotes")
    if field.kind == "id" and operator in {"eq", "ne"}:
        return _same_id(field.sql, value, parameters, equal=operator == "eq")
    if field.kind == "time":
        return _in_time(found, field, value, parameters)
    return _as_text(operator, field, value, parameters)


def _as_text(operator: str, field: Field, value: str, parameters: list[Any]) -> str:
    parameters.append(value.casefold() if field.kind == "folded" else value)
    wanted_sql = f"${len(parameters)}::text"
    if field.kind == "exact" and operator == "eq" and value:
        # As an index has it.
        return f"({field.sql} = {wanted_sql} AND {field.sql} IS NOT NULL)"
    if field.kind == "folded":
        sql = field.sql
    elif field.kind == "text":
        # Both by the database; a final sigma is one in lower case alone.
        sql = f"lower(upper(coalesce({field.sql}, '')))"
        wanted_sql = f"lower(upper({wanted_sql}))"
    else:
        sql = f"coalesce({field.sql}::text, '')"
    if operator == "co":
        return f"strpos({sql}, {wanted_sql}) > 0"
    if operator == "sw":
        return f"starts_with({sql}, {wanted_sql})"
    if operator == "ew":
        return f"right({sql}, length({wanted_sql})) = {wanted_sql}"
    return f"{sql} {_SQL[operator]} {wanted_sql}"


def _same_id(sql: str, value: str, parameters: list[Any], *, equal: bool) -> str:
    try:
        wanted = UUID(value)
    except ValueError:
        return "false" if equal else "true"
    parameters.append(wanted)
    return f"{sql} {'=' if equal else '<>'} ${len(parameters)}::uuid"


def _in_time(found: Comparison, field: Field, value: str, parameters: list[Any]) -> str:
    if found.operator not in _SQL:
        raise refused("invalidFilter", f"filter: {found.path} is a time")
    try:
        wanted = datetime.fromisoformat(value)
        if wanted.tzinfo is None:
            raise ValueError
        wanted = wanted.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _no_time(found) from None
    parameters.append(wanted)
    return f"{field.sql} {_SQL[found.operator]} ${len(parameters)}::timestamptz"


def _no_time(found: Comparison) -> DomainError:
    return refused(
        "invalidFilter", f"filter: {found.path} is compared with a time, as 2026-01-31T08:00:00Z"
    )


def _as_bool(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def time_fields(alias: str) -> Fields:
    """Fields of times, which people and groups have alike.

    Args:
        alias: of their table.
    """
    return {f"meta.{name}": Field(f"{alias}.{column}", "time") for name, column in _TIMES.items()}


def narrowed(
    of_source: str, source_id: UUID, found: Filter | None, fields: Fields, urn: str
) -> tuple[str, list[Any]]:
    """A condition for rows of a source for which a filter holds, and its parameters.

    Args:
        of_source: the condition for all of them; `$1` is the source.
    """
    parameters: list[Any] = [source_id]
    if found is None:
        return of_source, parameters
    return f"{of_source} AND ({to_sql(found, fields, parameters, urn)})", parameters
