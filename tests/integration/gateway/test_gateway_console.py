"""The web console under the same origin as the API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.integration.gateway.harness import bearer, free_port, running_gateway


@asynccontextmanager
async def console(port: int) -> AsyncIterator[list[str]]:
    """A console that answers every page with its request's head."""
    heads: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        heads.append(head)
        body = head.split(" ")[1].encode()
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n")
        writer.write(b"content-length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield heads
    finally:
        server.close()


async def test_console_and_api_share_an_origin() -> None:
    """Its own pages go to the console with their cookie; all else is the API's, as ever."""
    port = free_port()
    async with (
        console(port) as heads,
        running_gateway(console=f"http://127.0.0.1:{port}") as gateway,
    ):
        cookie = {"cookie": f"session={gateway.signer.user()}"}
        for path in ("/", "/login", "/dashboard/devices?x=1", "/_next/a.js", "/api/auth/login"):
            answer = await gateway.http.get(path, headers=cookie)
            assert (answer.status_code, answer.text) == (200, path)
        assert all("cookie: session=" in head for head in heads)
        assert not any("x-evergreen-" in head for head in heads)
        before = len(heads)
        assert (await gateway.http.get("/api/policies", headers=cookie)).status_code == 200
        asked = await gateway.http.get("/api/policies", headers=bearer(gateway.signer.user()))
        assert asked.status_code == 200
        assert (await gateway.http.get("/loginx")).status_code == 404
        assert len(heads) == before
        assert not any("cookie" in seen.headers for seen in gateway.backends.seen)


async def test_a_console_that_is_away_is_told_in_the_one_shape() -> None:
    """503 as JSON, and the API goes on."""
    async with running_gateway(console=f"http://127.0.0.1:{free_port()}") as gateway:
        answer = await gateway.http.get("/dashboard")
        assert answer.status_code == 503
        assert answer.json()["status"] == "UNAVAILABLE"
        headers = bearer(gateway.signer.user())
        assert (await gateway.http.get("/api/policies", headers=headers)).status_code == 200
