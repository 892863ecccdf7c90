"""Publishes stored events. The event table is its own outbox: nothing is written twice.

Rows are read in the order of the transactions that stored them, up to the oldest one that still
runs (`store.relay`), so that an event whose transaction commits late is not skipped. The end of a
batch is kept before it is published: after a crash, the same messages with the same ids are sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import groupby
from operator import itemgetter
from typing import Final
from uuid import UUID

from contract.events.telemetry import DeviceEvents, ReportedEvent
from contract.subjects import KEEP, SUBJECT_ROOT, TELEMETRY
from servicekit.data.postgres import Database
from servicekit.data.quarantine import forget, note, noted, place, readable
from servicekit.ids import Clock
from servicekit.messaging.jetstream import Messaging, Outgoing, publish_by_tenant
from servicekit.messaging.outbox import relay
from servicekit.observability import logs
from servicekit.observability.logs import brief
from services.telemetry.metrics import EVENTS_OLDEST
from services.telemetry.relay import store
from services.telemetry.relay.domain import Announcement, announcements
from services.telemetry.relay.store import RelayState, TenantEvent

log = logs.get(__name__)

BATCH: Final = 1_000
_PLACE: Final = place("telemetry", "event_relay")
_LINGER_SECONDS: Final = 0.25
_LOOK_SECONDS: Final = 10.0


class EventRelay:
    """The relay of the event table."""

    def __init__(self, database: Database, messaging: Messaging, clock: Clock) -> None:
        self._database = database
        self._messaging = messaging
        self._clock = clock
        self._wake = asyncio.Event()
        self._tried_again = False

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
                log.debug("backlog unknown", error=brief(error))
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self) -> None:
        """Looks once."""
        async with self._database.system_transaction("the relay serves all tenants") as connection:
            oldest = await store.oldest_waiting(connection)
        waits = self._clock() - oldest if oldest is not None else timedelta(0)
        EVENTS_OLDEST.set(max(waits.total_seconds(), 0.0))

    async def publish(self, stream: str) -> None:
        """Publishes what is stored by now; all of the last days when the stream is a new one.

        No transaction is open meanwhile. Two processes may publish the same batch at the same
        time; it is the same messages.
        """
        if not self._tried_again:
            await self._try_again()
            self._tried_again = True
        finished: RelayState | None = None
        while (batch := await self._cut(stream, finished)) is not None:
            finished, events = batch
            await self._send(events)

    async def _cut(
        self, stream: str, finished: RelayState | None
    ) -> tuple[RelayState, Sequence[TenantEvent]] | None:
        """Keeps that a batch is published and where the next one ends, and reads that one.

        `None` when all is published.
        """
        async with self._database.system_transaction("the relay serves all tenants") as connection:
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

    async def _send(self, events: Sequence[TenantEvent]) -> set[str]:
        """Publishes events; answers the keys of those that nobody could ever publish."""
        left_out: set[str] = set()

        def leave_out(event: ReportedEvent, error: Exception) -> None:
            key = _key(event)
            left_out.add(key)
            note(_PLACE, key, error)

        messages = {str(message.id): message for message in _messages(events, leave_out)}
        done = await publish_by_tenant(
            self._messaging,
            [
                Outgoing(
                    key, f"{SUBJECT_ROOT}.{message.tenant_id}.{DeviceEvents.NAME}", message.payload
                )
                for key, message in messages.items()
            ],
        )
        for key, error in done.refused.items():
            for event in messages[key].events:
                leave_out(event, error)
        if done.failure is not None:
            raise done.failure
        return left_out

    async def _try_again(self) -> None:
        """Publishes what was left out, if this release can; once, when the service starts."""
        async with self._database.system_transaction("the relay serves all tenants") as connection:
            keys = await noted(connection, "telemetry", _PLACE)
            known = readable(_PLACE, keys, _parse_key, str)
            events = await store.named(connection, known, self._clock() - KEEP) if known else ()
        if not keys:
            return
        left_out = await self._send(events)
        async with self._database.system_transaction("the relay serves all tenants") as connection:
            # With those that the stream would drop at once, or whose events are kept no longer.
            await forget(connection, "telemetry", _PLACE, set(keys) - left_out)


def _messages(
    events: Sequence[TenantEvent], left_out: Callable[[ReportedEvent, Exception], None]
) -> Iterator[Announcement]:
    for tenant_id, group in groupby(events, key=itemgetter(0)):
        reported = (event for _, event in group)
        yield from announcements(SUBJECT_ROOT, tenant_id, reported, left_out)


def _key(event: ReportedEvent) -> str:
    return f"{event.device_id}/{event.event_id}"


def _parse_key(key: str) -> tuple[UUID, str]:
    device_id, _, event_id = key.partition("/")
    return UUID(device_id), event_id
