"""The transactional outbox: events commit with the change they tell of, a relay publishes them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from contract.events import EVENT_TYPES
from contract.subjects import EVENTS, KEEP, Stream
from servicekit.data import quarantine
from servicekit.data.postgres import Connection, Database
from servicekit.data.quarantine import place
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.jetstream import AUDIT, Messaging, Outgoing, publish_by_tenant
from servicekit.observability import logs
from servicekit.observability.logs import Repeated

log = logs.get(__name__)

_BATCH: Final = 256
_POLL_SECONDS: Final = 1.0
_IDLE_POLL_SECONDS: Final = 15.0
"""What another process left behind, because it died before it published, or wrote without a relay
of its own; and whether the stream is still the same."""
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
    outage = Repeated(log, "event publishing postponed")
    # A server that was away may have lost its streams.
    messaging.wake_after_outage(wake)
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


async def write(connection: Connection, context: str, *events: CloudEvent) -> None:
    """Writes events into the outbox of a context, whose relay finds them within seconds.

    Raises:
        ValueError: an event has no example in the contract, or is another context's.
    """
    for event in events:
        kind = type(event.event)
        if kind.context() != context or EVENT_TYPES.get(kind.NAME) is not kind:
            raise ValueError(f"{kind.NAME} is no event of {context}")
    await connection.executemany(
        f"INSERT INTO {context}.outbox (id, subject, payload) VALUES ($1, $2, $3)",
        [(event.id, event.subject, event.payload()) for event in events],
    )


Follower = Callable[[Connection, Sequence[CloudEvent]], Awaitable[None]]
"""Writes what else belongs to events, into their transaction."""


class Outbox:
    """The outbox of one service's schema, and its relay to the stream."""

    def __init__(self, database: Database, context: str) -> None:
        self._database = database
        self._context = context
        self._wake = asyncio.Event()
        self._followers: list[Follower] = []
        self._incarnation = ""
        self._forget_at = 0.0
        self._place = place(context, "outbox")
        self._retried: set[str] | None = None
        """Those quarantined events that are tried once more; `None` before the service knows."""

    def followed_by(self, follower: Follower) -> None:
        """Has something else written with each event."""
        self._followers.append(follower)

    async def append(self, connection: Connection, *events: CloudEvent) -> None:
        """Writes events into the transaction of the change that they tell of.

        Raises:
            ValueError: an event has no example in the contract, or is another service's.
        """
        await write(connection, self._context, *events)
        for follow in self._followers:
            await follow(connection, events)
        self._wake.set()

    async def run(self, messaging: Messaging) -> None:
        """Publishes what committed, in order, for as long as the service lives."""

        async def publish(incarnation: str) -> None:
            await self._follow_stream(incarnation)
            if self._retried is None:
                self._retried = await self._try_again()
            while await self._publish_batch(messaging):
                pass
            await self._forget_old(messaging)

        await relay(messaging, self._wake, publish)

    async def _publish_batch(self, messaging: Messaging) -> int:
        async with self._database.system_transaction("the outbox has all tenants") as connection:
            # One relay at a time keeps the order, however many processes the service has.
            if not await connection.fetchval(
                "SELECT pg_try_advisory_xact_lock(hashtext($1))",
                f"outbox:{self._context}",
            ):
                return 0
            rows = await connection.fetch(
                f"SELECT id, subject, payload FROM {self._context}.outbox"
                " WHERE published_at IS NULL AND quarantined_at IS NULL ORDER BY id LIMIT $1",
                _BATCH,
            )
            done = await publish_by_tenant(
                messaging,
                [Outgoing(str(row["id"]), row["subject"], row["payload"].encode()) for row in rows],
            )
            if done.published:
                await connection.execute(
                    f"UPDATE {self._context}.outbox SET published_at = now()"
                    " WHERE id = ANY ($1::uuid[])",
                    done.published,
                )
            if done.refused:
                await connection.execute(
                    f"UPDATE {self._context}.outbox SET quarantined_at = now()"
                    " WHERE id = ANY ($1::uuid[])",
                    list(done.refused),
                )
            if self._retried and (healed := self._retried.intersection(done.published)):
                await quarantine.forget(connection, self._context, self._place, healed)
        for key, error in done.refused.items():
            quarantine.note(self._place, key, error)
        if done.failure is not None:
            raise done.failure
        return len(done.published) + len(done.refused)

    async def _try_again(self) -> set[str]:
        """Has the relay try once more what it left out: this may be a release that can publish it.

        Once, when the service starts.
        """
        async with self._database.system_transaction("the outbox has all tenants") as connection:
            rows = await connection.fetch(
                f"UPDATE {self._context}.outbox SET quarantined_at = NULL"
                " WHERE published_at IS NULL AND quarantined_at IS NOT NULL RETURNING id"
            )
        return {str(row["id"]) for row in rows}

    async def _follow_stream(self, incarnation: str) -> None:
        """Publishes everything again when the stream is not the one that had it."""
        if incarnation == self._incarnation:
            return
        async with self._database.system_transaction("the outbox has all tenants") as connection:
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
        audit = await messaging.consumer_state(AUDIT)
        if audit is not None and not audit.lost_some:
            async with self._database.system_transaction(
                "the outbox has all tenants"
            ) as connection:
                await connection.execute(
                    f"DELETE FROM {self._context}.outbox WHERE published_at < now() - $1::interval",
                    KEEP,
                )
        # Only now: what failed is tried again with the next look.
        self._forget_at = now + _FORGET_SECONDS
