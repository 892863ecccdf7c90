"""Asking a process of this machine whether it is ready."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Final

from deploy.launcher.errors import LauncherError
from deploy.launcher.supervisor import Supervised

_PAUSE: Final = 0.1
# A process that cannot start at all says so a few times; waiting longer brings nothing.
_FATAL_CRASHES: Final = 3


async def http(
    port: int,
    path: str,
    *,
    method: str = "GET",
    tls: ssl.SSLContext | None = None,
    timeout: float = 5.0,
) -> tuple[int, bytes]:
    """Asks an HTTP server on this machine; answers status and body, 0 when it cannot be reached."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=tls, server_hostname="localhost" if tls else None
            )
            try:
                request = f"{method} {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                writer.write(request.encode())
                answer = await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return 0, b""
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    return (int(words[1]) if len(words) > 1 and words[1].isdigit() else 0), body


async def wait_until(
    ready: Callable[[], Awaitable[bool]], process: Supervised, seconds: float
) -> None:
    """Waits until the process is ready.

    Raises:
        LauncherError: it ends again and again, or is not ready in time.
    """
    deadline = time.monotonic() + seconds
    while not await ready():
        if process.crashes >= _FATAL_CRASHES:
            raise LauncherError(
                f"{process.spec.name} does not start ({process.last_exit}).",
                log=process.log.tail[-10:],
            )
        if time.monotonic() > deadline:
            raise LauncherError(
                f"{process.spec.name} was not ready within {seconds:.0f} s.",
                log=process.log.tail[-10:],
            )
        await asyncio.sleep(_PAUSE)
