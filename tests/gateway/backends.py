"""Stand-ins for the six contexts: they answer what a test tells them and note what arrives."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import uvicorn
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from contract.contexts import CONTEXTS
from deploy.gateway import Endpoints


@dataclass(frozen=True)
class Seen:
    """A request as it arrived behind the gateway."""

    context: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    form: str
    """`grpc` or `http`."""


@dataclass(frozen=True)
class HttpAnswer:
    """What a plain HTTP route answers."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": "application/json"})


GrpcAnswer = Callable[[Seen, Any], Awaitable[Message | None]]
"""Gets the request and the grpc.aio context; `None` is an empty message."""
GrpcStream = Callable[[Seen, Any], AsyncIterator[Message]]


class Backends:
    """All contexts behind one gateway."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.seen: list[Seen] = []
        self.answers: dict[str, GrpcAnswer] = {}
        self.streams: dict[str, GrpcStream] = {}
        self.http_answers: dict[str, Callable[[Seen], Awaitable[HttpAnswer]]] = {}
        self.jwks: dict[str, Any] | None = None
        """The token keys; with a purpose as a member, those of that purpose are its own."""
        self._grpc: dict[str, grpc.aio.Server] = {}
        self._http: dict[str, tuple[uvicorn.Server, asyncio.Task[None]]] = {}

    @property
    def endpoints(self) -> dict[str, Endpoints]:
        """The addresses for the gateway's settings."""
        return {
            context: Endpoints(
                grpc=f"unix:{self.directory}/{context}.gw.sock",
                http=f"unix:{self.directory}/{context}.http.sock",
            )
            for context in CONTEXTS
        }

    def reset(self) -> None:
        """Forgets requests and answers between two tests."""
        self.seen.clear()
        self.answers.clear()
        self.streams.clear()
        self.http_answers.clear()

    async def start(self) -> None:
        """Starts all contexts."""
        await asyncio.gather(*(self.start_context(context) for context in CONTEXTS))

    async def start_context(self, context: str) -> None:
        """Starts one context on its two sockets."""
        await asyncio.gather(self._start_grpc(context), self._start_http(context))

    async def stop_context(self, context: str) -> None:
        """Stops one context at once, as a crash does."""
        await self._grpc.pop(context).stop(0)
        server, task = self._http.pop(context)
        server.should_exit = server.force_exit = True
        await task

    async def stop(self) -> None:
        """Stops what runs."""
        await asyncio.gather(*(self.stop_context(context) for context in list(self._grpc)))

    async def _start_grpc(self, context: str) -> None:
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        server.add_generic_rpc_handlers((_Handlers(self, context),))
        health = HealthServicer()
        await health.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        reflection.enable_server_reflection(
            ["evergreen.v1.PolicyService", reflection.SERVICE_NAME], server
        )
        server.add_insecure_port(self.endpoints[context].grpc)
        await server.start()
        self._grpc[context] = server

    async def _start_http(self, context: str) -> None:
        path = Path(self.endpoints[context].http.removeprefix("unix:"))
        path.unlink(missing_ok=True)
        server = uvicorn.Server(
            uvicorn.Config(
                _HttpApp(self, context),
                uds=str(path),
                lifespan="off",
                log_config=None,
                proxy_headers=False,
                timeout_keep_alive=3600,
            )
        )
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.005)
        self._http[context] = server, task


class _Handlers(grpc.GenericRpcHandler):
    """Takes every RPC of the product, whoever it belongs to: a wrong route is seen, not refused."""

    def __init__(self, backends: Backends, context: str) -> None:
        self._backends = backends
        self._context = context

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = str(handler_call_details.method)
        if not method.startswith("/evergreen.v1."):
            return None
        if method in self._backends.streams:
            return grpc.unary_stream_rpc_method_handler(self._stream(method))
        return grpc.unary_unary_rpc_method_handler(self._unary(method))

    def _note(self, method: str, raw: bytes, context: Any) -> Seen:
        headers = {k: v for k, v in context.invocation_metadata() if isinstance(v, str)}
        seen = Seen(self._context, method, headers, raw, "grpc")
        self._backends.seen.append(seen)
        return seen

    def _unary(self, method: str) -> Any:
        async def serve(raw: bytes, context: Any) -> bytes:
            seen = self._note(method, raw, context)
            answer = self._backends.answers.get(method)
            message = await answer(seen, context) if answer else None
            return message.SerializeToString() if message else b""

        return serve

    def _stream(self, method: str) -> Any:
        async def serve(raw: bytes, context: Any) -> AsyncIterator[bytes]:
            seen = self._note(method, raw, context)
            async for message in self._backends.streams[method](seen, context):
                yield message.SerializeToString()

        return serve


class _HttpApp:
    def __init__(self, backends: Backends, context: str) -> None:
        self._backends = backends
        self._context = context

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        parts = []
        while True:
            message = await receive()
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                break
        answer = await self._answer(path, scope, b"".join(parts))
        headers = [(k.encode(), v.encode()) for k, v in answer.headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _answer(self, path: str, scope: Any, body: bytes) -> HttpAnswer:
        if path == "/healthz":
            return HttpAnswer()
        if path == "/.well-known/jwks.json":
            return self._jwks(scope["query_string"].decode())
        headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        headers[":http-version"] = scope["http_version"]
        seen = Seen(self._context, path, headers, body, "http")
        self._backends.seen.append(seen)
        answer = self._backends.http_answers.get(path)
        return await answer(seen) if answer else HttpAnswer()

    def _jwks(self, query: str) -> HttpAnswer:
        jwks = self._backends.jwks
        if jwks is None:
            return HttpAnswer(503)
        return HttpAnswer(body=json.dumps(jwks.get(query.removeprefix("use="), jwks)).encode())
