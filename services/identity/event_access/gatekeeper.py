"""Who reads events: lets integrators into NATS, keeps their consumers, and cuts them off.

It is level-triggered: every second the connections and consumers that there are are compared with
the credentials that work; less often where there are none of all these. So a revocation takes
effect whatever was down when it was made, and a stream that was made anew gets its consumers
again. Connections and consumers are looked after apart: a stream without a leader keeps whoever
asks for it waiting, and nobody may stay for that.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter as Counts
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from operator import itemgetter
from typing import Any, Final

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeout
from nats.js.errors import BadRequestError
from prometheus_client import Counter, Gauge

from contract.subjects import STREAMS, Stream
from servicekit.data.quarantine import note, place, readable
from servicekit.ids import Clock
from servicekit.messaging.jetstream import Messaging, on_failure, servers_of, trust
from servicekit.observability import logs
from servicekit.observability.logs import Repeated, brief
from servicekit.settings import read_secret
from servicekit.times import parse_rfc3339
from services.identity.event_access.nats_tokens import NatsSigner, read_request
from services.identity.event_access.service import EventCredentials
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
_CONNECTIONS: Final = place("identity", "event_connections")
_READERS: Final = place("identity", "event_readers")
_REFUSED_FOR_GOOD: Final = 10
"""Attempts after which a consumer is not refused by chance."""
_SECONDS: Final = 1.0
_CALM_SECONDS: Final = 10.0
_CALM_PASSES: Final = 5
"""After so many passes that found nobody to look after, it looks less often; what this process
changes, and a login here, ends that at once."""
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
MOST_STRANGERS: Final = 64
"""Connections of one address that nobody has logged in on, on all servers together."""
_ACCOUNT: Final = "INTEGRATORS"
_ACCOUNTS: Final = frozenset({_ACCOUNT, "EVERGREEN", "SYS"})
"""Those of deploy/nats: every logged-in client is in one."""
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
        self._is_busy = True
        self._refused: Counts[str] = Counts()
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
        work: Callable[[EventCredentials], Awaitable[bool]],
        credentials: EventCredentials,
        changed: asyncio.Event,
    ) -> None:
        """Does some work every second; less often when it has had nothing to do for some time."""
        outage = Repeated(log, "integrators wait")
        calm = 0
        while True:
            changed.clear()
            try:
                calm = 0 if await work(credentials) else calm + 1
                outage.worked()
            except Exception as error:
                # The database or NATS is away.
                outage.failed(error)
                calm = 0
            try:
                pause = _SECONDS if calm < _CALM_PASSES else _CALM_SECONDS
                await asyncio.wait_for(changed.wait(), pause)
            except TimeoutError:
                continue
            calm = 0

    async def _guard(self, credentials: EventCredentials) -> bool:
        """Answers whether there was anybody to look after."""
        client = await self._connected(credentials)
        # Who is there, and then who may be: a credential that is made now may connect at once.
        everyone = [connection async for connection in _connections(client)]
        found = [connection for connection in everyone if connection["account"] == _ACCOUNT]
        wanted = await credentials.readers()
        await self._cut(client, self._to_cut(found, wanted))
        await self._cut(client, strangers(everyone))
        _OPEN.set(len(found))
        self._is_busy = bool(wanted) or any(not _is_ours(connection) for connection in everyone)
        return self._is_busy

    async def _keep(self, credentials: EventCredentials) -> bool:
        """Answers whether there are consumers to keep."""
        wanted = await credentials.readers()
        incarnations = [await self._messaging.ensure_stream(stream) for stream in STREAMS]
        if incarnations != self._incarnations:
            self._ends.clear()
        ends = [await self._messaging.last_sequence(stream) for stream in STREAMS]
        await self._keep_consumers(wanted, incarnations)
        self._ends.append(ends)
        return bool(wanted)

    async def _connected(self, credentials: EventCredentials) -> Client:
        if self._client is not None and not self._client.is_closed:
            return self._client
        settings = self._settings

        async def answer(message: Msg) -> None:
            await self._answer(credentials, message)

        trusted = trust(settings)
        client = await nats.connect(
            servers_of(settings.nats_url),
            tls=trusted,
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
            error_cb=on_failure(settings, trusted),
        )
        # One after the other; of a flood, the rest is dropped, and the server refuses it.
        await client.subscribe(
            "$SYS.REQ.USER.AUTH", queue="identity", cb=answer, pending_msgs_limit=256
        )
        self._client = client
        return client

    async def _answer(self, credentials: EventCredentials, message: Msg) -> None:
        if not self._is_busy:
            # A client that is let in now is looked after from now on.
            self._is_busy = True
            self._changed[0].set()
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
            until = min(at + _LIFE, found.expires_at)
            _ASKED.labels("admitted").inc()
            await message.respond(self._signer.admit(request, str(found.id), at, until))
        except Exception as error:
            # The server refuses whom nobody vouches for.
            _ASKED.labels("failed").inc()
            log.warning("integrator login not decided", error=brief(error))

    async def _cut(
        self,
        client: Client,
        connections: Iterable[tuple[dict[str, Any], str]],
    ) -> None:
        for connection, why in connections:
            _CUT.labels(why).inc()
            if why != "not logged in":
                log.info("integrator connection cut", user=connection["user"], why=why)
            await client.publish(
                f"$SYS.REQ.SERVER.{connection['server']}.KICK",
                json.dumps({"cid": connection["cid"]}).encode(),
                # Without somewhere to answer to, the server does nothing.
                reply=client.new_inbox(),
            )

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
        failures: list[Exception] = []
        for name in found.keys() - wanted.keys():
            if _is_reader(name):
                await self._messaging.drop_reader(stream, name)
        for name, subjects in wanted.items():
            if found.get(name) != subjects:
                try:
                    await self._messaging.keep_reader(stream, name, subjects, unseen)
                except BadRequestError as error:
                    # The server does not take this one, perhaps because another process just
                    # makes it. The others are not to wait for it.
                    failures.append(error)
                    self._refused[name] += 1
                    if self._refused[name] == _REFUSED_FOR_GOOD:
                        note(_READERS, name, error)
                else:
                    del self._refused[name]
        if failures:
            raise failures[0]


def strangers(connections: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    """Connections that nobody has logged in on, of addresses that have too many of them.

    A program logs in at once. So those go that have waited for the longest.
    """
    of_address: dict[str, int] = {}
    for connection in sorted(connections, key=lambda c: c["start"], reverse=True):
        if connection["account"] not in _ACCOUNTS:
            address = connection["address"]
            of_address[address] = of_address.get(address, 0) + 1
            if of_address[address] > MOST_STRANGERS:
                yield connection, "not logged in"


async def _connections(client: Client) -> AsyncIterator[dict[str, Any]]:
    """All connections, page by page and server by server, as each answers."""
    offset, total = 0, 1
    while offset < total:
        total = 0
        async for page in _page(client, offset):
            total = max(total, page["total"])
            for found in readable(
                _CONNECTIONS,
                page["connections"] or (),
                partial(_connection, page["server_id"]),
                itemgetter("cid"),
            ):
                yield found
        offset += _LISTED


async def _page(client: Client, offset: int) -> AsyncIterator[dict[str, Any]]:
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox)
    try:
        asked = {"auth": True, "offset": offset, "limit": _LISTED}
        await client.publish("$SYS.REQ.SERVER.PING.CONNZ", json.dumps(asked).encode(), reply=inbox)
        patience = 2.0
        while True:
            try:
                answer = await subscription.next_msg(timeout=patience)
            except NatsTimeout:
                break
            # All servers of a cluster answer; how many there are is not known.
            patience = _ANSWERS_SECONDS
            yield json.loads(answer.data)["data"]
    finally:
        await subscription.unsubscribe()


def _connection(server: str, found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "server": server,
        "cid": found["cid"],
        "account": found.get("account", ""),
        "address": found.get("ip", ""),
        "user": found.get("authorized_user", ""),
        "start": parse_rfc3339(found["start"]),
        "subscriptions": found.get("subscriptions", 0),
    }


def _is_ours(connection: Mapping[str, Any]) -> bool:
    """Whether a connection is that of a service."""
    return connection["account"] in _ACCOUNTS - {_ACCOUNT}


def _is_reader(name: str) -> bool:
    """Whether a consumer is one of ours: they are named by credentials' ids."""
    return len(name) == 36 and name.count("-") == 4
