"""ASGI applications behind the gateway: the pages of a service that has some.

Nothing else of a service needs uvicorn, so nothing else loads it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from servicekit.http.protocol import bind
from servicekit.security.tls import GATEWAY, Tls, transport_peer

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class WithHealth:
    """An ASGI application that also answers the gateway's `GET /healthz`."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app
        self.serving = True
        """As `DeviceApp.serving`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http" or scope["path"] != "/healthz":
            await self._app(scope, receive, send)
            return
        status = 200 if self.serving else 503
        headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})


class _ForTheGateway(HttpToolsProtocol):
    """HTTP for clients with the gateway's certificate."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._trusted = transport_peer(transport, (GATEWAY,)) is not None
        if not self._trusted:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._trusted:
            super().data_received(data)


class _Server(uvicorn.Server):
    """Sleeps until it is told to end; uvicorn itself looks ten times a second whether it was."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ends = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self._ends.wait()

    def end(self) -> None:
        """Lets calls in flight end, then has `serve` return."""
        self.should_exit = True
        self._ends.set()


class HttpServer:
    """An ASGI application on a unix socket (`unix:PATH`) or a port (`HOST:PORT`).

    With TLS, on a port, it serves the gateway alone.
    """

    def __init__(self, listen: str, app: Any, tls: Tls | None = None) -> None:
        self._listen = listen
        self._tls = None if listen.startswith("unix:") else tls
        self._server = _Server(
            uvicorn.Config(
                app,
                loop="none",
                http="httptools" if self._tls is None else _ForTheGateway,
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=3600,
                timeout_graceful_shutdown=5,
                backlog=4096,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to serve."""
        sock = bind(self._listen)
        if self._tls is not None:
            self._server.config.load()
            self._server.config.ssl = self._tls.server_context()
        # The application owns signals; uvicorn's handlers would end the process early.
        self._server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        self._task = asyncio.create_task(self._server.serve(sockets=[sock]))
        while not self._server.started:
            if self._task.done():
                await self._task
                raise OSError(f"cannot serve on {self._listen}")
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Lets calls in flight end, then closes."""
        if self._task is not None:
            self._server.end()
            await self._task
