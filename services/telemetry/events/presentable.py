"""Payloads as a google.protobuf.Struct can carry them through every reader of it."""

from __future__ import annotations

import json
import math
from typing import Any, Final

MAX_DEPTH: Final = 16
"""Each level takes three levels of messages, of which readers follow a hundred."""
_MAX_INT: Final = 1 << 53


def presentable(value: Any, depth: int = 0) -> Any:
    """The value with text in place of what would be changed or refused on the way.

    A whole number that a double cannot hold and a number beyond all doubles become text, as do
    lists and objects that are nested too deeply.
    """
    match value:
        case bool():
            return value
        case int():
            return value if abs(value) <= _MAX_INT else str(value)
        case float():
            return value if math.isfinite(value) else str(value)
        case dict() | list() if depth >= MAX_DEPTH:
            return json.dumps(value, ensure_ascii=False)
        case dict():
            return {key: presentable(item, depth + 1) for key, item in value.items()}
        case list():
            return [presentable(item, depth + 1) for item in value]
        case _:
            return value
