"""Asking a process of this machine whether it is ready."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from deploy.launcher.errors import LauncherError
from deploy.launcher.supervisor import Supervised
from servicekit.security import mode

_PAUSE: Final = 0.1
# A process that cannot start at all says so a few times; waiting longer brings nothing.
_FATAL_CRASHES: Final = 3


async def http(
    where: int | Path,
    path: str,
    *,
    method: str = "GET",
    tls: ssl.SSLContext | None = None,
    seconds: float = 5.0,
) -> tuple[int, bytes]:
    """Asks an HTTP server on this machine, by its port or its socket, within a time.

    Answers the status and the body; the status is 0 when the server cannot be reached.
    """
    try:
        async with asyncio.timeout(seconds):
            if isinstance(where, Path):
                reader, writer = await asyncio.open_unix_connection(where)
            else:
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", where, ssl=tls, server_hostname="localhost" if tls else None
                )
            try:
                writer.write(
                    f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                    "Content-Length: 0\r\n\r\n".encode()
                )
                return await _answer(reader)
            finally:
                writer.close()
    except (OSError, TimeoutError, EOFError, ValueError):
        return 0, b""


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    # Read by its length, not to its end: a gateway keeps a closing connection for a second.
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().splitlines()
    headers = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
    else:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(head[0].split(" ")[1]), body


async def wait_until(
    ready: Callable[[], Awaitable[bool]], process: Supervised, seconds: float
) -> None:
    """Waits until the process is ready.

    Raises:
        LauncherError: it ends again and again, or is not ready in time.
    """
    deadline = time.monotonic() + seconds
    while not await ready():
        if process.refused:
            raise LauncherError(
                f"{process.spec.name} refuses to run.",
                log=process.log.tail[-10:],
                advice="Correct what it names, then start again; nothing that was stored is lost.",
                status=mode.REFUSED,
            )
        if process.crashes >= _FATAL_CRASHES:
            raise LauncherError(
                f"{process.spec.name} does not start ({process.last_exit}).",
                log=process.log.tail[-10:],
                advice="Correct what it names, then start again; nothing that was stored is lost.",
            )
        if time.monotonic() > deadline:
            raise LauncherError(
                f"{process.spec.name} was not ready within {seconds:.0f} s.",
                log=process.log.tail[-10:],
                advice="Is the machine very busy, or its disk full? Then start again.",
            )
        await asyncio.sleep(_PAUSE)
