"""What filters mean, said once more in Python: the oracle of the SQL."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from servicekit.serials import serial_key
from servicekit.times import parse_rfc3339
from services.enrollment.groups.filters import Comparison, Filter, Joined, Kind, Not

_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
_ORDER: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Facts:
    """What the registry knows of a device."""

    serial: str
    model: str = ""
    cpu_model: str = ""
    cpu_count: int = 0
    total_ram_bytes: int = 0
    has_tpm: bool = False
    enrolled_at: datetime | None = None
    token: tuple[UUID, str] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


def matches(found: Filter, facts: Facts) -> bool:
    """Whether a filter matches a device."""
    match found:
        case Not(inner):
            return not matches(inner, facts)
        case Joined(parts, is_any):
            return (any if is_any else all)(matches(part, facts) for part in parts)
        case Comparison():
            if found.operator == "!=":
                return not _compared(found, facts, "=")
            return _compared(found, facts, found.operator)


def _compared(term: Comparison, facts: Facts, sign: str) -> bool:
    match term.kind:
        case Kind.SERIAL:
            return _text(serial_key(facts.serial), sign, term)
        case Kind.TEXT:
            return _text(getattr(facts, term.field).translate(_LOWER), sign, term)
        case Kind.TOKEN:
            if facts.token is None:
                return False
            id_, name = facts.token
            is_id = sign == "=" and not term.is_prefix and str(id_) == term.value
            return is_id or _text(name.translate(_LOWER), sign, term)
        case Kind.LABEL:
            value = facts.labels.get(term.key)
            if value is None or term.is_present:
                return value is not None
            if sign in {"=", ":"}:
                return _text(value.translate(_LOWER), sign, term)
            is_number = re.fullmatch(r"-?[0-9]{1,18}", value) is not None
            return is_number and _ORDER[sign](int(value), int(term.value))
        case Kind.NUMBER:
            return _ORDER[sign](getattr(facts, term.field), int(term.value))
        case Kind.FLAG:
            return facts.has_tpm is (term.value == "true")
        case Kind.TIME:
            at = facts.enrolled_at
            return at is not None and _ORDER[sign](at, parse_rfc3339(term.value))


def _text(text: str, sign: str, term: Comparison) -> bool:
    if sign == ":":
        return term.value in text
    return text.startswith(term.value) if term.is_prefix else text == term.value
