"""HTTP/1.1 for the calls of devices, as the gateway passes them on: the cheapest way into Python.

An `asyncio` protocol on httptools (llhttp), which does the parsing. A call that is answered
without waiting costs no task, no queue and no copy; one that waits runs as a task. What makes it
small is its only client, the gateway: it limits sizes and times, sends bodies whole, and knows
nothing of upgrades and trailers. See docs/adr for the figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import CoroutineType
from typing import Any, Final, cast

import httptools

from servicekit import call
from servicekit.errors import invalid_field
from servicekit.security.tls import GATEWAY, Tls, transport_peer

MAX_BODY: Final = 128 << 20
"""The gateway has the real limits, per route; this one only bounds memory."""
_MAX_HEAD: Final = 64 << 10
_STOP_SECONDS: Final = 5.0

_BAD_REQUEST: Final = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_KEPT: Final = tuple((name.encode(), name) for name in call.HEADERS)
"""The gateway writes names in lower case."""


class Request:
    """A request, of which the body may still be on its way."""

    __slots__ = ("_announced", "_arrived", "_parts", "_size", "accepts", "begun", "complete",
                 "headers", "keep_alive", "method", "url")  # fmt: skip

    def __init__(self) -> None:
        self.method = b""
        self.url = b""
        self.headers: dict[str, str] = {}
        """Those of `servicekit.call.HEADERS` that came; of equal names the last."""
        self.accepts: bytes | None = None
        """Its `Accept-Encoding`."""
        self.begun = False
        self.complete = False
        self.keep_alive = True
        self._parts: list[bytes] = []
        self._size = 0
        self._announced = 0
        self._arrived: asyncio.Future[None] | None = None

    @property
    def body(self) -> bytes:
        """The body, when `complete`."""
        if len(self._parts) != 1:
            # A large one is not kept twice.
            self._parts = [b"".join(self._parts)]
        return self._parts[0]

    @property
    def size(self) -> int:
        """Bytes of the body, as announced by a client that is not done yet."""
        return max(self._size, self._announced)

    async def read(self) -> bytes:
        """Waits for the whole body.

        Raises:
            DomainError: INVALID_ARGUMENT when it ended early or is too large.
        """
        if not self.complete:
            self._arrived = asyncio.get_running_loop().create_future()
            await self._arrived
        if self._size > MAX_BODY:
            raise invalid_field("body", f"must have at most {MAX_BODY} bytes")
        return self.body

    def announce(self, size: int) -> None:
        """Takes note of how large the body will be."""
        self._announced = size

    def discard(self) -> None:
        """Keeps nothing of the body: the request is answered already."""
        self._parts.clear()
        self._size = MAX_BODY + 1

    def add(self, part: bytes) -> None:
        """Takes a part of the body; what is too much is not kept."""
        self._size += len(part)
        if self._size <= MAX_BODY:
            self._parts.append(part)

    def end(self, *, early: bool = False) -> None:
        """Nothing follows; `early` when the client went away."""
        self.complete = not early
        if self._arrived is not None and not self._arrived.done():
            if early:
                self._arrived.set_exception(invalid_field("body", "ended early"))
            else:
                self._arrived.set_result(None)


App = Callable[[Request], bytes | Coroutine[Any, Any, bytes]]
"""Answers a request with the whole response, at once or after waiting."""


class _Connection(asyncio.Protocol):
    """One connection: a request at a time, those sent ahead in their order."""

    def __init__(self, app: App, connections: set[_Connection]) -> None:
        self._app = app
        self._connections = connections
        self._fields: dict[bytes, bytes] = {}
        self._url: list[bytes] = []
        # Called by the parser for every field: these cost no frame of Python each.
        self.on_header = self._fields.__setitem__
        self.on_url = self._url.append
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # until it is made
        self._request: Request | None = None
        """The one that is being received."""
        self._head = 0
        """Bytes of its head, or -1 when that is complete."""
        self._ahead: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None
        self._writable = True
        self._draining = False

    # The transport's events.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse()
            return
        request = self._request
        if request is not None:
            if self._head >= 0:
                self._head += len(data)
                if self._head > _MAX_HEAD:
                    self._refuse()
            elif not request.begun and self._is_free:
                # Who may not call is told so before the body has come.
                self._serve(request)
        if self._ahead:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._ahead.clear()
        if self._request is not None:
            self._request.end(early=True)
        if self._task is not None:
            # Nobody waits for the answer any more: what has not been done yet is not done. Not
            # at once, for a task that never began could not give back what its call holds.
            asyncio.get_running_loop().call_soon(self._task.cancel)

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._go_on()

    # The parser's events.

    def on_message_begin(self) -> None:
        self._request = Request()
        self._head = 0
        # What a message before left: trailers.
        self._fields.clear()
        self._url.clear()

    def on_headers_complete(self) -> None:
        self._head = -1
        request, fields = self._request, self._fields
        assert request is not None
        request.method = self._parser.get_method()
        request.url = self._url[0] if len(self._url) == 1 else b"".join(self._url)
        for raw, name in _KEPT:
            if raw in fields:
                request.headers[name] = fields[raw].decode("latin-1")
        request.accepts = fields.get(b"accept-encoding")
        # The parser has refused what is no number.
        if (size := fields.get(b"content-length")) is not None:
            request.announce(int(size))

    def on_body(self, body: bytes) -> None:
        self._request.add(body)  # type: ignore[union-attr]

    def on_message_complete(self) -> None:
        request, self._request = self._request, None
        assert request is not None
        request.keep_alive = self._parser.should_keep_alive()
        request.end()
        if request.begun:
            if self._task is None:
                self._close_if_due(request)
        elif self._is_free:
            self._serve(request)
        else:
            self._ahead.append(request)

    # Serving.

    @property
    def _is_free(self) -> bool:
        return self._task is None and self._writable and not self._ahead

    def _serve(self, request: Request) -> None:
        request.begun = True
        answer = self._app(request)
        if type(answer) is bytes:
            self._answer(request, answer)
        else:
            assert isinstance(answer, CoroutineType)
            self._task = asyncio.get_running_loop().create_task(self._wait(request, answer))

    async def _wait(self, request: Request, answer: Coroutine[Any, Any, bytes]) -> None:
        try:
            self._answer(request, await answer)
        finally:
            self._task = None
        self._go_on()

    def _answer(self, request: Request, answer: bytes) -> None:
        if self._transport.is_closing():
            return
        if self._draining or not request.keep_alive:
            answer = answer.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
        self._transport.write(answer)
        if request.complete:
            self._close_if_due(request)
        else:
            # The rest of it is read, and dropped.
            request.discard()

    def _close_if_due(self, request: Request) -> None:
        if self._draining or not request.keep_alive:
            self._transport.close()

    def _go_on(self) -> None:
        """Serves what was sent ahead, as far as it goes."""
        while self._ahead and self._task is None and self._writable:
            if self._transport.is_closing():
                return
            self._serve(self._ahead.popleft())
            if not self._ahead:
                self._transport.resume_reading()

    def _refuse(self) -> None:
        """Ends a connection on which something else than HTTP is spoken."""
        self._transport.write(_BAD_REQUEST)
        self._transport.close()

    def drain(self) -> None:
        """Closes when the call in flight is answered; at once when there is none."""
        self._draining = True
        if self._task is None and self._request is None:
            self._transport.close()

    def abort(self) -> None:
        """Closes at once."""
        if self._task is not None:
            self._task.cancel()
        self._transport.abort()


class _GatewayConnection(_Connection):
    """A connection over TLS: who has another certificate than the gateway's is not listened to."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._trusted = transport_peer(transport, (GATEWAY,)) is not None
        if not self._trusted:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._trusted:
            super().data_received(data)


