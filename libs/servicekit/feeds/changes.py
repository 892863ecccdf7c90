"""What the readers of feeds wait for: their questions are answered when something has changed.

A reader that asked every second would cost more than all polls of a small fleet. So it says how
long it would wait, and the server looks, for all readers at once and with one statement a second,
whether there is anything to tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from servicekit.data.postgres import Lane
from servicekit.feeds.feed import LOCAL_WAIT_SECONDS, POLL_SECONDS, Follower
from servicekit.observability import logs
from servicekit.observability.logs import Repeated

log = logs.get(__name__)

T = TypeVar("T")

# Exactly the rows that the look before could not see, also those of transactions that began
# before others and committed after them. The first one in order, and not whether there is one: a
# plan for any snapshot expects to meet one soon wherever it looks, and would look through a
# million rows, every second.
_LOOK: Final = """
SELECT pg_current_snapshot()::text AS snapshot, (
    SELECT changed_xid FROM ({rows}) AS fed
    WHERE changed_xid >= pg_snapshot_xmin($1::text::pg_snapshot)
      AND NOT pg_visible_in_snapshot(changed_xid, $1::text::pg_snapshot)
    ORDER BY changed_xid LIMIT 1
) IS NOT NULL AS changed
"""
_EVERYTHING_IS_NEW: Final = "1:1:"


class Changes:
    """Knows when rows that feeds tell of have changed.

    Args:
        lane: a connection for this alone.
        rows: what feeds tell of: statements that select `changed_xid`, by an index.
    """

    def __init__(self, lane: Lane, *rows: str) -> None:
        self._lane = lane
        self._sql = _LOOK.format(rows=" UNION ALL ".join(rows))
        self._news = asyncio.Event()
        self._closed = False
        self._followers: list[Follower] = []

    async def run(self) -> None:
        """Looks once a second, for as long as the service lives."""
        outage = Repeated(log, "change notifications unavailable")
        snapshot = _EVERYTHING_IS_NEW
        while True:
            try:
                (found,) = await self._lane.fetch(self._sql, snapshot)
            except Exception as error:
                # A waiting reader finds out by itself what is wrong. The database that comes back
                # may be a restored one, which counts transactions anew.
                snapshot = _EVERYTHING_IS_NEW
                self._tell()
                outage.failed(error)
            else:
                snapshot = found["snapshot"]
                if found["changed"]:
                    self._tell()
                outage.worked()
            await asyncio.sleep(POLL_SECONDS)

    def close(self) -> None:
        """Ends all waiting: the service stops."""
        self._closed = True
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def answer(
        self, read: Callable[[], Awaitable[T]], seconds: float, *, has_news: Callable[[T], bool]
    ) -> T:
        """Reads a feed, and again when it had nothing to tell and something has changed since.

        Args:
            read: reads behind the reader's cursor.
            seconds: how long the reader would wait, for `LOCAL_WAIT_SECONDS` at most; 0 for not at
                all.
            has_news: whether what was read tells of anything.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + min(seconds, LOCAL_WAIT_SECONDS)
        while True:
            news = self._news
            found = await read()
            if has_news(found) or not await self._heard(news, until - loop.time()):
                return found

    async def _heard(self, news: asyncio.Event, seconds: float) -> bool:
        if seconds <= 0 or self._closed:
            return False
        try:
            await asyncio.wait_for(news.wait(), seconds)
        except TimeoutError:
            return False
        return not self._closed

    def follower(self, name: str, fetch: Callable[[str], Awaitable[tuple[str, bool]]]) -> Follower:
        """A follower of this process, which reads one of the feeds; its arguments are `Follower`'s.

        The service runs it.
        """
        follower = Follower(name, fetch, self.followed())
        self._followers.append(follower)
        return follower

    async def catch_up(self) -> None:
        """Has the followers of this process read what was just committed.

        Without it they would read it within a second, as those of other processes do. Never fails.
        """
        for follower in self._followers:
            await follower.try_refresh()

    def followed(self) -> Callable[[str], Awaitable[bool]]:
        """What a `Follower` of this process waits with."""
        news = self._news

        async def wait(_cursor: str) -> bool:
            nonlocal news
            await self._heard(news, LOCAL_WAIT_SECONDS)
            # Reading begins after this, so what is seen later than now is news to it.
            news = self._news
            return True

        return wait
