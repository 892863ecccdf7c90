"""Bodies of calls share a memory: what finds no room is refused before it has come."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from servicekit import call
from servicekit.admission.fair import Shares
from servicekit.call import Call, Caller
from servicekit.errors import exhausted
from servicekit.http.protocol import DeviceServer
from servicekit.http.server import Answer, DeviceApp, Route
from servicekit.rpc.chain import CallChain

PATH = "/api/v1/devices/events"
RPC = "/evergreen.v1.DeviceService/ReportEvents"
KIB = 1024


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def announce(cls, socket: Path, size: int) -> Client:
        """Sends the head of a call and the first kilobyte of its body."""
        client = cls(*await asyncio.open_unix_connection(str(socket)))
        client._writer.write(
            f"POST {PATH} HTTP/1.1\r\n{call.H_KIND}: device\r\n{call.H_SUBJECT}: {uuid4()}\r\n"
            f"{call.H_TENANT}: {uuid4()}\r\n{call.H_TOKEN_VERSION}: 1\r\n"
            f"content-length: {size}\r\n\r\n".encode()
        )
        client._writer.write(b" " * min(size, KIB))
        await client._writer.drain()
        return client

    async def complete(self, size: int) -> None:
        """Sends the rest."""
        self._writer.write(b" " * (size - KIB))
        await self._writer.drain()

    async def status(self) -> int:
        """Of the answer."""
        async with asyncio.timeout(60):
            head = await self._reader.readuntil(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1])

    def close(self) -> None:
        """Ends the connection."""
        self._writer.close()


async def test_a_body_that_finds_no_room_is_refused_before_it_has_come(tmp_path: Path) -> None:
    """What was let in is read to its end, and its room is given to others afterwards."""
    memory = Shares(100 * KIB)
    read: list[int] = []

    @contextmanager
    def room(caller: Caller, size: int) -> Iterator[None]:
        if not memory.take(caller.tenant_id, size):
            raise exhausted("TOO_MUCH_AT_ONCE", "send it later")
        try:
            yield
        finally:
            memory.give_back(caller.tenant_id, size)

    async def handle(served: Call, body: bytes) -> Answer:
        read.append(len(body))
        return Answer()

    access: Any = SimpleNamespace(check=lambda caller: None)
    app = DeviceApp(CallChain(max_calls=10, devices=access), {PATH: Route(RPC, handle, room=room)})
    socket = tmp_path / "s"
    server = DeviceServer(f"unix:{socket}", app)
    await server.start()
    large, small = 60 * KIB, 30 * KIB
    first = await Client.announce(socket, large)
    while memory.taken == 0:
        await asyncio.sleep(0.005)
    refused = await Client.announce(socket, large)
    assert await refused.status() == 429
    fits = await Client.announce(socket, small)
    await fits.complete(small)
    assert await fits.status() == 200
    await first.complete(large)
    assert await first.status() == 200
    assert read == [small, large]
    assert memory.taken == 0
    again = await Client.announce(socket, large)
    await again.complete(large)
    assert await again.status() == 200
    # The one that was refused may go on with the rest, and with another call.
    await refused.complete(large)
    # A client that goes away in the middle leaves no room taken.
    gone = await Client.announce(socket, large)
    gone.close()
    while memory.taken:
        await asyncio.sleep(0.005)
    for client in (first, refused, fits, again):
        client.close()
    await server.stop()
