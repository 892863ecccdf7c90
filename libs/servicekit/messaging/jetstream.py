"""NATS JetStream: publishing facts that are already in PostgreSQL, and consuming them."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Protocol

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import BadSubjectError, MaxPayloadError
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    ConsumerInfo,
    DeliverPolicy,
    DiscardPolicy,
    StreamConfig,
)
from nats.js.errors import BadRequestError, NotFoundError

from contract.subjects import EVENTS, KEEP, SUBJECT_ROOT, Stream, stream_of
from servicekit.ids import new_id
from servicekit.observability import logs
from servicekit.observability.logs import Repeated, brief
from servicekit.settings import ServiceSettings, read_secret

log = logs.get(__name__)

AUDIT: Final = "audit"
"""The durable consumer that records everything; nothing is forgotten before it has it."""
_DEDUPLICATE: Final = timedelta(minutes=10)
_INCARNATION: Final = "evergreen-incarnation"
_RETRY_SECONDS: Final = 1.0
_KEPT: Final = ("subjects", "max_age", "max_bytes", "num_replicas", "duplicate_window")
"""What of a stream's configuration its keeper brings up to date."""
_LANES: Final = 64
_SUBJECT: Final = re.compile(re.escape(SUBJECT_ROOT) + r"(\.[A-Za-z0-9_-]+){3}", re.ASCII)
_OF_THE_MESSAGE: Final = (MaxPayloadError, BadSubjectError)
"""What is wrong with one message, and not with the way to the stream."""
_HEADERS: Final = 256
"""Bytes of a message beside its payload, at most; the server counts them in."""


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
        self._wakes: set[asyncio.Event] = set()

    def wake_after_outage(self, wake: asyncio.Event) -> None:
        """Has an event set whenever the connection is up again."""
        self._wakes.add(wake)

    async def _reconnected(self) -> None:
        for wake in self._wakes:
            wake.set()

    async def _connected(self) -> Client:
        async with self._lock:
            if self._client is None or self._client.is_closed:
                trusted = trust(self._settings)
                self._client = await nats.connect(
                    servers_of(self._settings.nats_url),
                    tls=trusted,
                    user=self._settings.nats_user or None,
                    password=read_secret(self._settings.nats_password_file) or None,
                    name=self._settings.nats_user or "evergreen",
                    # Each user may read its own answers only (deploy/nats).
                    inbox_prefix=f"_INBOX_{self._settings.nats_user}",
                    connect_timeout=2,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.5,
                    allow_reconnect=True,
                    # A server that hangs, or whose machine is gone, says nothing.
                    ping_interval=5,
                    error_cb=on_failure(self._settings, trusted),
                    reconnected_cb=self._reconnected,
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

    async def ensure_stream(self, stream: Stream = EVENTS) -> str:
        """Makes a stream if it is not there; answers which incarnation of it there is.

        A stream that was lost and made again has another incarnation, so that every outbox
        notices and publishes what it has once more.
        """
        jetstream = await self._jetstream()
        for _ in range(3):
            try:
                info = await jetstream.stream_info(stream.name)
            except NotFoundError:
                wanted = self._wanted(stream)
                wanted.metadata = {_INCARNATION: str(new_id())}
                # Another process may be faster.
                with contextlib.suppress(BadRequestError):
                    await jetstream.add_stream(wanted)
                continue
            if stream.keeper == self._settings.nats_user:
                await self._update(jetstream, stream, info.config)
            return (info.config.metadata or {}).get(_INCARNATION, "")
        raise ConnectionError(f"the stream {stream.name} cannot be made")

    def _wanted(self, stream: Stream) -> StreamConfig:
        settings = self._settings
        return StreamConfig(
            name=stream.name,
            subjects=list(stream.subjects),
            max_age=KEEP.total_seconds(),
            max_bytes=(
                settings.events_stream_bytes
                if stream is EVENTS
                else settings.telemetry_stream_bytes
            ),
            num_replicas=settings.stream_replicas,
            discard=DiscardPolicy.OLD,
            duplicate_window=_DEDUPLICATE.total_seconds(),
            # Messages leave by age and size only. Who wants to begin anew deletes the stream.
            deny_delete=True,
            deny_purge=True,
        )

    async def _update(
        self, jetstream: JetStreamContext, stream: Stream, found: StreamConfig
    ) -> None:
        wanted = self._wanted(stream)
        if all(getattr(found, name) == getattr(wanted, name) for name in _KEPT):
            return
        log.info("stream configuration updated", stream=stream.name)
        wanted.metadata = found.metadata
        await jetstream.update_stream(wanted)

    async def consumer_state(self, durable: str) -> ConsumerState | None:
        """Where a consumer stands, at the beginning if there is none; `None` without a stream."""
        jetstream = await self._jetstream()
        try:
            stream = await jetstream.stream_info(EVENTS.name)
        except NotFoundError:
            return None
        acknowledged, waiting = 0, stream.state.messages
        with contextlib.suppress(NotFoundError):
            consumer = await jetstream.consumer_info(EVENTS.name, durable)
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
        config = (await jetstream.stream_info(EVENTS.name)).config
        incarnation = str(new_id())
        config.metadata = {**(config.metadata or {}), _INCARNATION: incarnation}
        await jetstream.update_stream(config)
        return incarnation

    async def read_again(self, durable: str) -> None:
        """Makes a consumer begin anew with the oldest message that the stream has."""
        with contextlib.suppress(NotFoundError):
            await (await self._jetstream()).delete_consumer(EVENTS.name, durable)

    async def publish(self, subject: str, payload: bytes, message_id: str) -> None:
        """Publishes one message and waits until the stream has stored it.

        Raises:
            MaxPayloadError: it is larger than the server takes, which would close the connection.
        """
        client = await self._connected()
        if len(payload) > client.max_payload - _HEADERS:
            raise MaxPayloadError
        await client.jetstream(timeout=5).publish(
            subject, payload, stream=stream_of(subject).name, headers={"Nats-Msg-Id": message_id}
        )

    async def last_sequence(self, stream: Stream) -> int:
        """The sequence number of the newest message of a stream."""
        return (await (await self._jetstream()).stream_info(stream.name)).state.last_seq

    async def keep_reader(
        self, stream: Stream, name: str, subjects: Iterable[str], unseen: int = 0
    ) -> None:
        """Makes a durable consumer that others read, or makes it anew for other subjects.

        A consumer that gets further subjects would skip what was published on them meanwhile: it
        begins again with what is not acknowledged, and not later than after `unseen`.
        """
        jetstream = await self._jetstream()
        start = 0
        with contextlib.suppress(NotFoundError):
            found = await jetstream.consumer_info(stream.name, name)
            if _subjects(found) == frozenset(subjects):
                # It was left out of the list, because nobody led it at that moment.
                return
            done = found.ack_floor.stream_seq if found.ack_floor else 0
            start = min(done, unseen) + 1
            await jetstream.delete_consumer(stream.name, name)
        await jetstream.add_consumer(
            stream.name,
            ConsumerConfig(
                durable_name=name,
                filter_subjects=sorted(subjects),
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE if start else DeliverPolicy.ALL,
                opt_start_seq=start or None,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=30,
                max_ack_pending=2_000,
                max_waiting=16,
            ),
        )

    async def readers(self, stream: Stream) -> dict[str, frozenset[str]]:
        """The durable consumers of a stream: the subjects of each, by its name."""
        jetstream = await self._jetstream()
        found: dict[str, frozenset[str]] = {}
        while page := await jetstream.consumers_info(stream.name, offset=len(found)):
            new = {info.name: _subjects(info) for info in page if info.name not in found}
            if not new:
                # Some that nobody leads were left out, so that others come twice.
                break
            found |= new
        return found

    async def drop_reader(self, stream: Stream, name: str) -> None:
        """Deletes a consumer."""
        with contextlib.suppress(NotFoundError):
            await (await self._jetstream()).delete_consumer(stream.name, name)

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
        outage = Repeated(log, "message handling postponed", consumer=durable)
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
            stream=EVENTS.name,
            config=ConsumerConfig(
                ack_policy=AckPolicy.EXPLICIT, ack_wait=30, max_ack_pending=batch
            ),
        )
        try:
            while True:
                try:
                    messages = await subscription.fetch(batch, timeout=5)
                except TimeoutError:
                    # Nothing new, or the stream is gone; the latter raises here.
                    await jetstream.consumer_info(EVENTS.name, durable)
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


