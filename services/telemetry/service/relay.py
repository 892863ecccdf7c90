"""Publishes stored events. The event table is its own outbox: nothing is written twice.

Rows are read in the order of the transactions that stored them, up to the oldest one that still
runs (`store.relay`), so that an event whose transaction commits late is not skipped. The end of a
batch is kept before it is published: after a crash, the same messages with the same ids are sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import groupby
from typing import Final

from servicekit import logs
from servicekit.ids import Clock
from servicekit.logs import brief
from servicekit.messaging import Messaging, Outgoing, publish_by_tenant
from servicekit.outbox import relay
from servicekit.postgres import Database
from servicekit.streams import KEEP, SUBJECT_ROOT, TELEMETRY
from services.telemetry.domain.announcement import NAME, announcements
from services.telemetry.metrics import EVENTS_OLDEST
from services.telemetry.store import relay as store
from services.telemetry.store.relay import RelayedEvent, RelayState

log = logs.get(__name__)

BATCH: Final = 1_000
_LINGER_SECONDS: Final = 0.25
_LOOK_SECONDS: Final = 10.0


class EventRelay:
    """The relay of the event table."""

    def __init__(self, database: Database, messaging: Messaging, clock: Clock) -> None:
        self._database = database
        self._messaging = messaging
        self._clock = clock
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Says that events were stored."""
        self._wake.set()

    async def run(self) -> None:
        """Publishes what is stored, for as long as the service lives."""
        await relay(
            self._messaging, self._wake, self.publish, stream=TELEMETRY, linger=_LINGER_SECONDS
        )

    async def watch(self) -> None:
        """Shows every few seconds how long events have waited, also while NATS is away."""
        while True:
            try:
                await self.look()
            except Exception as error:
                # With the database away it stays as it was last seen.
                log.debug("does not see what waits", error=brief(error))
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self) -> None:
        """Looks once."""
        async with self._database.transaction() as connection:
            oldest = await store.oldest_waiting(connection)
        waits = self._clock() - oldest if oldest is not None else timedelta(0)
        EVENTS_OLDEST.set(max(waits.total_seconds(), 0.0))

    async def publish(self, stream: str) -> None:
        """Publishes what is stored by now; all of the last days when the stream is a new one.

        No transaction is open meanwhile. Two processes may publish the same batch at the same
        time; it is the same messages.
        """
        finished: RelayState | None = None
        while (batch := await self._cut(stream, finished)) is not None:
            finished, events = batch
            await self._send(events)

    async def _cut(
        self, stream: str, finished: RelayState | None
    ) -> tuple[RelayState, Sequence[RelayedEvent]] | None:
        """Keeps that a batch is published and where the next one ends, and reads that one.

        `None` when all is published.
        """
        async with self._database.transaction() as connection:
            if finished is None and await store.is_idle(connection, stream):
                return None
            state = await store.lock(connection)
            if state.stream != stream:
                log.info("publishing events to a new stream", stream=stream)
                state = RelayState(stream, store.BEGINNING, store.BEGINNING)
            elif state == finished:  # else another process was faster
                state = replace(state, done=state.end)
            if state.end == state.done:
                end = await store.next_end(connection, state.done, BATCH)
                state = replace(state, end=end or state.end)
            await store.keep(connection, state)
            if state.end == state.done:
                return None
            # What the stream would drop at once, for its age, is not sent.
            events = await store.between(connection, state.done, state.end, self._clock() - KEEP)
            return state, events

    async def _send(self, events: Sequence[RelayedEvent]) -> None:
        _, failure = await publish_by_tenant(self._messaging, _messages(events))
        if failure is not None:
            raise failure


def _messages(events: Sequence[RelayedEvent]) -> Iterator[Outgoing]:
    for tenant_id, group in groupby(events, key=lambda relayed: relayed.event.tenant_id):
        pairs = [(relayed.event, relayed.event_id) for relayed in group]
        for message in announcements(SUBJECT_ROOT, tenant_id, pairs):
            yield Outgoing(str(message.id), f"{SUBJECT_ROOT}.{tenant_id}.{NAME}", message.payload)
