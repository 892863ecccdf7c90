"""A call whose client has gone is not worked on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from servicekit import call
from servicekit.call import Call
from servicekit.http.protocol import DeviceServer
from servicekit.http.server import Answer, DeviceApp, Route
from servicekit.rpc.chain import CallChain

PATH = "/api/v1/devices/state"
RPC = "/evergreen.v1.DeviceService/ReportState"
MOST = 10


class Service:
    """A service whose calls end when they are let go."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.begun = 0
        self.given_up = 0
        self.done = 0
        self.release = asyncio.Event()
        access: Any = SimpleNamespace(check=lambda caller: None)
        chain = CallChain(max_calls=MOST, devices=access)
        app = DeviceApp(chain, {PATH: Route(RPC, self._handle)})
        self.server = DeviceServer(f"unix:{socket}", app)

    async def _handle(self, served: Call, body: bytes) -> Answer:
        self.begun += 1
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        self.done += 1
        return Answer()

    async def send(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Sends a call of a new device."""
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        writer.write(
            f"POST {PATH} HTTP/1.1\r\n{call.H_KIND}: device\r\n{call.H_SUBJECT}: {uuid4()}\r\n"
            f"{call.H_TENANT}: {uuid4()}\r\n{call.H_TOKEN_VERSION}: 1\r\n"
            "content-length: 2\r\n\r\n{}".encode()
        )
        await writer.drain()
        return reader, writer


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    service = Service(tmp_path / "s")
    await service.server.start()
    yield service
    service.release.set()
    await service.server.stop()


async def _until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def test_work_for_a_client_that_went_away_is_given_up(service: Service) -> None:
    """And the place that its call had is another one's."""
    for round_ in range(1, 4):
        writers = [(await service.send())[1] for _ in range(MOST - 2)]
        await _until(lambda r=round_: service.begun == r * (MOST - 2))
        for writer in writers:
            writer.transport.abort()
        await _until(lambda r=round_: service.given_up == r * (MOST - 2))
    service.release.set()
    reader, writer = await service.send()
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()
    assert service.done == 1


async def test_a_client_that_leaves_at_once_keeps_no_place(service: Service) -> None:
    """Even if it has gone before its call began."""
    for _ in range(20 * MOST):
        _, writer = await service.send()
        writer.transport.abort()
    await _until(lambda: service.begun == service.given_up)
    service.release.set()
    for _ in range(MOST):
        reader, writer = await service.send()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
