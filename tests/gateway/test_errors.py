"""Every error has the one shape, whoever made it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.api import httpbody_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from servicekit.errors import (
    HTTP_STATUS,
    Code,
    DomainError,
    FieldViolation,
    error_body,
    error_details,
    retry_after_header,
)
from servicekit.rpc.server import H_ERROR, rich_status
from tests.gateway.backends import GrpcAnswer, HttpAnswer, Seen
from tests.gateway.harness import ERROR_FIELDS, Gateway, bearer, error_of

LIST = "/evergreen.v1.PolicyService/ListPolicies"
CREATE = "/evergreen.v1.PolicyService/CreatePolicy"
EXPORT = "/evergreen.v1.AuditService/ExportAuditEntries"


def _error(code: Code) -> DomainError:
    return DomainError(
        code,
        "A_REASON",
        'it says "no" \\ <ü>\n',
        metadata={"requestId": "x"},
        violations=(FieldViolation("name", "is bad"),),
        retry_after=7.0 if code in (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED) else None,
    )


def _raises(error: DomainError, *, headers_first: bool = False) -> GrpcAnswer:
    """Answers an error as servicekit does."""

    async def answer(seen: Seen, context: Any) -> Message | None:
        if headers_first:
            await context.send_initial_metadata((("content-disposition", "attachment"),))
        body = error_body(error, seen.headers["x-request-id"])
        trailing: list[tuple[str, str | bytes]] = [
            ("grpc-status-details-bin", rich_status(error)),
            (H_ERROR, body),
        ]
        if after := retry_after_header(error):
            trailing.append(("retry-after", after))
        code = next(c for c in grpc.StatusCode if c.value[0] == error.code)
        await context.abort(code, error.message, tuple(trailing))
        return None

    return answer


@pytest.mark.parametrize("headers_first", [False, True])
@pytest.mark.parametrize("http2", [True, False])
@pytest.mark.parametrize("code", list(Code), ids=lambda c: c.name)
async def test_a_services_error_is_answered_whole(
    gateway: Gateway, code: Code, http2: bool, headers_first: bool
) -> None:
    """The service's JSON body with the HTTP status of its code, over both versions of HTTP."""
    error = _error(code)
    gateway.backends.answers[LIST] = _raises(error, headers_first=headers_first)
    client = gateway.http if http2 else gateway.http1
    answer = await client.get("/api/policies", headers=bearer(gateway.signer.user()))
    body = error_of(answer, HTTP_STATUS[code], code.name)
    assert body["message"] == error.message
    assert body["details"] == error_details(error)
    assert answer.headers.get("retry-after") == retry_after_header(error)
    assert "grpc-status" not in answer.headers


async def test_a_long_error_passes(gateway: Gateway) -> None:
    """As many broken fields as servicekit lists, with the longest texts, fit."""
    violations = tuple(FieldViolation(f"f{n}" * 250, "ü" * 500) for n in range(8))
    error = DomainError(Code.INVALID_ARGUMENT, "BAD", "many fields", violations=violations)
    gateway.backends.answers[LIST] = _raises(error)
    for client in (gateway.http, gateway.http1):
        answer = await client.get("/api/policies", headers=bearer(gateway.signer.user()))
        body = error_of(answer, 400, "INVALID_ARGUMENT")
        assert len(answer.content) > 15_000
        assert body["details"] == error_details(error)


async def test_a_service_that_says_later_is_not_asked_again(gateway: Gateway) -> None:
    """Its answer goes to the caller at once, also of a call that could be repeated."""
    gateway.backends.answers[LIST] = _raises(_error(Code.UNAVAILABLE))
    answer = await gateway.http.get("/api/policies", headers=bearer(gateway.signer.user()))
    error_of(answer, 503, "UNAVAILABLE")
    assert len(gateway.backends.seen) == 1


