"""The server of pages."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from servicekit.http.asgi import HttpServer, Receive, Scope, Send
from tests.support.stack import free_port

PATIENCE = 60.0


async def _hello(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def test_a_server_that_nobody_calls_sets_no_timers() -> None:
    """It sleeps until something comes, and still serves and stops at once."""
    set_timers: list[str] = []

    class Loop(asyncio.SelectorEventLoop):
        def call_at(self, when: float, callback: Any, *args: Any, **more: Any) -> Any:
            set_timers.append(repr(callback))
            return super().call_at(when, callback, *args, **more)

    async def serves() -> None:
        address = f"127.0.0.1:{free_port()}"
        server = HttpServer(address, _hello)
        await server.start()
        set_timers.clear()
        await asyncio.sleep(0.5)
        # That of this sleep.
        assert len(set_timers) == 1, set_timers
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"http://{address}/")
        assert answer.text == "hello"
        await server.stop()

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(asyncio.wait_for(serves(), PATIENCE))
