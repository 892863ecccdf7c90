"""A cheap HTTP/1.1 client over TLS: keep-alive connections, one request at a time on each.

It shares a machine with what it measures, so it does as little as it can: callbacks instead of
tasks, one parser per connection, one sweep per second instead of a timer per call. Nothing is
repeated here: what becomes of a failed call is for the device to decide, as in the released agent.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple, Self

import httptools

from cli.sim.target import Target

AGENT_TIMEOUT: Final = 30.0
"""Seconds after which the released agent gives a call up."""
MAX_BODY: Final = 64 << 20
"""An answer longer than this is broken; no policy is as long."""

CONNECT: Final = "connect"
TLS: Final = "tls"
TIMEOUT: Final = "timeout"
CLOSED: Final = "closed"
PROTOCOL: Final = "protocol"
FILES: Final = "open files"


class Answer(NamedTuple):
    """What came of a call.

    `status` is 0 when no whole answer came; `fault` says then what happened instead.
    """

    status: int
    body: bytes = b""
    fault: str = ""
    retry_after: str = ""


Done = Callable[[Answer], None]
Request = bytes | Callable[[], bytes]
"""What is sent, or what makes it at the moment at which it is."""


class _Call:
    """A call from the moment it was asked for until it is answered."""

    __slots__ = ("connection", "deadline", "done", "request")

    def __init__(self, request: Request, done: Done, deadline: float) -> None:
        self.request: Request = request
        self.done: Done | None = done
        self.deadline = deadline
        self.connection: _Connection | None = None

    def finish(self, answer: Answer) -> None:
        done, self.done, self.request = self.done, None, b""
        if done is not None:
            done(answer)


class _Pool:
    """Some connections, and the calls that wait for one of them."""

    __slots__ = ("client", "idle", "known", "limit", "opened", "waiting")

    def __init__(self, client: Client, limit: int, known: set[int] | None = None) -> None:
        self.client = client
        self.limit = limit
        self.known = known
        """Lanes that have had a connection made for them; `None` when that does not matter."""
        self.opened = 0
        self.idle: OrderedDict[_Connection, None] = OrderedDict()
        """In the order in which they became so. They take turns: as with devices that have a
        connection each, none is idle for so long that the gateway closes it, let alone thousands
        in one moment."""
        self.waiting: deque[_Call] = deque()

    def begin(self, call: _Call, lane: int) -> None:
        """Sends a lane's call: its first one over a connection that is made for it."""
        if self.known is not None and lane not in self.known:
            self.known.add(lane)
            if self.opened < self.limit:
                self._open(call)
                return
            if self.idle:
                # When it is gone, a new one is opened.
                self.waiting.append(call)
                self.idle.popitem(last=False)[0].abort()
                return
        self.send(call)

    def send(self, call: _Call) -> None:
        # Thousands may have been closed in the same moment, and their ends not yet been told.
        while self.idle:
            if self.idle.popitem(last=False)[0].send(call):
                return
        if self.opened < self.limit:
            self._open(call)
        else:
            self.waiting.append(call)

    def _open(self, call: _Call) -> None:
        self.opened += 1
        self.client.start(self._connect(call))

    async def _connect(self, call: _Call) -> None:
        try:
            connection = await self.client.connect(self)
        except OSError as error:
            call.finish(Answer(0, fault=_why(error)))
            self.gone(None)
            return
        if call.done is None:
            # It was given up meanwhile; another may want the connection.
            self.free(connection)
        elif not connection.send(call):
            # Trying again at once would be a loop without a pause.
            call.finish(Answer(0, fault=CLOSED))

    def free(self, connection: _Connection) -> None:
        """Takes a connection back that can carry another call."""
        while self.waiting:
            call = self.waiting.popleft()
            if call.done is not None:
                if not connection.send(call):
                    # Its end will be told, and makes room for a new one.
                    self.waiting.appendleft(call)
                return
        self.idle[connection] = None

    def gone(self, connection: _Connection | None) -> None:
        """Forgets a connection; a call that waits gets a new one."""
        self.opened -= 1
        if connection is not None:
            self.idle.pop(connection, None)
        while self.waiting and self.opened < self.limit and not self.client.closed:
            call = self.waiting.popleft()
            if call.done is not None:
                self._open(call)
                return