async def test_native_grpc_gets_grpcs_form(gateway: Gateway) -> None:
    """Status, message and details; the JSON body is not sent along."""
    error = _error(Code.RESOURCE_EXHAUSTED)
    gateway.backends.answers[LIST] = _raises(error)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await gateway.grpc(LIST, token=gateway.signer.user())
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert raised.value.details() == error.message
    metadata = dict(raised.value.trailing_metadata() or ())
    assert metadata["retry-after"] == "7"
    assert H_ERROR not in metadata
    raw = metadata["grpc-status-details-bin"]
    assert isinstance(raw, bytes)
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(raw).details[0].Unpack(info)
    assert info.reason == "A_REASON"


@pytest.mark.parametrize("headers_first", [False, True])
async def test_native_grpc_never_gets_the_json_body(gateway: Gateway, headers_first: bool) -> None:
    """Neither in the headers nor in the trailers, on calls of devices neither."""
    for rpc, token in (
        (LIST, gateway.signer.user()),
        ("/evergreen.v1.DeviceService/PullPolicy", gateway.signer.device()),
    ):
        error = _error(Code.NOT_FOUND)
        gateway.backends.answers[rpc] = _raises(error, headers_first=headers_first)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await gateway.grpc(rpc, token=token)
        assert H_ERROR not in dict(raised.value.trailing_metadata() or ())


async def test_an_error_of_the_grpc_library_is_completed(gateway: Gateway) -> None:
    """A service that does not know the call, or fails unexpectedly, still answers the shape."""

    async def fails(seen: Seen, context: Any) -> Message | None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, 'no "such" method \\ \n"details":[')
        return None

    gateway.backends.answers[LIST] = fails
    answer = await gateway.http.get("/api/policies", headers=bearer(gateway.signer.user()))
    body = error_of(answer, 501, "UNIMPLEMENTED")
    assert body["message"] == 'no "such" method \\ \n"details":['


async def test_an_error_before_a_download_is_an_error(gateway: Gateway) -> None:
    """A streamed answer that fails before its first part has the shape too."""

    async def fails(seen: Seen, context: Any) -> AsyncIterator[Message]:
        await _raises(_error(Code.PERMISSION_DENIED))(seen, context)
        yield httpbody_pb2.HttpBody()

    gateway.backends.streams[EXPORT] = fails
    for client in (gateway.http, gateway.http1):
        answer = await client.get("/api/audit/export", headers=bearer(gateway.signer.user()))
        body = error_of(answer, 403, "PERMISSION_DENIED")
        assert body["message"] == _error(Code.PERMISSION_DENIED).message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is not valid JSON: it ends too early"),
        (b'{"name": 5', "the body is not valid JSON: it ends too early"),
        (b"nonsense", "the body is not valid JSON"),
        (b'{"email": "a" "b": "c"}', "the body is not valid JSON"),
        (b"[1]", "the body has to be a JSON object"),
        (b'"x"', "the body has to be a JSON object"),
        (b'{"email": "\xff"}', "the body is not UTF-8"),
        (b'{"email": "\\ud800"}', "the body is not valid JSON: half of a surrogate pair"),
        (b'{"email": {"a": 1}}', "email: an object stands where one value is needed"),
        (b'{"email": ["a", "b"]}', "a list stands where one value is needed"),
        (b'{"email": 5}', "email: must be a string"),
        (b'{"refreshToken": 5}', "refreshToken: must be a string"),
    ],
)
async def test_what_cannot_be_transcoded_is_a_bad_request(
    gateway: Gateway, body: bytes, message: str
) -> None:
    """Broken JSON and wrong types are refused in plain words, with the field, not its value."""
    path = "/auth/refresh" if b"refresh" in body else "/auth/login"
    for client in (gateway.http, gateway.http1):
        answer = await client.post(path, content=body)
        error = error_of(answer, 400, "INVALID_ARGUMENT")
        assert error["message"] == message
        details = {detail["@type"].rpartition(".")[2]: detail for detail in error["details"]}
        if ":" in error["message"] and not error["message"].startswith("the body"):
            field, rule = error["message"].split(": ")
            violation = {"field": field, "description": rule}
            assert details["BadRequest"]["fieldViolations"] == [violation]
        else:
            assert details["ErrorInfo"]["reason"] == "INVALID_BODY"
        assert "x-evergreen-broken" not in answer.headers
    assert gateway.backends.seen == []


