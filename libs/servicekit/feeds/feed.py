"""Change feeds: how a service learns within seconds what another one decided.

A feed does not depend on NATS. Its server keeps, in every row that it feeds, the transaction
that last changed it (`changed_xid xid8`). A reader's cursor holds the oldest transaction that
was still running when it last read; everything from there on is answered (again), so that a
change that commits late is never skipped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import asyncpg
from prometheus_client import Gauge

from servicekit.call import begin_background_call
from servicekit.data.postgres import Connection
from servicekit.errors import DomainError, invalid_field
from servicekit.observability import logs
from servicekit.observability.logs import Repeated, brief

log = logs.get(__name__)

LAST_READ: Final = Gauge(
    "evergreen_feed_last_read_timestamp_seconds",
    "When a feed was last read to its end, in Unix time.",
    ["feed"],
)
DEFAULT_LIMIT: Final = 1000
PAGE_BYTES: Final = 8 << 20
"""Bytes of a page whose rows differ much in size; one row may have more."""
POLL_SECONDS: Final = 1.0
WAIT_SECONDS: Final = 4
"""So long a reader's question waits for something to tell, over a network. No longer, because a
connection that broke without a word is only noticed when the answer does not come."""
LOCAL_WAIT_SECONDS: Final = 20
"""So long it waits on this machine, where the kernel tells that the other side is gone. Questions
are all that services at rest do, so a longer wait is what they save."""
ANSWER_SECONDS: Final = 5.0
"""So long an answer may take beside that."""
_NIL: Final = UUID(int=0)
_XIDS: Final = 1 << 64


@dataclass(frozen=True, slots=True)
class Cursor:
    """Behind which row a reader goes on, and where its next pass begins."""

    xid: int = 0
    key: UUID = _NIL
    next_pass: int = 0
    """While a pass has more pages: the oldest transaction that ran when the pass began."""

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Reads what `str` wrote; an empty text is the beginning.

        Raises:
            DomainError: INVALID_ARGUMENT for anything else.
        """
        if not text:
            return cls()
        try:
            xid, key, next_pass = text.split(":")
            found = cls(int(xid), UUID(key), int(next_pass))
            if not (0 <= found.xid < _XIDS and 0 <= found.next_pass < _XIDS):
                raise ValueError(text)
            return found
        except ValueError as broken:
            raise invalid_field("cursor", "is not a cursor of this feed") from broken

    def __str__(self) -> str:
        return f"{self.xid}:{self.key}:{self.next_pass}"


def earlier(one: str, other: str) -> str:
    """The one of two positions in a feed behind which more is told; the beginning in doubt."""
    if one == other:
        return one
    try:
        return min(one, other, key=lambda text: (Cursor.parse(text).xid, Cursor.parse(text).key))
    except DomainError:
        return ""


@dataclass(frozen=True, slots=True)
class FeedPage:
    """What changed behind a cursor."""

    rows: Sequence[asyncpg.Record]
    cursor: Cursor
    more: bool


async def read_page(
    connection: Connection,
    sql: str,
    cursor: Cursor,
    limit: int,
    *arguments: Any,
    size_of: Callable[[asyncpg.Record], int] | None = None,
) -> FeedPage:
    """Reads the next page of a feed.

    `sql` selects `changed_xid::text` and `key` beside what it feeds, from rows with
    `(changed_xid, key) > ($1::text::xid8, $2)`, ordered by both, `LIMIT $3`; further arguments
    are $4 and on.

    Args:
        size_of: the bytes of a row, where they differ much; the page ends with the row before the
            one for which there is no more room.
    """
    snapshot = await connection.fetchrow(
        "SELECT pg_snapshot_xmin(s)::text AS oldest, pg_snapshot_xmax(s)::text AS next"
        " FROM pg_current_snapshot() s"
    )
    assert snapshot is not None
    oldest = int(snapshot["oldest"])
    if (cursor.next_pass or cursor.xid + 1) > int(snapshot["next"]):
        # From before the database was restored into a server that counts transactions anew: what
        # changes now would lie before the cursor, and never be told.
        cursor = Cursor()
    limit = limit or DEFAULT_LIMIT
    rows = await connection.fetch(sql, str(cursor.xid), cursor.key, limit, *arguments)
    begun = cursor.next_pass or oldest
    told = rows if size_of is None else _within(rows, size_of)
    if len(rows) == limit or len(told) < len(rows):
        rows = told
        last = rows[-1]
        return FeedPage(rows, Cursor(int(last["changed_xid"]), last["key"], begun), more=True)
    # One below, because rows of the transaction `begun` itself are wanted too.
    return FeedPage(rows, Cursor(max(begun - 1, 0), UUID(int=(1 << 128) - 1)), more=False)


