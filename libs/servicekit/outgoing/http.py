"""HTTP over guarded connections, as httpcore takes them."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Final

from servicekit.outgoing.guard import Guard
from servicekit.outgoing.wire import ClosedError, Wire

_AT_ONCE: Final = 8 << 10


class Stream:
    """A connection as httpcore takes it; a server that answers without end is cut off."""

    def __init__(self, wire: Wire, most: int) -> None:
        self._wire = wire
        self._most = most
        self._left = most

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's
        """Reads a part of the answer."""
        data = await self._wire.receive(min(max_bytes, _AT_ONCE))
        self._left -= len(data)
        if self._left < 0:
            raise ClosedError("too long an answer")
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - httpcore's
        """Begins a request, or goes on with it."""
        self._left = self._most
        await self._wire.send(buffer)

    async def aclose(self) -> None:
        """Closes at once."""
        self._wire.close()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's
    ) -> Stream:
        """Encrypts."""
        try:
            await self._wire.start_tls(ssl_context, server_hostname or "")
        except BaseException:
            self._wire.close()
            raise
        return self

    def get_extra_info(self, info: str) -> Any:
        """Whether the connection is closed, or says something unasked."""
        return self._wire.is_closed() if info == "is_readable" else None


class Backend:
    """Makes connections for httpcore, by the guard.

    Args:
        guard: says what may be connected to.
        most: bytes of one answer, with its head and all interim answers (1xx).
        root: whether the root tenant asks.
        plain_http: whether what is sent could be read on the way.
    """

    def __init__(self, guard: Guard, most: int, *, root: bool, plain_http: bool) -> None:
        self._guard = guard
        self._most = most
        self._root = root
        self._plain_http = plain_http

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> Stream:
        """Connects, where the guard allows it."""
        wire = await self._guard.connect(host, port, root=self._root, plain_http=self._plain_http)
        return Stream(wire, self._most)

    async def connect_unix_socket(self, path: str, **_: Any) -> Stream:
        """Nobody asks for one."""
        raise NotImplementedError

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        await asyncio.sleep(seconds)
