"""The HTTP side of a service towards the gateway: the device calls in the released agent's JSON.

A plain ASGI application behind the same chain as gRPC. See docs/adr for why these calls do not
pass the gateway's transcoder.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvicorn
from google.protobuf import json_format
from google.protobuf.message import Message

from servicekit.call import H_REQUEST_ID, Call
from servicekit.chain import CallChain, check_rules
from servicekit.errors import (
    HTTP_STATUS,
    Code,
    DomainError,
    FieldViolation,
    error_body,
    invalid,
    invalid_field,
    not_found,
    retry_after_header,
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON: Final = b"application/json"
_FAILED_FIELD: Final = re.compile(r"Failed to parse (\w+) field: ")
MAX_BODY: Final = 48 << 20
"""The gateway has the real limits, per route; this one only bounds memory."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a device route answers."""

    status: int = 200
    body: bytes = b"{}"


NOT_MODIFIED: Final = Answer(304, b"")


@dataclass(frozen=True, slots=True)
class Route:
    """A device call: its row of the access table, and what serves it.

    The handler gets the call and the body's bytes.
    """

    rpc: str
    handler: Callable[[Call, bytes], Awaitable[Answer]]


class DeviceApp:
    """The ASGI application with a service's device routes (all of them POST)."""

    def __init__(
        self,
        chain: CallChain,
        routes: Mapping[str, Route],
        other: AsgiApp | None = None,
    ) -> None:
        self._chain = chain
        self._routes = routes
        self._other = other
        self.serving = True
        """Whether the gateway should send calls here; it asks `GET /healthz`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            return
        if scope["path"] == "/healthz":
            await _send(send, 200 if self.serving else 503, b"{}")
            return
        route = self._routes.get(scope["path"])
        if route is None and self._other is not None:
            await self._other(scope, receive, send)
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        try:
            if route is None:
                raise not_found("route", scope["path"])
            if scope["method"] != "POST":
                raise DomainError(Code.UNIMPLEMENTED, "METHOD_NOT_ALLOWED", "use POST")
            handler = route.handler

            async def handle(call: Call) -> Answer:
                return await handler(call, await _body(receive))

            answer = await self._chain.run(route.rpc, headers, handle)
            await _send(send, answer.status, answer.body)
        except DomainError as error:
            body = error_body(error, headers.get(H_REQUEST_ID, "")).encode()
            status = 405 if error.reason == "METHOD_NOT_ALLOWED" else HTTP_STATUS[error.code]
            await _send(send, status, body, retry_after_header(error))


async def _body(receive: Receive) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        return body
    parts = [body]
    size = len(body)
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise invalid_field("body", "ended early")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            raise invalid_field("body", f"must have at most {MAX_BODY} bytes")
    return b"".join(parts)


async def _send(send: Send, status: int, body: bytes, retry_after: str | None = None) -> None:
    headers = []
    if status != 304:
        headers = [
            (b"content-type", JSON),
            (b"content-length", str(len(body)).encode()),
        ]
    if retry_after is not None:
        headers.append((b"retry-after", retry_after.encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def parse_json_object(body: bytes) -> dict[str, Any]:
    """Reads a request's body.

    Raises:
        DomainError: INVALID_ARGUMENT when it is not one JSON object in UTF-8.
    """
    try:
        value = json.loads(body)
    except UnicodeDecodeError as broken:
        raise invalid_field("body", "must be JSON in UTF-8") from broken
    except (ValueError, RecursionError) as broken:
        raise invalid_field("body", "must be valid JSON") from broken
    if not isinstance(value, dict):
        raise invalid_field("body", "must be a JSON object")
    return value


def parse_message(body: bytes, message: Message) -> None:
    """Fills a message from the agent's JSON and checks its rules; unknown fields are ignored.

    Raises:
        DomainError: INVALID_ARGUMENT with the broken fields, in the agent's snake_case.
    """
    value = parse_json_object(body)
    try:
        json_format.ParseDict(value, message, ignore_unknown_fields=True, max_recursion_depth=32)
    except (json_format.ParseError, UnicodeError, ValueError, RecursionError) as broken:
        raise invalid(_violation(str(broken))) from broken
    try:
        check_rules(message)
    except DomainError as error:
        raise invalid(
            *(FieldViolation(_snake(v.field), v.rule) for v in error.violations)
        ) from error


def _violation(text: str) -> FieldViolation:
    # "Failed to parse state field: Failed to parse disk_free_bytes field: Value out of range: -1"
    path = ".".join(_FAILED_FIELD.findall(text))
    return FieldViolation(_snake(path) or "body", "has a value of the wrong type or out of range")


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name)


class HttpServer:
    """An ASGI application on a unix socket (`unix:PATH`) or a loopback port (`HOST:PORT`)."""

    def __init__(self, listen: str, app: Any) -> None:
        self._listen = listen
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                loop="none",
                http="httptools",
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
        sock = _bind(self._listen)
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
            self._server.should_exit = True
            await self._task


def _bind(listen: str) -> socket.socket:
    if listen.startswith("unix:"):
        path = listen.removeprefix("unix:")
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(path)
        Path(path).chmod(0o600)
    else:
        host, _, port = listen.rpartition(":")
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, int(port)))
    sock.setblocking(False)
    return sock
