"""The gRPC side of a service: its servicers behind the call chain, with health."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, TypeVar

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from contract.access import ACCESS, PACKAGE
from contract.contexts import CONTEXTS
from servicekit.call import H_REQUEST_ID, H_SERVICE, H_UNKNOWN, Call
from servicekit.errors import (
    ERROR_DOMAIN,
    MAX_VIOLATIONS,
    DomainError,
    error_body,
    invalid_field,
    permission_denied,
    retry_after_header,
)
from servicekit.etags import H_ETAG, H_IF_MATCH, expect
from servicekit.rpc.chain import CallChain, check_rules
from servicekit.rpc.members import unknown_members
from servicekit.security.tls import GATEWAY, Tls, grpc_peer

H_ERROR: Final = "x-evergreen-error"
"""Trailing metadata: the whole JSON body that the gateway answers for a failed call."""
H_TRANSCODED: Final = "x-envoy-original-path"
"""Metadata that the gateway's transcoder sets: the caller speaks JSON over HTTP."""
H_STATUS: Final = "x-evergreen-status"
"""Trailing metadata: the HTTP status of a failed call where it is not that of its code."""
MAX_MESSAGE: Final = 64 << 20
_TOO_MANY_TRAILERS: Final = 128
"""More than the gateway takes: it then breaks the response off (see `abort`)."""
_UNCOMPRESSED: Final = 1
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}

Register = Callable[[grpc.aio.Server], None]
"""Adds a servicer to a server: `partial(add_XServicer_to_server, servicer)`."""


Method = TypeVar("Method", bound=Callable[..., Any])


def checks_own_rules(method: Method) -> Method:
    """Marks a servicer's method that checks its request itself.

    For requests of which a part may break a rule without the whole being refused.
    """
    method.checks_own_rules = True  # type: ignore[attr-defined]  # read where it is wrapped
    return method


