"""Pages of lists: sizes, positions, and opaque tokens that say where to go on."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Protocol, TypeVar
from uuid import UUID

from servicekit.errors import invalid_field

if TYPE_CHECKING:
    import asyncpg

    from servicekit.data.postgres import Connection

T = TypeVar("T")
P = TypeVar("P")
"""A position: what a list is sorted by, as a NamedTuple where that is more than one value."""

DEFAULT_SIZE: Final = 100
MAX_SIZE: Final = 500
PAGE_BYTES: Final = 2 << 20
"""Bytes of long texts that a page holds; a text that is longer has a page of its own.

As protobuf they are six times as many at most, which the gateway holds in memory.
"""
_AT_ONCE: Final = 16
"""Rows that are read before it is known how large they are."""


class TimePosition(NamedTuple):
    """A position in a list that is sorted by time."""

    at: datetime
    id: UUID

    @classmethod
    def read(cls, at: str, item_id: str) -> TimePosition:
        """The position of a token's parts.

        Raises:
            ValueError: it is none that `Page.token` wrote.
        """
        time = datetime.fromisoformat(at)
        if time.utcoffset() != timedelta(0):
            raise ValueError("positions are in UTC")
        return cls(time, UUID(item_id))


@dataclass(frozen=True)
class Page(Generic[T, P]):
    """Some items of a list, and the position behind which it goes on; `None` at its end."""

    items: Sequence[T]
    after: P | None

    @classmethod
    def of(
        cls, found: Sequence[T], limit: int, position: Callable[[T], P], *, more: bool = False
    ) -> Page[T, P]:
        """The first items, at most `limit`, of which one more was looked for.

        Args:
            more: whether the list goes on however many were found.
        """
        items = found[:limit]
        return cls(items, position(items[-1]) if more or len(found) > limit else None)

    def within(
        self, size_of: Callable[[T], int], position: Callable[[T], P], room: int
    ) -> Page[T, P]:
        """The first items, as many as there is room for, and at least one."""
        for count, item in enumerate(self.items):
            room -= size_of(item)
            if room < 0 and count:
                return Page.of(self.items, count, position)
        return self

    @property
    def token(self) -> str:
        """The token with which the list goes on; empty at its end."""
        if self.after is None:
            return ""
        parts = self.after if isinstance(self.after, tuple) else (self.after,)
        return encode_token(*(p.isoformat() if isinstance(p, datetime) else str(p) for p in parts))


class Paged(Protocol):
    """A request for a page."""

    page_size: int
    page_token: str


def asked_page(request: Paged, read: Callable[..., P]) -> tuple[P | None, int]:
    """The position behind which a page begins, and how many items it holds.

    Args:
        read: makes the position of its parts, which are texts.

    Raises:
        DomainError: INVALID_ARGUMENT when the token is not one that a list answered.
    """
    return decode_token(request.page_token, read), page_size(request.page_size)


def page_size(asked: int) -> int:
    """How many items a page holds."""
    return min(asked, MAX_SIZE) if asked > 0 else DEFAULT_SIZE


async def rows_within(
    connection: Connection,
    sql: str,
    parameters: list[Any],
    size_of: Callable[[asyncpg.Record], int],
    room: int = PAGE_BYTES,
) -> tuple[list[asyncpg.Record], int]:
    """The first rows of a query, as many as there is room for, and at least one.

    Answers with them how much room they left, which is less than 0 when there are more rows. They
    are read a few at a time, so that not much more is read than is answered.
    """
    cursor = await connection.cursor(sql, *parameters)
    found: list[asyncpg.Record] = []
    left, count = room, _AT_ONCE
    while rows := await cursor.fetch(count):
        for row in rows:
            left -= size_of(row)
            if left < 0 and found:
                return found, left
            found.append(row)
        if len(rows) < count:
            break
        # As many as fit if they are like those before.
        fit = len(found) * left // max(room - left, 1)
        count = min(max(fit, _AT_ONCE), MAX_SIZE) if left > 0 else 1
    return found, max(left, 0)


def encode_token(*position: str) -> str:
    """Makes the token that continues behind a position."""
    text = json.dumps(position, separators=(",", ":"), ensure_ascii=False)
    # A lone surrogate is refused when the token comes back.
    return base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode().rstrip("=")


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
