"""Who reads events: lets integrators into NATS, keeps their consumers, and cuts them off.

It is level-triggered: every second the connections and consumers that there are are compared with
the credentials that work. So a revocation takes effect whatever was down when it was made, and a
stream that was made anew gets its consumers again. Connections and consumers are looked after
apart: a stream without a leader keeps whoever asks for it waiting, and nobody may stay for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeout
from prometheus_client import Counter, Gauge

from servicekit import logs
from servicekit.ids import Clock
from servicekit.logs import Repeated, brief
from servicekit.messaging import Messaging, servers_of, trust
from servicekit.settings import read_secret
from servicekit.streams import STREAMS, Stream
from services.identity.nats_tokens import NatsSigner, read_request
from services.identity.service.event_credentials import EventCredentials
from services.identity.settings import IdentitySettings

log = logs.get(__name__)

_ASKED: Final = Counter(
    "evergreen_event_logins_total", "Connections of integrators, by outcome.", ["outcome"]
)
_CUT: Final = Counter(
    "evergreen_event_connections_cut_total", "Connections that were cut.", ["why"]
)
_OPEN: Final = Gauge("evergreen_event_connections", "Connections of integrators.")

USER: Final = "gatekeeper"
_SECONDS: Final = 1.0
_PASSES: Final = 30
_ANSWERS_SECONDS: Final = 0.3
_WHOLE_CHECK_SECONDS: Final = 60.0
_LIFE: Final = timedelta(hours=1)
"""How long a connection lives if nobody can cut it."""
_RENEW_AFTER: Final = timedelta(minutes=45)
"""It is cut before, which programs answer by connecting again; an expiry ends some of them."""
MOST_CONNECTIONS: Final = 8
"""Of one credential, on all servers together."""
_MOST_SUBSCRIPTIONS: Final = 64
_LISTED: Final = 4096


class Gatekeeper:
    """Identity's side of NATS."""

    def __init__(
        self, settings: IdentitySettings, signer: NatsSigner, messaging: Messaging, clock: Clock
    ) -> None:
        self._settings = settings
        self._signer = signer
        self._messaging = messaging
        self._clock = clock
        self._changed = (asyncio.Event(), asyncio.Event())
        self._client: Client | None = None
        self._kept: Mapping[str, frozenset[str]] | None = None
        self._incarnations: list[str] = []
        self._check_at = 0.0
        # Where the streams ended at the latest passes. A tenant that is known now was made after
        # the oldest of them, and so were its events.
        self._ends: deque[list[int]] = deque(maxlen=_PASSES)

    def changed(self) -> None:
        """Says that a credential was made or revoked."""
        for event in self._changed:
            event.set()

    async def guard(self, credentials: EventCredentials) -> None:
        """Lets integrators in and cuts them off, for as long as the service lives."""
        try:
            await self._again_and_again(self._guard, credentials, self._changed[0])
        finally:
            if self._client is not None:
                await self._client.close()

    async def keep(self, credentials: EventCredentials) -> None:
        """Keeps the consumers, for as long as the service lives."""
        await self._again_and_again(self._keep, credentials, self._changed[1])

    async def _again_and_again(
        self,
        work: Callable[[EventCredentials], Awaitable[None]],
        credentials: EventCredentials,
        changed: asyncio.Event,
    ) -> None:
        outage = Repeated(log, "integrators wait")
        while True:
            changed.clear()
            try:
                await work(credentials)
                outage.worked()
            except Exception as error:
                # The database or NATS is away.
                outage.failed(error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), _SECONDS)

    async def _guard(self, credentials: EventCredentials) -> None:
        client = await self._connected(credentials)
        # Who is there, and then who may be: a credential that is made now may connect at once.
        found = [connection async for connection in _connections(client)]
        await self._cut(client, found, await credentials.readers())

    async def _keep(self, credentials: EventCredentials) -> None:
        wanted = await credentials.readers()
        incarnations = [await self._messaging.ensure_stream(stream) for stream in STREAMS]
        if incarnations != self._incarnations:
            self._ends.clear()
        ends = [await self._messaging.last_sequence(stream) for stream in STREAMS]
        await self._keep_consumers(wanted, incarnations)
        self._ends.append(ends)

    async def _connected(self, credentials: EventCredentials) -> Client:
        if self._client is not None and not self._client.is_closed:
            return self._client
        settings = self._settings

        async def answer(message: Msg) -> None:
            await self._answer(credentials, message)

        client = await nats.connect(
            servers_of(settings.nats_url),
            tls=trust(settings),
            user=USER,
            password=read_secret(settings.nats_gatekeeper_password_file),
            name=USER,
            inbox_prefix=f"_INBOX_{USER}",
            connect_timeout=2,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.5,
            # A server that hangs, or whose machine is gone, says nothing.
            ping_interval=2,
            max_outstanding_pings=1,
            error_cb=_quiet,
        )
        # One after the other; of a flood, the rest is dropped, and the server refuses it.
        await client.subscribe(
            "$SYS.REQ.USER.AUTH", queue="identity", cb=answer, pending_msgs_limit=256
        )
        self._client = client
        return client

    async def _answer(self, credentials: EventCredentials, message: Msg) -> None:
        try:
            request = read_request(message.data)
            at = self._clock()
            if request.expires_at < at.timestamp():
                return
            found = await credentials.admit(request.user, request.secret)
            if found is None:
                _ASKED.labels("refused").inc()
                await message.respond(self._signer.refuse(request, at))
                return
            until = min(at + _LIFE, found.expires_at or at + _LIFE)
            _ASKED.labels("admitted").inc()
            await message.respond(self._signer.admit(request, str(found.id), at, until))
        except Exception as error:
            # The server refuses whom nobody vouches for.
            _ASKED.labels("failed").inc()
            log.warning("an integrator cannot be let in", error=brief(error))

    async def _cut(
        self,
        client: Client,
        found: list[dict[str, Any]],
        wanted: Mapping[str, frozenset[str]],
    ) -> None:
        for connection, why in self._to_cut(found, wanted):
            _CUT.labels(why).inc()
            log.info("an integrator's connection is cut", user=connection["user"], why=why)
            await client.publish(
                f"$SYS.REQ.SERVER.{connection['server']}.KICK",
                json.dumps({"cid": connection["cid"]}).encode(),
                # Without somewhere to answer to, the server does nothing.
                reply=client.new_inbox(),
            )
        _OPEN.set(len(found))

    def _to_cut(
        self, connections: list[dict[str, Any]], wanted: Mapping[str, frozenset[str]]
    ) -> Iterator[tuple[dict[str, Any], str]]:
        at = self._clock()
        of_user: dict[str, int] = {}
        for connection in sorted(connections, key=lambda c: c["start"]):
            user = connection["user"]
            of_user[user] = of_user.get(user, 0) + 1
            if user not in wanted:
                yield connection, "revoked"
            elif connection["start"] < at - _RENEW_AFTER:
                yield connection, "renewal"
            elif of_user[user] > MOST_CONNECTIONS:
                yield connection, "too many connections"
            elif connection["subscriptions"] > _MOST_SUBSCRIPTIONS:
                yield connection, "too many subscriptions"

    async def _keep_consumers(
        self, wanted: Mapping[str, frozenset[str]], incarnations: list[str]
    ) -> None:
        now = asyncio.get_running_loop().time()
        if (wanted, incarnations) == (self._kept, self._incarnations) and now < self._check_at:
            return
        for stream in STREAMS:
            await self._keep_consumers_of(stream, wanted)
        self._kept, self._incarnations = wanted, incarnations
        self._check_at = now + _WHOLE_CHECK_SECONDS

    async def _keep_consumers_of(
        self, stream: Stream, wanted: Mapping[str, frozenset[str]]
    ) -> None:
        found = await self._messaging.readers(stream)
        full = len(self._ends) == _PASSES
        unseen = self._ends[0][STREAMS.index(stream)] if full else 0
        for name, subjects in wanted.items():
            if found.get(name) != subjects:
                await self._messaging.keep_reader(stream, name, subjects, unseen)
        for name in found.keys() - wanted.keys():
            if _is_reader(name):
                await self._messaging.drop_reader(stream, name)