async def test_a_field_of_a_list_is_named(gateway: Gateway) -> None:
    """With its position, as services name it."""
    answer = await gateway.http.patch(
        "/api/alert-rules",
        json={"rules": [{"kind": "one"}, {"kind": "two", "pausedUntil": "2027-01-07"}]},
        headers=bearer(gateway.signer.user()),
    )
    error = error_of(answer, 400, "INVALID_ARGUMENT")
    assert error["message"] == "rules[1].pausedUntil: must be a time such as 2026-01-31T08:00:00Z"
    assert gateway.backends.seen == []


async def test_a_wrong_type_in_the_query_is_a_bad_request(gateway: Gateway) -> None:
    """So are query parameters of the wrong type; unknown ones are ignored as unknown fields are."""
    user = bearer(gateway.signer.user())
    answer = await gateway.http.get("/api/tenants?pageSize=many", headers=user)
    error_of(answer, 400, "INVALID_ARGUMENT")
    answer = await gateway.http.get("/api/tenants?unknown=1&page_size=5", headers=user)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("verb", "path", "allow"),
    [
        ("PUT", "/api/policies", "GET, POST"),
        ("POST", "/api/policies/x", "DELETE, GET, PATCH"),
        ("GET", "/api/v1/devices/state", "POST"),
        ("DELETE", "/auth/login", "POST"),
        ("PUT", "/api/registrations", "GET, POST"),
        ("POST", "/readyz", "GET, HEAD"),
        ("POST", "/docs/x", "GET, HEAD"),
        ("POST", "/healthz", "GET, HEAD"),
        ("OPTIONS", "/api/policies", "GET, POST"),
    ],
)
async def test_a_wrong_method_is_named(gateway: Gateway, verb: str, path: str, allow: str) -> None:
    """A path that exists says which methods it takes, whoever asks."""
    answer = await gateway.http.request(verb, path)
    error_of(answer, 405, "UNIMPLEMENTED")
    assert answer.headers["allow"] == allow
    assert gateway.backends.seen == []


@pytest.mark.parametrize(
    "path",
    ["/", "/nothing", "/api", "/api/", "/api/nothing", "/api/v1/devices", "/admin", "/stats"],
)
async def test_what_is_not_there_is_not_found(gateway: Gateway, path: str) -> None:
    """With and without a token."""
    for headers in ({}, bearer(gateway.signer.user())):
        for verb in ("GET", "POST"):
            error_of(await gateway.http.request(verb, path, headers=headers), 404, "NOT_FOUND")


async def test_a_device_routes_own_error_passes_untouched(gateway: Gateway) -> None:
    """What a service answers over plain HTTP is its own."""

    async def answer(seen: Seen) -> HttpAnswer:
        body = b'{"code":3,"message":"of the service"}'
        return HttpAnswer(409, body, {"content-type": "application/json", "retry-after": "9"})

    gateway.backends.http_answers["/api/v1/devices/state"] = answer
    headers = bearer(gateway.signer.device())
    for client in (gateway.http, gateway.http1):
        got = await client.post("/api/v1/devices/state", headers=headers, json={})
        assert (got.status_code, got.content) == (409, b'{"code":3,"message":"of the service"}')
        assert got.headers["retry-after"] == "9"


