"""The transactional outbox: events commit with the change they tell of, a relay publishes them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from servicekit import logs
from servicekit.catalogue import CATALOGUE
from servicekit.events import Event
from servicekit.logs import Repeated
from servicekit.messaging import AUDIT, Messaging, Outgoing, publish_by_tenant
from servicekit.postgres import Connection, Database
from servicekit.streams import EVENTS, KEEP, Stream

log = logs.get(__name__)

_BATCH: Final = 256
_POLL_SECONDS: Final = 1.0
_IDLE_POLL_SECONDS: Final = 5.0
"""What another process left behind, because it died before it published."""
_FORGET_SECONDS: Final = 600.0
_PUBLISH_AGAIN_SECONDS: Final = 600.0
"""All events of a month are marked in one statement, which may take longer than most."""


async def relay(
    messaging: Messaging,
    wake: asyncio.Event,
    publish: Callable[[str], Awaitable[None]],
    *,
    stream: Stream = EVENTS,
    linger: float = 0.01,
) -> None:
    """Has `publish` called whenever there may be something, for as long as the service lives.

    `publish` gets the incarnation of the stream. What it could not publish waits in the database
    for the next time: after `wake`, or in a second, or in a few when nothing was written lately.

    Args:
        stream: where it is published.
        linger: seconds between `wake` and the call. The event is set before its transaction
            commits, so that a moment is needed; a longer one gathers what is published at once.
    """
    outage = Repeated(log, "events wait to be published")
    pause = _POLL_SECONDS
    while True:
        # Before it looks: what is written meanwhile is looked for once more.
        wake.clear()
        try:
            await publish(await messaging.ensure_stream(stream))
            outage.worked()
        except Exception as error:
            # The database or NATS is away; the rows wait, and so do we.
            outage.failed(error)
            pause = _POLL_SECONDS
        try:
            await asyncio.wait_for(wake.wait(), pause)
        except TimeoutError:
            pause = _IDLE_POLL_SECONDS
        else:
            await asyncio.sleep(linger)
            # The transaction may take longer than that to commit.
            pause = _POLL_SECONDS


class Outbox:
    """The outbox of one service's schema, and its relay to the stream."""

    def __init__(self, database: Database, context: str) -> None:
        self._database = database
        self._context = context
        self._wake = asyncio.Event()
        self._incarnation = ""
        self._forget_at = 0.0

    async def append(self, connection: Connection, *events: Event) -> None:
        """Writes events into the transaction of the change that they tell of.

        Raises:
            ValueError: an event is not in the catalogue, or is another service's.
        """
        for event in events:
            kind = CATALOGUE.get(event.name)
            if kind is None or kind.context != self._context:
                raise ValueError(f"{event.name} is not in the catalogue of {self._context}")
        await connection.executemany(
            f"INSERT INTO {self._context}.outbox (id, subject, payload) VALUES ($1, $2, $3)",
            [(event.id, event.subject, event.payload()) for event in events],
        )
        self._wake.set()

    async def run(self, messaging: Messaging) -> None:
        """Publishes what committed, in order, for as long as the service lives."""

        async def publish(incarnation: str) -> None:
            await self._follow_stream(incarnation)
            while await self._publish_batch(messaging):
                pass
            await self._forget_old(messaging)

        await relay(messaging, self._wake, publish)

    async def _publish_batch(self, messaging: Messaging) -> int:
        async with self._database.transaction() as connection:
            # One relay at a time keeps the order, however many processes the service has.
            if not await connection.fetchval(
                "SELECT pg_try_advisory_xact_lock(hashtext($1))",
                f"outbox:{self._context}",
            ):
                return 0
            rows = await connection.fetch(
                f"SELECT id, subject, payload FROM {self._context}.outbox"
                " WHERE published_at IS NULL ORDER BY id LIMIT $1",
                _BATCH,
            )
            published, failure = await publish_by_tenant(
                messaging,
                [Outgoing(str(row["id"]), row["subject"], row["payload"].encode()) for row in rows],
            )
            await connection.execute(
                f"UPDATE {self._context}.outbox SET published_at = now()"
                " WHERE id = ANY ($1::uuid[])",
                published,
            )
        if failure is not None:
            raise failure
        return len(published)

    async def _follow_stream(self, incarnation: str) -> None:
        """Publishes everything again when the stream is not the one that had it."""
        if incarnation == self._incarnation:
            return
        async with self._database.transaction() as connection:
            known = await connection.fetchval(
                f"SELECT incarnation FROM {self._context}.outbox_stream FOR UPDATE"
            )
            if known != incarnation:
                log.debug("publishing to a new stream", stream=incarnation)
                await connection.execute(
                    f"UPDATE {self._context}.outbox SET published_at = NULL"
                    " WHERE published_at IS NOT NULL",
                    timeout=_PUBLISH_AGAIN_SECONDS,
                )
                await connection.execute(
                    f"INSERT INTO {self._context}.outbox_stream (incarnation) VALUES ($1)"
                    " ON CONFLICT (only_row) DO UPDATE SET incarnation = excluded.incarnation",
                    incarnation,
                )
        self._incarnation = incarnation

    async def _forget_old(self, messaging: Messaging) -> None:
        """Deletes what left the stream by its age, if the audit log has all that left it."""
        now = asyncio.get_running_loop().time()
        if now < self._forget_at:
            return
        self._forget_at = now + _FORGET_SECONDS
        audit = await messaging.consumer_state(AUDIT)
        if audit is None or audit.lost_some:
            return
        async with self._database.transaction() as connection:
            await connection.execute(
                f"DELETE FROM {self._context}.outbox WHERE published_at < now() - $1::interval",
                KEEP,
            )
