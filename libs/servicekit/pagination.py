"""Pages of lists: sizes, and opaque tokens that say where to go on."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any, Final, TypeVar

from servicekit.errors import invalid_field

T = TypeVar("T")

DEFAULT_SIZE: Final = 100
MAX_SIZE: Final = 500


def page_size(asked: int) -> int:
    """How many items a page holds."""
    return min(asked, MAX_SIZE) if asked > 0 else DEFAULT_SIZE


def encode_token(*position: str) -> str:
    """Makes the token that continues behind a position."""
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


def decode_token(token: str, parse: Callable[..., T]) -> T | None:
    """Reads a token; `parse` gets the position's parts, which are texts that PostgreSQL takes.

    `None` for the first page.

    Raises:
        DomainError: INVALID_ARGUMENT when the token is not one that a list answered.
    """
    if not token:
        return None
    try:
        parts: Any = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        return parse(*map(_part, parts))
    except (ValueError, TypeError, OverflowError, RecursionError) as broken:
        raise invalid_field("pageToken", "is not a token of this list") from broken


def _part(part: Any) -> str:
    if not isinstance(part, str) or "\x00" in part:
        raise ValueError("a position's parts are texts without NUL")
    part.encode()  # a lone surrogate raises a ValueError
    return part