class DeviceServer:
    """Serves an `App` on a unix socket (`unix:PATH`), or on `HOST:PORT` to the gateway alone."""

    def __init__(self, listen: str, app: App, tls: Tls | None = None) -> None:
        self._listen = listen
        self._app = app
        self._tls = tls
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begins to serve."""
        loop = asyncio.get_running_loop()
        sock = bind(self._listen)
        is_local = sock.family == socket.AF_UNIX
        create = loop.create_unix_server if is_local else loop.create_server
        tls = None if is_local or self._tls is None else self._tls.server_context()
        kind = _Connection if tls is None else _GatewayConnection
        self._server = await create(
            lambda: kind(self._app, self._connections), sock=sock, backlog=4096, ssl=tls
        )

    async def stop(self) -> None:
        """Lets calls in flight end, then closes."""
        if self._server is None:
            return
        self._server.close()
        for connection in tuple(self._connections):
            connection.drain()
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + _STOP_SECONDS
        while self._connections and loop.time() < give_up_at:  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(0.01)
        for connection in tuple(self._connections):
            connection.abort()


def bind(listen: str) -> socket.socket:
    """A socket that is bound to `unix:PATH` (for this user only) or to `HOST:PORT`."""
    if listen.startswith("unix:"):
        path = listen.removeprefix("unix:")
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(path)
        Path(path).chmod(0o600)
    else:
        host, _, port = listen.rpartition(":")
        host = host.strip("[]")
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, int(port)))
    sock.setblocking(False)
    return sock
