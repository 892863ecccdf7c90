"""How a policy that was written wrongly is reported: all faults at once, each with its field."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from servicekit.errors import FieldViolation, invalid

MAX_VIOLATIONS = 20
MAX_ITEMS = 1_000
MAX_TEXT = 8_192
MAX_KEY = 256

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(slots=True)
class Violations:
    """Collects violations up to `MAX_VIOLATIONS`, so that a hostile body cannot grow the answer."""

    found: list[FieldViolation] = field(default_factory=list)

    def add(self, path: str, rule: str) -> None:
        """Notes one violation, unless there are plenty already."""
        if len(self.found) < MAX_VIOLATIONS:
            self.found.append(FieldViolation(path, rule))

    def raise_if_any(self) -> None:
        """Raises `DomainError` (INVALID_ARGUMENT) when something was noted."""
        if self.found:
            raise invalid(*self.found)


def child(path: str, key: object) -> str:
    """The path of a member; a key that is not a plain name is quoted, in ASCII, and cut."""
    if isinstance(key, str) and _PLAIN_KEY.match(key):
        return f"{path}.{key}" if path else key
    return f"{path}[{json.dumps(str(key)[:64])}]"


def item(path: str, index: int) -> str:
    """The path of a list's element."""
    return f"{path}[{index}]"


def kind_of(value: object) -> str:
    """The JSON name of a value's type, with its article."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case str():
            return "a string"
        case int() | float():
            return "a number"
        case list() | tuple():
            return "a list"
        case _:
            return "an object"


def check_text(
    value: object, path: str, violations: Violations, limit: int, *, what: str = ""
) -> str:
    """Returns the text, or notes why it is none: type, length, NUL, half a surrogate pair."""
    prefix = f"{what} " if what else ""
    if not isinstance(value, str):
        violations.add(path, f"{prefix}must be a string, not {kind_of(value)}")
        return ""
    if len(value) > limit:
        violations.add(path, f"{prefix}must have at most {limit} characters, not {len(value)}")
    elif "\0" in value:
        violations.add(path, f"{prefix}must not contain the character U+0000")
    elif not value.isascii() and _SURROGATE.search(value):
        violations.add(path, f"{prefix}must be valid Unicode text, without lone surrogates")
    return value
