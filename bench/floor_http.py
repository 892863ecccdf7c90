"""The floor over plain HTTP: the cheapest Python that still is a web server, doing nothing.

uvloop and httptools on a unix socket, one thread; every request is parsed and read to its end.
A poll is answered 304, all else `{}`; the gateway's questions (its health, the token keys) are
answered as a service would.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import httptools
import uvloop

_NOT_MODIFIED = b"HTTP/1.1 304 Not Modified\r\n\r\n"


def _ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


_OK = _ok(b"{}")


class _Floor(asyncio.Protocol):
    def __init__(self, answers: dict[bytes, bytes]) -> None:
        self._answers = answers
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""

    def connection_made(self, transport: Any) -> None:
        self._write = transport.write

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_message_complete(self) -> None:
        self._write(self._answers.get(self._url, _OK))


async def _serve(listen: str, jwks: bytes) -> None:
    answers = {
        b"/api/v1/devices/policy": _NOT_MODIFIED,
        b"/.well-known/jwks.json?use=users": _ok(jwks),
        b"/.well-known/jwks.json?use=devices": _ok(jwks),
    }
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await loop.create_unix_server(lambda: _Floor(answers), listen, backlog=4096)
    await stop.wait()


if __name__ == "__main__":
    # On one processor, as the other floor: it is cheaper so.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(sys.argv[1], Path(sys.argv[2]).read_bytes()))