def _subjects(consumer: ConsumerInfo) -> frozenset[str]:
    config = consumer.config
    one = [config.filter_subject] if config.filter_subject else []
    return frozenset(config.filter_subjects or one)


def servers_of(url: str) -> list[str]:
    """The servers of a cluster, of which any will do; there are commas between them."""
    return url.split(",")


def trust(settings: ServiceSettings) -> ssl.SSLContext | None:
    """What the server's certificate is checked with; `None` without TLS."""
    if not settings.nats_url.startswith("tls://"):
        return None
    return ssl.create_default_context(cafile=settings.nats_ca_file)


def on_failure(
    settings: ServiceSettings, trusted: ssl.SSLContext | None
) -> Callable[[Exception], Awaitable[None]]:
    """What a client does when its connection fails: it reads the CA, which may be a new one.

    Args:
        trusted: what `trust` returned, which the client connects with again and again.
    """

    async def renew(error: Exception) -> None:
        log.debug("nats", error=brief(error))
        if trusted is not None and settings.nats_ca_file is not None:
            # While the file is being replaced the next failure reads it.
            with contextlib.suppress(OSError):
                trusted.load_verify_locations(settings.nats_ca_file)

    return renew


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message that is to be published."""

    id: str
    subject: str
    payload: bytes


class Publisher(Protocol):
    """What publishes one message, and answers when the stream has it."""

    async def publish(self, subject: str, payload: bytes, message_id: str) -> None:
        """Publishes a message."""


@dataclass(slots=True)
class Publication:
    """What became of messages."""

    published: list[str] = field(default_factory=list)
    """The ids of those that the stream has."""
    refused: dict[str, Exception] = field(default_factory=dict)
    """The ids of those that no stream would ever take, and why."""
    failure: Exception | None = None
    """Why the others are still to be published."""


async def publish_by_tenant(publisher: Publisher, messages: Iterable[Outgoing]) -> Publication:
    """Publishes messages: those of a tenant one after the other, tenants at the same time.

    So a tenant's order holds whatever fails: what follows a message that could not be published
    is not sent. What follows one that nobody could ever publish is.
    """
    done = Publication()
    lanes: dict[str, list[Outgoing]] = {}
    for message in messages:
        if _SUBJECT.fullmatch(message.subject) is None:
            # A server would take it for another command, and close the connection.
            done.refused[message.id] = ValueError("the subject is not that of an event")
        else:
            lanes.setdefault(message.subject.split(".", 3)[2], []).append(message)
    waiting = iter(list(lanes.values()))

    async def worker() -> None:
        for lane in waiting:
            for message in lane:
                if done.failure is not None:
                    return
                try:
                    await publisher.publish(message.subject, message.payload, message.id)
                except _OF_THE_MESSAGE as error:
                    done.refused[message.id] = error
                except Exception as error:
                    done.failure = done.failure or error
                    return
                else:
                    done.published.append(message.id)

    await asyncio.gather(*(worker() for _ in range(min(_LANES, len(lanes)))))
    return done