_NOT_HTTP = {
    "large headers": (b"431", b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 20_000 + b"\r\n\r\n"),
    "many headers": (b"431", b"GET / HTTP/1.1\r\nhost: a\r\n" + b"a: b\r\n" * 150 + b"\r\n"),
    "no host": (b"400", b"GET /api/policies HTTP/1.1\r\n\r\n"),
    "version": (b"426", b"GET / HTTP/1.0\r\n\r\n"),
    "nonsense": (b"400", b"NONSENSE\r\n\r\n"),
    "escaped slash": (b"400", b"GET /a%2fb HTTP/1.1\r\nhost: a\r\n\r\n"),
    "length": (b"400", b"POST /auth/login HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n"),
    "smuggling": (
        b"400",
        b"POST /auth/login HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n"
        b"transfer-encoding: chunked\r\n\r\n",
    ),
}


@pytest.mark.parametrize(("status", "start"), _NOT_HTTP.values(), ids=list(_NOT_HTTP))
async def test_what_is_no_http_is_refused_in_shape(
    gateway: Gateway, status: bytes, start: bytes
) -> None:
    """Even what Envoy refuses before it has read a request."""
    reader, writer = await asyncio.open_connection(
        "localhost", gateway.settings.port, ssl=gateway.certificate.trust()
    )
    writer.write(start)
    head = await reader.readuntil(b"\r\n\r\n")
    body = await reader.readexactly(int(re.findall(rb"content-length: (\d+)", head)[0]))
    writer.close()
    assert head.split()[1] == status
    assert b"content-type: application/json\r\n" in head
    error = json.loads(body)
    assert error.keys() == ERROR_FIELDS
    assert error["status"] == "INVALID_ARGUMENT"
    assert error["message"] == error["error"] != ""
    assert error["requestId"]
    assert gateway.backends.seen == []


_USER_RPC = "/evergreen.v1.PolicyService/ListPolicies"
_DEVICE_RPC = "/evergreen.v1.DeviceService/ReportState"


@pytest.mark.parametrize(
    ("kind", "reason", "of_user", "of_device"),
    [
        ("none", "TOKEN_MISSING", "log in first", "a device token is needed"),
        ("expired", "TOKEN_EXPIRED", "token has expired", "the device token has expired"),
        ("broken", "TOKEN_INVALID", "not a valid token of a user", "not a valid device token"),
        ("others", "TOKEN_INVALID", "not a valid token of a user", "not a valid device token"),
    ],
)
async def test_a_refused_token_is_told_in_plain_words(
    gateway: Gateway, kind: str, reason: str, of_user: str, of_device: str
) -> None:
    """What to do, over JSON and gRPC, and nothing of the filter's own words."""
    signer = gateway.signer
    user, device = {
        "none": (None, None),
        "expired": (signer.user(lifetime=-3600), signer.device(lifetime=-100 * 86400)),
        "broken": ("a.b.c", "abc"),
        "others": (signer.device(), signer.user()),
    }[kind]
    answers = (
        (await gateway.http1.get("/api/policies", headers=bearer(user) if user else {}), of_user),
        (
            await gateway.http1.post(
                "/api/v1/devices/state", headers=bearer(device) if device else {}, json={}
            ),
            of_device,
        ),
    )
    for answer, words in answers:
        body = error_of(answer, 401, "UNAUTHENTICATED")
        assert words in body["message"]
        assert body["details"][0]["reason"] == reason
    for rpc, token, words in ((_USER_RPC, user, of_user), (_DEVICE_RPC, device, of_device)):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await gateway.grpc(rpc, token=token)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert words in str(refused.value.details())
    assert gateway.backends.seen == []