class _Connection(asyncio.Protocol):
    """One connection; also what its parser calls back."""

    __slots__ = (
        "_body", "_call", "_complete", "_keep", "_parser", "_pool", "_retry_after", "_size",
        "_status", "transport",
    )  # fmt: skip

    def __init__(self, pool: _Pool) -> None:
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._call: _Call | None = None
        self._complete = False
        self._keep = True
        self._status = 0
        self._size = 0
        self._body: list[bytes] = []
        self._retry_after = ""
        self.transport: asyncio.Transport | None = None

    def send(self, call: _Call) -> bool:
        """Sends a call; `False` when it broke while nobody looked at it: nothing was sent."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return False
        self._call = call
        call.connection = self
        request, call.request = call.request, b""
        transport.write(request if isinstance(request, bytes) else request())
        return True

    def abort(self) -> None:
        """Breaks the connection off; its call is not told."""
        self._call = None
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream's, by construction

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(PROTOCOL)
            return
        if self._complete:
            self._answered()
        elif self._call is None or self._size > MAX_BODY:
            self._fail(PROTOCOL)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        call, self._call = self._call, None
        self._pool.client.connections -= 1
        self._pool.gone(self)
        if call is not None:
            call.finish(Answer(0, fault=CLOSED))

    def _answered(self) -> None:
        call, self._call = self._call, None
        if call is None:
            self._fail(PROTOCOL)
            return
        answer = Answer(self._status, b"".join(self._body), "", self._retry_after)
        self._complete = False
        if self._body:
            self._body = []
            self._size = 0
        self._retry_after = ""
        if self._keep:
            self._pool.free(self)
        elif self.transport is not None:
            self.transport.close()
        call.finish(answer)

    def _fail(self, fault: str) -> None:
        call = self._call
        self.abort()
        if call is not None:
            call.finish(Answer(0, fault=fault))

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 11 and name.lower() == b"retry-after":
            self._retry_after = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        self._keep = self._parser.should_keep_alive()

    def on_body(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= MAX_BODY:
            self._body.append(part)

    def on_message_complete(self) -> None:
        # 100 Continue and its like come before the answer.
        self._complete = self._status >= 200


class Client:
    """Calls of many devices to one gateway, from within a running event loop.

    Args:
        target: where the gateway is.
        connections: how many connections all callers share, or `None` for one of its own for
            each lane (a device, as in real life; costs an open file and some 50 kB each).
        first_is_new: each lane's first call gets a new connection, as a device that comes back
            makes one, though fewer can be open at a time than there are lanes.
        timeout: seconds from asking until the answer is complete, waiting for a connection
            included.
    """

    def __init__(
        self,
        target: Target,
        *,
        connections: int | None = 64,
        first_is_new: bool = False,
        timeout: float = AGENT_TIMEOUT,
    ) -> None:
        self._target = target
        self._timeout = timeout
        known: set[int] | None = set() if first_is_new else None
        self._shared = None if connections is None else _Pool(self, connections, known)
        self._lanes: dict[int, _Pool] = {}
        self._asked: deque[_Call] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._head_end = (
            f" HTTP/1.1\r\nHost: {target.authority}\r\nUser-Agent: Go-http-client/1.1\r\n"
            "Content-Type: application/json\r\nAccept-Encoding: identity\r\n"
        ).encode()
        self.connections = 0
        """Connections that are open now."""
        self.connects = 0
        """Connections that were opened so far; a new one costs the gateway ten calls' time."""
        self.closed = False

    async def __aenter__(self) -> Self:
        self._sweep()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def request(self, path: bytes, body: bytes, token: str = "") -> bytes:
        """The bytes of a POST."""
        authorization = b"Authorization: Bearer %b\r\n" % token.encode() if token else b""
        return b"POST %b%b%bContent-Length: %d\r\n\r\n%b" % (
            path, self._head_end, authorization, len(body), body
        )  # fmt: skip

    def send(self, request: Request, done: Done, lane: int = 0) -> None:
        """Sends a request; `done` is called once, later, whatever happens.

        Args:
            request: what `request` makes. A herd that waits for its turn takes less memory when
                each request is only made when it is sent.
            done: gets the answer; must not raise.
            lane: who calls; matters when each has a connection of its own.
        """
        call = _Call(request, done, time.monotonic() + self._timeout)
        self._asked.append(call)
        pool = self._shared
        if pool is None:
            pool = self._lanes.get(lane)
            if pool is None:
                pool = self._lanes[lane] = _Pool(self, 1)
        pool.begin(call, lane)

    async def call(self, path: str, body: bytes, token: str = "", lane: int = 0) -> Answer:
        """Posts JSON and waits for what comes of it; never raises for a failed call."""
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def done(answer: Answer) -> None:
            if not answered.done():
                answered.set_result(answer)

        self.send(self.request(path.encode(), body, token), done, lane)
        return await answered

    async def close(self) -> None:
        """Ends all connections; calls in flight are answered with the fault `closed`."""
        self.closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._asked:
            self._give_up(self._asked.popleft(), CLOSED)
        pools = [self._shared] if self._shared else list(self._lanes.values())
        for pool in pools:
            for connection in list(pool.idle):
                connection.abort()
        # Their transports close in the background; a peer that is away must not hold up the end.
        for _ in range(1000):
            if self.connections <= 0:
                return
            await asyncio.sleep(0.001)

    async def connect(self, pool: _Pool) -> _Connection:
        """Opens a connection for a pool."""
        target = self._target
        async with asyncio.timeout(self._timeout):
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(pool),
                target.host,
                target.port,
                ssl=target.tls,
                server_hostname=target.host if target.tls else None,
            )
        self.connections += 1
        self.connects += 1
        return connection

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs a pool's work in the background."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _sweep(self) -> None:
        """Gives up what has waited too long. Calls are in the order of their deadlines."""
        now, asked = time.monotonic(), self._asked
        while asked and (asked[0].done is None or asked[0].deadline <= now):
            self._give_up(asked.popleft(), TIMEOUT)
        self._sweeper = asyncio.get_running_loop().call_later(1.0, self._sweep)

    @staticmethod
    def _give_up(call: _Call, fault: str) -> None:
        if call.done is not None:
            if call.connection is not None:
                call.connection.abort()
            call.finish(Answer(0, fault=fault))


def _why(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return TLS
    if isinstance(error, TimeoutError):
        return TIMEOUT
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return FILES
    return CONNECT