async def _connections(client: Client) -> AsyncIterator[dict[str, Any]]:
    """The integrators' connections, server by server, as each answers."""
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox)
    try:
        asked = {"auth": True, "acc": "INTEGRATORS", "limit": _LISTED}
        await client.publish("$SYS.REQ.SERVER.PING.CONNZ", json.dumps(asked).encode(), reply=inbox)
        patience = 2.0
        while True:
            try:
                answer = await subscription.next_msg(timeout=patience)
            except NatsTimeout:
                break
            # All servers of a cluster answer; how many there are is not known.
            patience = _ANSWERS_SECONDS
            data = json.loads(answer.data)["data"]
            for found in data["connections"] or ():
                yield {
                    "server": data["server_id"],
                    "cid": found["cid"],
                    "user": found.get("authorized_user", ""),
                    "start": _time(found["start"]),
                    "subscriptions": found.get("subscriptions", 0),
                }
    finally:
        await subscription.unsubscribe()


def _time(text: str) -> datetime:
    """A time of Go's, whose nanoseconds Python does not read."""
    return datetime.fromisoformat(text[:19] + "+00:00")


def _is_reader(name: str) -> bool:
    """Whether a consumer is one of ours: they are named by credentials' ids."""
    return len(name) == 36 and name.count("-") == 4


async def _quiet(error: Exception) -> None:
    log.debug("nats", error=brief(error))