async def test_native_grpc_is_told_too_what_is_not_there(gateway: Gateway) -> None:
    """It has no body, but a message."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await gateway.grpc("/evergreen.v1.PolicyService/Nothing")
    assert refused.value.details() == "there is nothing at this address"


async def _raw(gateway: Gateway, request: bytes, *, tls: bool) -> tuple[bytes, dict[str, Any]]:
    reader, writer = await asyncio.open_connection(
        "localhost", gateway.settings.port, ssl=gateway.certificate.trust() if tls else None
    )
    writer.write(request)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    body = await reader.readexactly(int(re.findall(rb"content-length: (\d+)", head)[0]))
    writer.close()
    error = json.loads(body)
    assert error.keys() == ERROR_FIELDS
    assert error["message"] == error["error"] != ""
    assert error["requestId"]
    return head, error


@pytest.mark.parametrize(
    "request_",
    [
        b"CONNECT localhost:443 HTTP/1.1\r\nhost: localhost:443\r\n\r\n",
        b"GET /api/policies HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-key: x\r\nsec-websocket-version: 13\r\n\r\n",
    ],
    ids=["connect", "websocket"],
)
async def test_tunnels_and_upgrades_are_refused_with_a_word(
    gateway: Gateway, request_: bytes
) -> None:
    """At once, in the one shape."""
    head, error = await _raw(gateway, request_, tls=True)
    assert head.split()[1] == b"403"
    assert error["message"] == "no tunnel or WebSocket is offered"


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"POST /api/v1/devices/enroll HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n",
        b"GET /%2f/../x HTTP/1.1\r\nhost: a\r\n\r\n",
        b"no http\r\n\r\n",
    ],
)
async def test_in_the_clear_the_port_says_that_it_speaks_https(
    gateway: Gateway, request_: bytes
) -> None:
    """Whatever is asked: 400, and the connection is closed."""
    head, error = await _raw(gateway, request_, tls=False)
    assert head.split()[1] == b"400"
    assert b"connection: close" in head
    assert error["message"] == "this port speaks HTTPS: use https:// in the address"
    assert gateway.backends.seen == []


async def test_who_says_nothing_in_the_clear_is_not_waited_for_long(gateway: Gateway) -> None:
    """Neither before the first byte nor after it."""
    for start in (b"", b"G", b"GET / HTTP/1.1\r\nhost: a\r\nx: "):
        reader, writer = await asyncio.open_connection("localhost", gateway.settings.port)
        writer.write(start)
        with contextlib.suppress(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 60)
        writer.close()


@pytest.mark.parametrize(
    ("verb", "path", "who"),
    [
        ("GET", "/api/policies", "user"),
        ("GET", "/api/policies", None),
        ("GET", "/api/audit/export", "user"),
        ("POST", "/auth/login", None),
        ("POST", "/api/v1/devices/policy", "device"),
        ("POST", "/api/v1/devices/policy", None),
        ("GET", "/nothing", None),
        ("PUT", "/api/policies", None),
        ("GET", "/.well-known/jwks.json", None),
    ],
)
async def test_no_answer_is_kept_on_its_way(
    gateway: Gateway, verb: str, path: str, who: str | None
) -> None:
    """Answers, refusals and downloads alike."""
    token = {"user": gateway.signer.user(), "device": gateway.signer.device(), None: None}[who]
    headers = bearer(token) if token else {}
    content = b"{}" if verb == "POST" else None
    answer = await gateway.http1.request(verb, path, headers=headers, content=content)
    assert answer.headers["cache-control"] == "no-store"


async def test_what_says_itself_how_long_it_keeps_is_believed(gateway: Gateway) -> None:
    """As the files of the docs, and policies that did not change are still a whole 304."""

    async def fresh(seen: Seen) -> HttpAnswer:
        return HttpAnswer(200, b"", {"cache-control": "max-age=60"})

    async def same(seen: Seen) -> HttpAnswer:
        return HttpAnswer(304, b"", {})

    gateway.backends.http_answers["/docs/a.js"] = fresh
    answer = await gateway.http1.get("/docs/a.js")
    assert answer.headers["cache-control"] == "max-age=60"
    gateway.backends.http_answers["/api/v1/devices/policy"] = same
    device = bearer(gateway.signer.device())
    answer = await gateway.http1.post("/api/v1/devices/policy", headers=device, json={})
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["cache-control"] == "no-store"
