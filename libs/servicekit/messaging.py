"""NATS JetStream: publishing facts that are already in PostgreSQL, and consuming them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeout
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, StreamConfig
from nats.js.errors import NotFoundError

from servicekit import logs
from servicekit.events import STREAM, SUBJECT_ROOT
from servicekit.ids import new_id
from servicekit.logs import Repeated, brief
from servicekit.settings import ServiceSettings, read_secret

log = logs.get(__name__)

KEEP: Final = timedelta(days=30)
"""How long the stream keeps messages, and an outbox what it published."""
AUDIT: Final = "audit"
"""The durable consumer that records everything; nothing is forgotten before it has it."""
_DEDUPLICATE: Final = timedelta(minutes=10)
_INCARNATION: Final = "evergreen-incarnation"
_RETRY_SECONDS: Final = 1.0
_MAX_BYTES: Final = 8 << 30


@dataclass(frozen=True, slots=True)
class ConsumerState:
    """Where a consumer stands in the stream. Positions are the stream's sequence numbers."""

    incarnation: str
    oldest: int
    """The first message that the stream still has, or would have next."""
    acknowledged: int
    """The last message up to which all were acknowledged."""
    waiting: int
    """Messages that are still to be acknowledged."""

    @property
    def lost_some(self) -> bool:
        """Whether the stream dropped messages, by age or size, that were not acknowledged."""
        return self.acknowledged + 1 < self.oldest


class Messaging:
    """The service's connection to NATS, made when it is first needed and kept up."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._client: Client | None = None
        self._lock = asyncio.Lock()

    async def _connected(self) -> Client:
        async with self._lock:
            if self._client is None or self._client.is_closed:
                self._client = await nats.connect(
                    self._settings.nats_url,
                    tls=_tls(self._settings),
                    user=self._settings.nats_user or None,
                    password=read_secret(self._settings.nats_password_file) or None,
                    name=self._settings.nats_user or "evergreen",
                    # Each user may read its own answers only (deploy/nats).
                    inbox_prefix=f"_INBOX_{self._settings.nats_user}",
                    connect_timeout=2,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.5,
                    allow_reconnect=True,
                    error_cb=_quiet,
                    # What waits in the client while NATS is away must not pile up: the outbox
                    # is the queue.
                    pending_size=4 << 20,
                )
        return self._client

    async def _jetstream(self) -> JetStreamContext:
        return (await self._connected()).jetstream(timeout=5)

    async def close(self) -> None:
        """Closes the connection."""
        if self._client is not None and not self._client.is_closed:
            await self._client.close()

    async def ensure_stream(self) -> str:
        """Makes the stream if it is not there; answers which incarnation of it there is.

        A stream that was lost and made again has another incarnation, so that every outbox
        notices and publishes what it has once more.
        """
        jetstream = await self._jetstream()
        for _ in range(2):
            try:
                info = await jetstream.stream_info(STREAM)
            except NotFoundError:
                await jetstream.add_stream(
                    StreamConfig(
                        name=STREAM,
                        subjects=[f"{SUBJECT_ROOT}.>"],
                        max_age=KEEP.total_seconds(),
                        max_bytes=_MAX_BYTES,
                        discard=DiscardPolicy.OLD,
                        duplicate_window=_DEDUPLICATE.total_seconds(),
                        metadata={_INCARNATION: str(new_id())},
                    )
                )
                continue
            return (info.config.metadata or {}).get(_INCARNATION, "")
        raise ConnectionError("the stream was made and is not there")

    async def consumer_state(self, durable: str) -> ConsumerState | None:
        """Where a consumer stands, at the beginning if there is none; `None` without a stream."""
        jetstream = await self._jetstream()
        try:
            stream = await jetstream.stream_info(STREAM)
        except NotFoundError:
            return None
        acknowledged, waiting = 0, stream.state.messages
        with contextlib.suppress(NotFoundError):
            consumer = await jetstream.consumer_info(STREAM, durable)
            acknowledged = consumer.ack_floor.stream_seq if consumer.ack_floor else 0
            waiting = (consumer.num_pending or 0) + (consumer.num_ack_pending or 0)
        return ConsumerState(
            incarnation=(stream.config.metadata or {}).get(_INCARNATION, ""),
            oldest=max(stream.state.first_seq, 1),
            acknowledged=acknowledged,
            waiting=waiting,
        )

    async def publish_again(self) -> str:
        """Gives the stream another incarnation, so that every outbox publishes what it has again.

        Answers the incarnation.
        """
        jetstream = await self._jetstream()
        config = (await jetstream.stream_info(STREAM)).config
        incarnation = str(new_id())
        config.metadata = {**(config.metadata or {}), _INCARNATION: incarnation}
        await jetstream.update_stream(config)
        return incarnation

    async def read_again(self, durable: str) -> None:
        """Makes a consumer begin anew with the oldest message that the stream has."""
        with contextlib.suppress(NotFoundError):
            await (await self._jetstream()).delete_consumer(STREAM, durable)

    async def publish(self, subject: str, payload: bytes, message_id: str) -> None:
        """Publishes one message and waits until the stream has stored it."""
        jetstream = await self._jetstream()
        await jetstream.publish(
            subject, payload, stream=STREAM, headers={"Nats-Msg-Id": message_id}
        )

    async def consume(
        self,
        durable: str,
        subject: str,
        handle: Callable[[Sequence[Msg]], Awaitable[None]],
        *,
        batch: int = 256,
    ) -> None:
        """Hands batches of messages to `handle`, in order, for as long as the service lives.

        Messages are acknowledged after `handle` returned. When it raises, the whole batch comes
        again, so `handle` must be idempotent.
        """
        outage = Repeated(log, "messages wait to be handled", consumer=durable)
        while True:
            try:
                await self._consume(durable, subject, handle, batch, outage)
            except Exception as error:
                outage.failed(error)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _consume(
        self,
        durable: str,
        subject: str,
        handle: Callable[[Sequence[Msg]], Awaitable[None]],
        batch: int,
        outage: Repeated,
    ) -> None:
        await self.ensure_stream()
        jetstream = await self._jetstream()
        subscription = await jetstream.pull_subscribe(
            subject,
            durable=durable,
            stream=STREAM,
            config=ConsumerConfig(
                ack_policy=AckPolicy.EXPLICIT, ack_wait=30, max_ack_pending=batch
            ),
        )
        try:
            while True:
                try:
                    messages = await subscription.fetch(batch, timeout=5)
                except NatsTimeout:
                    # Nothing new, or the stream is gone; the latter raises here.
                    await jetstream.consumer_info(STREAM, durable)
                    outage.worked()
                    continue
                try:
                    await handle(messages)
                except BaseException:
                    # Else they would come again only when the time to acknowledge has passed.
                    await asyncio.gather(
                        *(message.nak() for message in messages), return_exceptions=True
                    )
                    raise
                await asyncio.gather(*(message.ack() for message in messages))
                outage.worked()
        finally:
            await subscription.unsubscribe()


def _tls(settings: ServiceSettings) -> ssl.SSLContext | None:
    if not settings.nats_url.startswith("tls://"):
        return None
    return ssl.create_default_context(cafile=settings.nats_ca_file)


async def _quiet(error: Exception) -> None:
    log.debug("nats", error=brief(error))