class Context:
    """What a servicer's method gets beside its request."""

    __slots__ = ("_grpc", "call")

    def __init__(self, call: Call, grpc_context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self.call = call
        self._grpc = grpc_context

    def set_code(self, code: grpc.StatusCode) -> None:
        """Generated servicers call it just before they raise NotImplementedError, which says it."""

    def set_details(self, details: str) -> None:
        """As `set_code`."""

    async def send_headers(self, headers: Mapping[str, str]) -> None:
        """Sends response headers ahead of the answer, as a download's file name."""
        await self._grpc.send_initial_metadata(tuple(headers.items()))

    def set_trailers(self, trailers: Mapping[str, str]) -> None:
        """Has trailers sent behind an answer that succeeds, as the number of a file's rows."""
        self._grpc.set_trailing_metadata(tuple(trailers.items()))


def rich_status(error: DomainError) -> bytes:
    """The error as google.rpc.Status, for `grpc-status-details-bin`."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata
        )
    ]
    if error.violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=v.field[:500], description=v.rule[:500]
                    )
                    for v in error.violations[:MAX_VIOLATIONS]
                ]
            )
        )
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(error.retry_after * 1000))
        details.append(retry)
    packed = []
    for detail in details:
        box = any_pb2.Any()
        box.Pack(detail)
        packed.append(box)
    status = status_pb2.Status(code=int(error.code), message=error.message, details=packed)
    serialized: bytes = status.SerializeToString()
    return serialized


async def abort(
    context: grpc.aio.ServicerContext[Any, Any],
    error: DomainError,
    headers: Mapping[str, str],
    *,
    begun: bool = False,
) -> None:
    """Fails a call.

    The transcoder ends an answer that has begun like one that succeeds, and what a browser or curl
    has saved by then looks complete. No status of ours changes that, but a protocol error between
    us and the gateway does: it resets the caller's stream, and every HTTP client notices.
    """
    request_id = headers.get(H_REQUEST_ID, "")
    trailing: list[tuple[str, str | bytes]] = [
        ("grpc-status-details-bin", rich_status(error)),
        (H_ERROR, error_body(error, request_id)),
    ]
    if (after := retry_after_header(error)) is not None:
        trailing.append(("retry-after", after))
    if begun and H_TRANSCODED in headers:
        trailing.extend((f"x-evergreen-broken-{n}", "") for n in range(_TOO_MANY_TRAILERS))
    if error.http_status is not None:
        trailing.append((H_STATUS, str(error.http_status)))
    await context.abort(_CODES[int(error.code)], error.message, tuple(trailing))


class _ChainInterceptor(grpc.aio.ServerInterceptor):
    """Puts the call chain around every method of this product; health and reflection pass."""

    def __init__(self, chain: CallChain, *, internal: bool, by_certificate: bool) -> None:
        self._chain = chain
        self._internal = internal
        self._by_certificate = by_certificate
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any] | None] = {}

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = str(handler_call_details.method)
        if method in self._wrapped:
            return self._wrapped[method]
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # gRPC answers UNIMPLEMENTED
        if method.startswith(f"/{PACKAGE}."):
            handler = self._wrap(method, handler)
        self._wrapped[method] = handler
        return handler

    def _wrap(self, rpc: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        parse: Callable[[bytes], Message] = handler.request_deserializer
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._streaming(rpc, handler.unary_stream, parse),
                response_serializer=handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(rpc, handler.unary_unary, parse),
            response_serializer=handler.response_serializer,
        )

    def _unary(self, rpc: str, method: Any, parse: Callable[[bytes], Message]) -> Any:
        by_rules = not getattr(method, "checks_own_rules", False)
        rule = ACCESS.get(rpc)
        writes = rule is not None and rule.writes

        async def serve(raw: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            headers = _headers(context)

            async def handle(call: Call) -> Any:
                request = _parsed(raw, parse)
                _check_members(headers, request)
                if by_rules:
                    check_rules(request)
                expected = expect(_if_match(context), request, writes=writes)
                answer = await method(request, Context(call, context))
                if etag := getattr(answer, "etag", ""):
                    if expected is not None and not writes:
                        expected.check(etag)
                    await context.send_initial_metadata(((H_ETAG, f'"{etag}"'),))
                return answer

            try:
                self._check_peer(context, headers)
                return await self._chain.run(
                    rpc,
                    headers,
                    handle,
                    internal_listener=self._internal,
                    time_remaining=context.time_remaining(),
                )
            except DomainError as error:
                await abort(context, error, headers)

        return serve

    def _streaming(self, rpc: str, method: Any, parse: Callable[[bytes], Message]) -> Any:
        async def serve(
            raw: bytes, context: grpc.aio.ServicerContext[Any, Any]
        ) -> AsyncIterator[Any]:
            headers = _headers(context)
            begun = False

            async def handle(call: Call) -> None:
                nonlocal begun
                request = _parsed(raw, parse)
                _check_members(headers, request)
                check_rules(request)
                # Closed at once when its reader is gone, not when it happens to be collected.
                async with aclosing(method(request, Context(call, context))) as parts:
                    async for part in parts:
                        await _write(context, part)
                        begun = True

            try:
                self._check_peer(context, headers)
                await self._chain.run(
                    rpc,
                    headers,
                    handle,
                    internal_listener=self._internal,
                    time_remaining=context.time_remaining(),
                )
            except DomainError as error:
                await abort(context, error, headers, begun=begun)
            return
            yield  # makes this a generator; the parts are written above

        return serve

    def _check_peer(
        self, context: grpc.aio.ServicerContext[Any, Any], headers: dict[str, str]
    ) -> None:
        """Lets nobody vouch for callers but the gateway, nor be a service but a service."""
        if not self._by_certificate:
            return
        peer = grpc_peer(context.auth_context(), CONTEXTS if self._internal else (GATEWAY,))
        if peer is None:
            raise permission_denied("NOT_ALLOWED", "this call is not available here")
        if self._internal:
            headers[H_SERVICE] = peer


def _check_members(headers: Mapping[str, str], request: Message) -> None:
    """Refuses a JSON call with names that no field has: another thing was meant than was read."""
    if unknown := headers.get(H_UNKNOWN):
        raise unknown_members(unknown, request)


async def _write(context: grpc.aio.ServicerContext[Any, Any], part: Message) -> None:
    try:
        await context.write(part)
    except grpc.aio.InternalError:
        # So it tells that the caller has gone, if that happens during a write.
        raise asyncio.CancelledError from None


def _headers(context: grpc.aio.ServicerContext[Any, Any]) -> dict[str, str]:
    metadata: Any = context.invocation_metadata() or ()
    return {key: value for key, value in metadata if isinstance(value, str)}


def _if_match(context: grpc.aio.ServicerContext[Any, Any]) -> list[str]:
    metadata: Any = context.invocation_metadata() or ()
    return [str(value) for key, value in metadata if key == H_IF_MATCH]


def _parsed(raw: bytes, parse: Callable[[bytes], Message]) -> Message:
    try:
        return parse(raw)
    except (DecodeError, UnicodeDecodeError, ValueError) as broken:
        raise invalid_field("body", "is not the message that this call takes") from broken


class GrpcServer:
    """One listener: the servicers of a service, behind its chain.

    Args:
        listen: the address, as gRPC writes it (`unix:PATH` or `HOST:PORT`).
        internal: whether it is the listener for the other services.
        tls: for a listener on a network.
        probe: where its health, and nothing else, is told to clients without a certificate.
    """

    def __init__(
        self,
        listen: str,
        chain: CallChain,
        register: Sequence[Register],
        services: Sequence[str],
        *,
        internal: bool,
        tls: Tls | None = None,
        probe: str = "",
    ) -> None:
        by_certificate = tls is not None and not listen.startswith("unix:")
        self._server = grpc.aio.server(
            interceptors=[
                _ChainInterceptor(chain, internal=internal, by_certificate=by_certificate)
            ],
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.max_send_message_length", MAX_MESSAGE),
                ("grpc.max_metadata_size", 64 << 10),
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 5000),
                # The gateway limits what is sent, not what that unpacks to.
                ("grpc.compression_enabled_algorithms_bitset", _UNCOMPRESSED),
            ],
        )
        self._health = HealthServicer()
        self._services = ("", *services)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for add in register:
            add(self._server)
        if tls is not None and by_certificate:
            self._server.add_secure_port(listen, tls.server_credentials())
        else:
            self._server.add_insecure_port(listen)
        self._probed: grpc.aio.Server | None = None
        if probe:
            self._probed = grpc.aio.server()
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._probed)
            self._probed.add_insecure_port(probe)

    async def start(self) -> None:
        """Begins to serve; health says NOT_SERVING until `set_serving`."""
        await self._set(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self.set_ready(False)
        await self._server.start()
        if self._probed is not None:
            await self._probed.start()

    async def set_serving(self, serving: bool) -> None:
        """Says whether new calls should come here."""
        await self._set(
            health_pb2.HealthCheckResponse.SERVING
            if serving
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )

    async def set_ready(self, ready: bool) -> None:
        """Says, under the health name `ready`, whether everything that is needed is there."""
        await self._health.set(
            "ready",
            health_pb2.HealthCheckResponse.SERVING
            if ready
            else health_pb2.HealthCheckResponse.NOT_SERVING,
        )

    async def _set(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in self._services:
            await self._health.set(name, status)

    async def stop(self, grace: float) -> None:
        """Refuses new calls and waits up to `grace` seconds for those in flight."""
        await self._server.stop(grace)
        if self._probed is not None:
            await self._probed.stop(None)
