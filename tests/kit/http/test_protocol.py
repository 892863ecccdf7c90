"""HTTP as devices' calls arrive in: on the loop of the services, and on asyncio's own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from servicekit.errors import DomainError
from servicekit.http import protocol as http_protocol
from servicekit.http.protocol import App, DeviceServer, Request

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}
PATIENCE = 60.0


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Runs a coroutine on one of the loops."""

    def runs(work: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(asyncio.wait_for(work, PATIENCE))

    return runs


def _response(text: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode()


def _post(url: str, body: bytes = b"", *fields: str) -> bytes:
    head = [f"POST {url} HTTP/1.1", f"content-length: {len(body)}", *fields]
    return "\r\n".join([*head, "", ""]).encode() + body


class _Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[str, str]:
        """The head and the body of the next answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        size = int(head.partition("content-length: ")[2].split("\r\n")[0])
        return head, (await self.reader.readexactly(size)).decode()

    async def text(self) -> str:
        return (await self.answer())[1]

    async def ended(self) -> bool:
        return await self.reader.read() == b""


@contextlib.asynccontextmanager
async def _serving(path: Path, app: App) -> AsyncIterator[tuple[DeviceServer, _Client]]:
    socket = path / "s"
    server = DeviceServer(f"unix:{socket}", app)
    await server.start()
    reader, writer = await asyncio.open_unix_connection(str(socket))
    try:
        yield server, _Client(reader, writer)
    finally:
        writer.close()
        await server.stop()


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


def test_requests_share_a_connection(run: Any, tmp_path: Path) -> None:
    """One after the other, and sent ahead: answered in their order although the first waits."""

    async def work() -> None:
        gate = asyncio.Event()
        begun: list[bytes] = []

        async def later(request: Request) -> bytes:
            await gate.wait()
            return _response(f"late {request.body.decode()}")

        def app(request: Request) -> bytes | Coroutine[Any, Any, bytes]:
            begun.append(request.url)
            if request.url == b"/later":
                return later(request)
            return _response(f"{request.method.decode()} {request.body.decode()}")

        async with _serving(tmp_path, app) as (_, client):
            for text in ("one", "two"):
                client.send(_post("/now", text.encode()))
                assert await client.text() == f"POST {text}"
            client.send(_post("/later", b"1") + _post("/now", b"2") + _post("/later", b"3"))
            client.send(_post("/now", b"4"))
            await _until(lambda: b"/later" in begun)
            assert begun == [b"/now", b"/now", b"/later"]
            gate.set()
            assert [await client.text() for _ in range(4)] == [
                "late 1",
                "POST 2",
                "late 3",
                "POST 4",
            ]

    run(work())


def test_a_body_in_pieces(run: Any, tmp_path: Path) -> None:
    """The call begins before its body is there; who is refused is told so at once."""

    async def work() -> None:
        async def read(request: Request) -> bytes:
            return _response((await request.read()).decode())

        def app(request: Request) -> bytes | Coroutine[Any, Any, bytes]:
            if request.url == b"/refused":
                return _response("no")
            return _response(request.body.decode()) if request.complete else read(request)

        async with _serving(tmp_path, app) as (_, client):
            whole = _post("/refused", b"abcdef")
            client.send(whole[:-4])
            assert await client.text() == "no"
            client.send(whole[-4:] + _post("/taken", b"whole"))
            assert await client.text() == "whole"
            whole = _post("/taken", b"in pieces")
            for byte in whole:
                client.send(bytes([byte]))
                await asyncio.sleep(0)
            assert await client.text() == "in pieces"
            client.send(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
            client.send(b"2\r\nde\r\n0\r\n\r\n")
            assert await client.text() == "abcde"

    run(work())


def test_a_body_is_bounded_and_may_end_early(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too much is not kept, and refused; a client that goes away is noticed."""
    monkeypatch.setattr(http_protocol, "MAX_BODY", 10)

    async def work() -> None:
        failures: list[str] = []

        async def read(request: Request) -> bytes:
            try:
                return _response(str(len(await request.read())))
            except DomainError as error:
                failures.append(error.message)
                return _response("refused")

        async with _serving(tmp_path, read) as (_, client):
            client.send(_post("/", b"x" * 11))
            assert await client.text() == "refused"
            client.send(_post("/", b"x" * 10))
            assert await client.text() == "10"
            client.send(_post("/", b"x" * 10)[:-5])
            await asyncio.sleep(0)
            client.writer.close()
        assert failures[0] == "body: must have at most 10 bytes"

    run(work())


def test_fields_are_of_one_request_only(run: Any, tmp_path: Path) -> None:
    """Nothing of a request is taken for the next one's, not even what follows its body."""

    async def work() -> None:
        def app(request: Request) -> bytes:
            return _response(",".join(f"{k}={v}" for k, v in request.headers.items()))

        async with _serving(tmp_path, app) as (_, client):
            client.send(_post("/", b"", "x-evergreen-subject: a", "x-other: b", "X-Request-Id: c"))
            assert await client.text() == "x-evergreen-subject=a"
            client.send(_post("/"))
            assert await client.text() == ""
            client.send(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n")
            client.send(b"x-evergreen-subject: trailer\r\n\r\n" + _post("/"))
            assert [await client.text(), await client.text()] == ["", ""]

    run(work())


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\na",
        b"POST / HTTP/1.1\r\nx: " + b"a" * 70_000,
    ],
    ids=["TLS", "two lengths", "length and chunks", "endless head"],
)
def test_what_is_not_http_ends_the_connection(run: Any, tmp_path: Path, sent: bytes) -> None:
    """With a 400, and nothing is served."""

    async def work() -> None:
        def app(request: Request) -> bytes:
            raise AssertionError

        async with _serving(tmp_path, app) as (_, client):
            client.send(sent)
            head, _ = await client.answer()
            assert head.startswith("HTTP/1.1 400 ")

    run(work())


@pytest.mark.parametrize("asked", ["connection: close", "HTTP/1.0"])
def test_a_client_may_end_the_connection(run: Any, tmp_path: Path, asked: str) -> None:
    """It gets its answer, which says so, and the end."""

    async def work() -> None:
        async with _serving(tmp_path, lambda request: _response("last")) as (_, client):
            if asked == "HTTP/1.0":
                client.send(b"POST / HTTP/1.0\r\ncontent-length: 0\r\n\r\n")
            else:
                client.send(_post("/", b"", asked))
            head, body = await client.answer()
            assert "\r\nconnection: close\r\n" in head
            assert body == "last"
            assert await client.ended()

    run(work())


def test_a_stop_lets_calls_end(run: Any, tmp_path: Path) -> None:
    """What is in flight is answered, idle connections are closed, new ones are not taken."""

    async def work() -> None:
        gate = asyncio.Event()
        begun = asyncio.Event()

        async def wait(request: Request) -> bytes:
            begun.set()
            await gate.wait()
            return _response("done")

        async with _serving(tmp_path, wait) as (server, busy):
            idle = _Client(*await asyncio.open_unix_connection(str(tmp_path / "s")))
            busy.send(_post("/"))
            await begun.wait()
            stopping: Awaitable[None] = asyncio.create_task(server.stop())
            assert await idle.ended()
            with pytest.raises(OSError):
                await asyncio.open_unix_connection(str(tmp_path / "s"))
            gate.set()
            head, body = await busy.answer()
            assert "connection: close" in head
            assert body == "done"
            assert await busy.ended()
            await stopping
            idle.writer.close()

    run(work())