def _within(
    rows: list[asyncpg.Record], size_of: Callable[[asyncpg.Record], int]
) -> list[asyncpg.Record]:
    """The first rows, as many as there is room for, and at least one."""
    room = PAGE_BYTES
    for count, row in enumerate(rows):
        room -= size_of(row)
        if room < 0 and count:
            return rows[:count]
    return rows


def wait_seconds(target: str) -> int:
    """How long a question to a service waits, by the service's address."""
    return LOCAL_WAIT_SECONDS if target.startswith("unix:") else WAIT_SECONDS


def asking(
    method: Callable[..., Awaitable[Any]], request: Any, *told: str, seconds: int = WAIT_SECONDS
) -> Callable[[str], Awaitable[bool]]:
    """What a `Follower` waits with: asks another service to answer when it has something to tell.

    Args:
        method: the feed's RPC.
        request: the request, but for the cursor.
        told: the fields of the answer in which changes are.
        seconds: how long it asks to wait (`wait_seconds`). A service of the release before waits
            for 4 s at most, and is asked again.
    """

    async def wait(cursor: str) -> bool:
        question = type(request)()
        question.CopyFrom(request)
        # All is read afterwards, with a reading that somebody else may share.
        question.cursor, question.limit, question.wait_seconds = cursor, 1, seconds
        page = await method(question, timeout=seconds + ANSWER_SECONDS)
        return any(getattr(page, name) for name in told)

    return wait


class Follower:
    """Follows a feed: reads it whenever it tells of something, or every second.

    It is read at once when somebody must know now.

    Args:
        name: what log lines call it.
        fetch: asks for one page behind a cursor and applies it; answers the next cursor and
            whether more is waiting.
        wait: returns when something may be behind a cursor, and after some seconds in any case;
            answers whether to read. A server of the release before answers it at once.
    """

    def __init__(
        self,
        name: str,
        fetch: Callable[[str], Awaitable[tuple[str, bool]]],
        wait: Callable[[str], Awaitable[bool]] | None = None,
    ) -> None:
        self._name = name
        self._fetch = fetch
        self._wait = wait
        self._last_read = LAST_READ.labels(name.replace(" ", "_"))
        self._cursor = ""
        self._lock = asyncio.Lock()
        self._outage = Repeated(log, "feed unavailable", feed=name)
        self._readings = 0
        self._last_good = 0
        self.synced = False
        """Whether all that there was has been read at least once."""

    def start_at(self, cursor: str) -> None:
        """Goes on behind a cursor that was kept."""
        self._cursor = cursor

    async def refresh(self) -> None:
        """Reads everything that has changed by now.

        Callers that wait while a reading runs share the next one, so that a flood of questions
        costs the other service two answers.
        """
        wanted = self._readings + 1
        async with self._lock:
            if self._last_good >= wanted:
                return
            self._readings += 1
            more = True
            while more:
                self._cursor, more = await self._fetch(self._cursor)
            self._last_good = self._readings
            self._last_read.set_to_current_time()
            self.synced = True

    async def try_refresh(self) -> None:
        """Reads what has changed if that is possible now; `run` catches up otherwise."""
        try:
            await self.refresh()
        except Exception as error:
            log.debug("feed unavailable", feed=self._name, error=brief(error))

    async def run(self) -> None:
        """Follows the feed for as long as the service lives."""
        loop = asyncio.get_running_loop()
        while True:
            asked = loop.time()
            begin_background_call()
            try:
                if self._wait is None or not self.synced or await self._wait(self._cursor):
                    await self.refresh()
                self._last_read.set_to_current_time()
                self._outage.worked()
            except Exception as error:
                self._outage.failed(error)
            # However much there is to tell, and whoever does not wait.
            await asyncio.sleep(max(0.0, asked + POLL_SECONDS - loop.time()))
