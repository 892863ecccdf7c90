"""Sees when the stream and the log do not fit together, and has the events sent again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from prometheus_client import Gauge

from servicekit.data.postgres import Connection, Database
from servicekit.messaging.jetstream import AUDIT, Messaging
from servicekit.observability import logs
from servicekit.observability.logs import brief
from services.audit.log import store
from services.audit.log.store import StreamPosition

log = logs.get(__name__)

_WAITING: Final = Gauge("evergreen_audit_waiting", "Events that are still to be recorded.")
_CHECK_SECONDS: Final = 60.0
_RETRY_SECONDS: Final = 2.0
_TOLD: Final = ""
"""In the place of the stream's incarnation: it was told that the database is an older one, and
everything is still to be read again."""

First: TypeAlias = Callable[[Connection], Awaitable[bool]]
"""Answers, in a transaction, whether no other process has told it yet."""


class GapWatch:
    """Compares what the stream says is recorded with what the database has.

    The log notes in its own transactions up to which message it goes (`stream_position`). So it
    is noticed when the stream dropped messages first, when the stream is not the one of before,
    and when the database is an older one that lacks entries which were acknowledged.

    Args:
        database: the service's.
        messaging: the stream.
        went_back: is called when the database is an older one, or may be one, because the stream
            is not the one of before.
    """

    def __init__(
        self,
        database: Database,
        messaging: Messaging,
        went_back: Callable[[First], Awaitable[object]],
    ) -> None:
        self._database = database
        self._messaging = messaging
        self._went_back = went_back
        self._checked = asyncio.Event()

    async def checked(self) -> None:
        """Waits for the first check: nothing may be read before it."""
        await self._checked.wait()

    async def run(self) -> None:
        """Checks for as long as the service lives."""
        while True:
            try:
                await self.check()
                self._checked.set()
                pause = _CHECK_SECONDS
            except Exception as error:
                # The database or NATS is away.
                log.debug("gap check postponed", error=brief(error))
                pause = _RETRY_SECONDS
            await asyncio.sleep(pause)

    async def check(self) -> bool:
        """Compares once; answers whether events were asked for again."""
        await self._messaging.ensure_stream()
        state = await self._messaging.consumer_state(AUDIT)
        if state is None:
            return False
        _WAITING.set(state.waiting)
        async with self._database.system_transaction("the position has no tenant") as connection:
            known = await store.stream_position(connection)
        incarnation = state.incarnation
        if known is None and state.acknowledged == 0 and state.oldest == 1:
            await self._start_at(StreamPosition(incarnation, 0))
            return False
        if known is None or known.incarnation in {incarnation, _TOLD}:
            told = known is not None and known.incarnation == _TOLD
            recorded = known.sequence if known else 0
            dropped = max(state.acknowledged, recorded) + 1 < state.oldest
            forgotten = state.acknowledged > recorded
            if not dropped and not forgotten and not told:
                return False
            if forgotten and known is not None and not told:
                await self._went_back(_first(known))
            log.warning(
                "stream and log differ; all events sent again",
                dropped=dropped,
                forgotten=forgotten,
            )
            incarnation = await self._messaging.publish_again()
        else:
            # A database of before an earlier gap names an earlier incarnation, too.
            await self._went_back(_first(known))
            log.info("new stream read from its beginning", stream=incarnation)
        await self._start_at(StreamPosition(incarnation, state.oldest - 1))
        await self._messaging.read_again(AUDIT)
        return True

    async def _start_at(self, position: StreamPosition) -> None:
        async with self._database.system_transaction("the position has no tenant") as connection:
            await store.start_position(connection, position)


def _first(known: StreamPosition) -> First:
    async def first(connection: Connection) -> bool:
        found = await store.stream_position(connection)
        if found is None or found.incarnation != known.incarnation:
            return False
        await store.start_position(connection, StreamPosition(_TOLD, found.sequence))
        return True

    return first
