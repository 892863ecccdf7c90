"""Filters as SQL over `enrollment.device d`: the one meaning that they have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from services.enrollment.groups.filters import Comparison, Filter, Joined, Kind, Not

_COLUMNS: Final = {
    # Without what keeps a second spelling apart.
    "serial": "split_part(d.serial_key, E'\\n', 1)",
    "model": 'lower(d.model COLLATE "C")',
    "cpu_model": 'lower(d.cpu_model COLLATE "C")',
    "cpu_count": "d.cpu_count",
    "total_ram_bytes": "d.total_ram_bytes",
    "has_tpm": "d.has_tpm",
    "enrolled_at": "d.enrolled_at",
}
_CASTS: Final = {Kind.NUMBER: "numeric", Kind.FLAG: "boolean", Kind.TIME: "timestamptz"}


class FilterSql:
    """Filters of one statement, with their values: all in one parameter, an array of texts.

    So the statement stays the same while filters differ in values alone, and is prepared once.
    """

    def __init__(self, parameter: str) -> None:
        self._parameter = parameter
        self._values: list[str] = []

    @property
    def values(self) -> Sequence[str]:
        """What the parameter holds."""
        return self._values

    def condition(self, found: Filter) -> str:
        """An expression that is true or false, never NULL."""
        match found:
            case Not(inner):
                return f"NOT {self.condition(inner)}"
            case Joined(parts, is_any):
                return f"({(' OR ' if is_any else ' AND ').join(map(self.condition, parts))})"
            case Comparison():
                return self._comparison(found)

    def value(self, text: str) -> str:
        """Adds a value; answers how SQL refers to it."""
        self._values.append(text)
        return f"({self._parameter}::text[])[{len(self._values)}]"

    def _comparison(self, term: Comparison) -> str:
        if term.operator == "!=":
            return f"NOT {self._matched(term, '=')}"
        return self._matched(term, term.operator)

    def _matched(self, term: Comparison, operator: str) -> str:
        match term.kind:
            case Kind.TOKEN:
                name = 'lower(t.name COLLATE "C")'
                matched = self._text(name, operator, term)
                if operator == "=" and not term.is_prefix:
                    matched = f"{matched} OR t.id::text = {self.value(term.value)}"
                return (
                    "EXISTS (SELECT FROM enrollment.token t"
                    f" WHERE t.id = d.enrollment_token_id AND ({matched}))"
                )
            case Kind.LABEL:
                return self._label(term, operator)
            case Kind.SERIAL | Kind.TEXT:
                return f"coalesce({self._text(_COLUMNS[term.field], operator, term)}, false)"
        value = f"{self.value(term.value)}::{_CASTS[term.kind]}"
        return f"coalesce({_COLUMNS[term.field]} {operator} {value}, false)"

    def _label(self, term: Comparison, operator: str) -> str:
        label = f"(d.labels ->> {self.value(term.key)})"
        if term.is_present:
            return f"{label} IS NOT NULL"
        if operator in {"=", ":"}:
            lower = f'lower({label} COLLATE "C")'
            return f"coalesce({self._text(lower, operator, term)}, false)"
        value = f"{self.value(term.value)}::bigint"
        # A label that is no number is neither more nor less than one.
        return (
            f"CASE WHEN {label} ~ '^-?[0-9]{{1,18}}$' THEN {label}::bigint {operator} {value}"
            " ELSE false END"
        )

    def _text(self, column: str, operator: str, term: Comparison) -> str:
        value = self.value(term.value)
        if operator == ":":
            return f"strpos({column}, {value}) > 0"
        if term.is_prefix:
            return f"starts_with({column}, {value})"
        return f"{column} = {value}"
