"""The three forms of a call on one port: JSON, native gRPC, gRPC-Web."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.api import httpbody_pb2
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from evergreen.v1 import audit_pb2, audit_pb2_grpc, identity_pb2, policy_pb2, telemetry_pb2
from servicekit.errors import unavailable
from servicekit.rpc.server import abort
from tests.gateway.backends import HttpAnswer, Seen
from tests.gateway.harness import Gateway, bearer, error_of
from tests.gateway.tokens import TENANT

EXPORT = "/evergreen.v1.AuditService/ExportAuditEntries"


def _answers(gateway: Gateway, rpc: str, message: Message) -> None:
    async def answer(seen: Seen, context: Any) -> Message:
        return message

    gateway.backends.answers[f"/evergreen.v1.{rpc}"] = answer


async def test_json_is_camel_case_and_complete(gateway: Gateway) -> None:
    """Empty lists, false and empty texts are printed; what is optional and unset is not."""
    _answers(gateway, "TenantService/ListTenants", identity_pb2.ListTenantsResponse())
    user = bearer(gateway.signer.user())
    answer = await gateway.http.get("/api/tenants", headers=user)
    assert answer.json() == {"tenants": [], "nextPageToken": ""}
    tenant = identity_pb2.Tenant(id=TENANT, name="Ä <&> \u2028 \U0001f600")
    tenant.created_at.FromJsonString("2026-11-24T06:00:00.123456Z")
    _answers(gateway, "TenantService/GetTenant", tenant)
    answer = await gateway.http.get(f"/api/tenants/{TENANT}", headers=user)
    assert answer.json() == {
        "id": TENANT,
        "name": "Ä <&> \u2028 \U0001f600",
        "reseller": False,
        "createdAt": "2026-11-24T06:00:00.123456Z",
        "code": "",
        "kind": "",
        "etag": "",
        "status": "",
        "archivedBy": "",
        "deletedBy": "",
        "oldCodes": [],
        "language": "",
        "timeZone": "",
    }
    tenant.parent_id = ""
    _answers(gateway, "TenantService/GetTenant", tenant)
    answer = await gateway.http.get(f"/api/tenants/{TENANT}", headers=user)
    assert answer.json()["parentId"] == ""
    _answers(gateway, "AuthService/Logout", identity_pb2.LogoutResponse())
    answer = await gateway.http.post("/auth/logout", headers=user, json={})
    assert (answer.status_code, answer.content) == (200, b"{}")
    assert answer.headers["content-type"] == "application/json"


async def test_a_request_may_use_either_case(gateway: Gateway) -> None:
    """Path, query and body meet in the message; bodies may be empty where nothing is needed."""
    user = bearer(gateway.signer.user())
    for names in ({"parentId": TENANT}, {"parent_id": TENANT}):
        body = {"name": "n", "unknown": {"a": [1]}, **names}
        await gateway.http.post("/api/tenants", headers=user, json=body)
    for raw in (s.body for s in gateway.backends.seen):
        request = identity_pb2.CreateTenantRequest.FromString(raw)
        assert request == identity_pb2.CreateTenantRequest(name="n", parent_id=TENANT)
    gateway.backends.seen.clear()
    await gateway.http.patch(f"/api/tenants/{TENANT}", headers=user, json={"name": "m"})
    await gateway.http.post(f"/api/users/{TENANT}/deactivate", headers=user)
    changed, deactivated = gateway.backends.seen
    update = identity_pb2.UpdateTenantRequest.FromString(changed.body)
    assert update == identity_pb2.UpdateTenantRequest(id=TENANT, name="m")
    assert identity_pb2.DeactivateUserRequest.FromString(deactivated.body).id == TENANT


async def test_any_json_of_a_policy_passes(gateway: Gateway) -> None:
    """A policy's bundle is free JSON and comes back as it was."""
    bundle = {"a": [1.5, None, "x", {"b": []}], "": {}, "\u2028": "\U0001f600", "t": True}

    async def echo(seen: Seen, context: Any) -> Message:
        request = policy_pb2.CreatePolicyRequest.FromString(seen.body)
        return policy_pb2.Policy(bundle=request.bundle)

    gateway.backends.answers["/evergreen.v1.PolicyService/CreatePolicy"] = echo
    answer = await gateway.http.post(
        "/api/policies", headers=bearer(gateway.signer.user()), json={"bundle": bundle}
    )
    assert answer.json()["bundle"] == bundle


@pytest.mark.parametrize("http2", [True, False])
async def test_a_devices_json_is_forwarded_as_it_is(gateway: Gateway, http2: bool) -> None:
    """Byte for byte in both directions, over HTTP/1.1 to the owning context."""
    sent, received = b'{"device_id" :"\\u00e4", "x":1}', b'{"version":"7", "policy" : {}}'

    async def answer(seen: Seen) -> HttpAnswer:
        return HttpAnswer(200, received)

    gateway.backends.http_answers["/api/v1/devices/policy"] = answer
    client = gateway.http if http2 else gateway.http1
    got = await client.post(
        "/api/v1/devices/policy", headers=bearer(gateway.signer.device()), content=sent
    )
    assert (got.status_code, got.content) == (200, received)
    (seen,) = gateway.backends.seen
    assert (seen.context, seen.body, seen.headers[":http-version"]) == ("policy", sent, "1.1")


@pytest.mark.parametrize("http2", [True, False])
async def test_not_modified_has_no_body(gateway: Gateway, http2: bool) -> None:
    """304 passes, and the connection goes on being used."""

    async def answer(seen: Seen) -> HttpAnswer:
        return HttpAnswer(304, b"", {})

    gateway.backends.http_answers["/api/v1/devices/policy"] = answer
    async with gateway.client(http2=http2) as client:
        for _ in range(3):
            got = await client.post(
                "/api/v1/devices/policy", headers=bearer(gateway.signer.device()), json={}
            )
            assert (got.status_code, got.content) == (304, b"")
            assert "content-type" not in got.headers


@pytest.mark.parametrize("http2", [True, False])
async def test_bodies_may_come_in_chunks(gateway: Gateway, http2: bool) -> None:
    """An upload without a length arrives whole, on both kinds of route."""

    async def chunks() -> AsyncIterator[bytes]:
        for part in (b'{"email"', b":", b'"a@b.c"', b"}"):
            yield part
            await asyncio.sleep(0)

    client = gateway.http if http2 else gateway.http1
    await client.post("/auth/login", content=chunks())
    device = bearer(gateway.signer.device())
    await client.post("/api/v1/devices/events", headers=device, content=chunks())
    login, events = gateway.backends.seen
    assert identity_pb2.LoginRequest.FromString(login.body).email == "a@b.c"
    assert events.body == b'{"email":"a@b.c"}'


@pytest.mark.parametrize("http2", [True, False])
async def test_a_download_arrives_part_by_part(gateway: Gateway, http2: bool) -> None:
    """Each part is with the client before the service makes the next one."""
    taken = asyncio.Event()

    async def parts(seen: Seen, context: Any) -> AsyncIterator[Message]:
        await context.send_initial_metadata(
            (("content-disposition", 'attachment; filename="audit.csv"'),)
        )
        for part in (b"time,actor\n", b"1,a\n", b"2,b\n"):
            yield httpbody_pb2.HttpBody(content_type="text/csv", data=part)
            await asyncio.wait_for(taken.wait(), 60)
            taken.clear()

    gateway.backends.streams[EXPORT] = parts
    client = gateway.http if http2 else gateway.http1
    received = []
    async with client.stream(
        "GET", "/api/audit/export?format=csv", headers=bearer(gateway.signer.user())
    ) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/csv"
        assert answer.headers["content-disposition"] == 'attachment; filename="audit.csv"'
        async for part in answer.aiter_raw():
            received.append(part)
            taken.set()
    assert received == [b"time,actor\n", b"1,a\n", b"2,b\n"]


async def _first_part(context: Any) -> Message:
    await context.send_initial_metadata((("trailer", "evergreen-rows"),))
    return httpbody_pb2.HttpBody(content_type="text/csv", data=b"time,actor")


@pytest.mark.parametrize("version", ["1.1", "2"])
async def test_the_number_of_rows_is_a_trailer(
    gateway: Gateway, tmp_path: Path, version: str
) -> None:
    """In both versions of HTTP, behind the file."""

    async def parts(seen: Seen, context: Any) -> AsyncIterator[Message]:
        yield await _first_part(context)
        context.set_trailing_metadata((("evergreen-rows", "2"),))

    gateway.backends.streams[EXPORT] = parts
    headers = tmp_path / "headers"
    curl = await asyncio.create_subprocess_exec(
        *("curl", "-sSk", f"--http{version}", "-D", headers, "--max-time", "60"),
        *("-H", f"Authorization: {bearer(gateway.signer.user())['authorization']}"),
        f"{gateway.url}/api/audit/export?format=csv",
        stdout=asyncio.subprocess.PIPE,
    )
    file, _ = await curl.communicate()
    assert (curl.returncode, file) == (0, b"time,actor")
    head, trailers = headers.read_text().split("\n\n", 1)
    assert "trailer: evergreen-rows" in head
    assert "evergreen-rows: 2" in trailers


@pytest.mark.parametrize("http2", [True, False])
async def test_a_download_that_fails_breaks_off(gateway: Gateway, http2: bool) -> None:
    """No HTTP client takes it for a complete one; gRPC's callers get the status."""
    error = unavailable("the database is not available; try again")

    async def parts(seen: Seen, context: Any) -> AsyncIterator[Message]:
        yield await _first_part(context)
        await abort(context, error, seen.headers, begun=True)

    gateway.backends.streams[EXPORT] = parts
    user = bearer(gateway.signer.user())
    client = gateway.http if http2 else gateway.http1
    for _ in range(2):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/api/audit/export?format=csv", headers=user)
    channel = gateway.open_channel()
    call = audit_pb2_grpc.AuditServiceStub(channel).ExportAuditEntries(
        audit_pb2.ExportAuditEntriesRequest(),
        metadata=(("authorization", user["authorization"]),),
        timeout=60,
    )
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        async for _ in call:
            pass
    await channel.close()
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert failed.value.details() == error.message


async def test_a_large_download_and_a_large_list_pass(gateway: Gateway) -> None:
    """Streamed answers have no limit, and whole ones a generous one."""
    part = bytes(range(256)) * 4096

    async def parts(seen: Seen, context: Any) -> AsyncIterator[Message]:
        for _ in range(24):
            yield httpbody_pb2.HttpBody(content_type="application/octet-stream", data=part)

    gateway.backends.streams[EXPORT] = parts
    user = bearer(gateway.signer.user())
    answer = await gateway.http.get("/api/audit/export", headers=user)
    assert len(answer.content) == 24 * len(part)
    events = telemetry_pb2.ListEventsResponse()
    for number in range(5000):
        events.events.add(id=str(number), message="m" * 500)
    _answers(gateway, "EventService/ListEvents", events)
    answer = await gateway.http.get("/api/events", headers=user)
    assert len(answer.json()["events"]) == 5000


def _frame(message: bytes, flags: int = 0) -> bytes:
    return bytes([flags]) + len(message).to_bytes(4, "big") + message


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("http2", [True, False])
async def test_grpc_web(gateway: Gateway, http2: bool, text: bool) -> None:
    """A call from a browser, binary or as text, gets its answer and its trailers in the body."""
    answer = identity_pb2.ListTenantsResponse(next_page_token="more")
    _answers(gateway, "TenantService/ListTenants", answer)
    kind = "application/grpc-web-text" if text else "application/grpc-web+proto"
    request = _frame(identity_pb2.ListTenantsRequest(page_size=3).SerializeToString())

    async def call(token: str) -> httpx.Response:
        client = gateway.http if http2 else gateway.http1
        return await client.post(
            "/evergreen.v1.TenantService/ListTenants",
            headers={"content-type": kind, "accept": kind, "x-grpc-web": "1", **bearer(token)},
            content=base64.b64encode(request) if text else request,
        )

    got = await call(gateway.signer.user())
    assert got.status_code == 200
    assert got.headers["content-type"].startswith(kind.removesuffix("+proto"))
    frames = got.content
    if text:
        # Each frame is encoded by itself, with its own padding.
        frames = b"".join(map(base64.b64decode, re.findall(rb"[^=]+=*", frames)))
    message = answer.SerializeToString()
    assert frames.startswith(_frame(message))
    assert b"grpc-status:0" in frames[5 + len(message) :]
    (seen,) = gateway.backends.seen
    assert identity_pb2.ListTenantsRequest.FromString(seen.body).page_size == 3
    refused = await call(gateway.signer.device())
    assert refused.headers["grpc-status"] == str(grpc.StatusCode.UNAUTHENTICATED.value[0])


async def test_health_is_answered_for_the_whole(gateway: Gateway) -> None:
    """It is asked for at one place."""
    health: Any = health_pb2_grpc.HealthStub(gateway.channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=60)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("path", ["/readyz", "/openapi.json", "/docs", "/docs/a/b.js?v=1"])
async def test_the_portal_is_identitys(gateway: Gateway, path: str) -> None:
    """Readiness and documentation need no token and pass untouched, also as 503."""

    async def answer(seen: Seen) -> HttpAnswer:
        return HttpAnswer(503, b'{"ready":false}')

    gateway.backends.http_answers["/readyz"] = answer
    got = await gateway.http.get(path)
    assert got.status_code == (503 if path == "/readyz" else 200)
    assert got.json() == ({"ready": False} if path == "/readyz" else {})
    (seen,) = gateway.backends.seen
    assert (seen.context, seen.form, seen.path) == ("identity", "http", path.partition("?")[0])


async def test_healthz_is_the_gateways_own(gateway: Gateway) -> None:
    """It answers without any service."""
    for verb in ("GET", "HEAD"):
        answer = await gateway.http.request(verb, "/healthz")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
    assert json.loads((await gateway.http.get("/healthz")).content) == {"status": "ok"}
    assert gateway.backends.seen == []


async def test_every_answer_has_the_safe_headers_and_no_noise(gateway: Gateway) -> None:
    """A service's, an error's and the gateway's own."""
    user = bearer(gateway.signer.user())
    for path, headers in (
        ("/api/tenants", user),
        ("/api/tenants", {}),
        ("/healthz", {}),
        ("/x", {}),
    ):
        answer = await gateway.http.get(path, headers=headers)
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-request-id"]
        assert not {"server", "x-envoy-upstream-service-time", "x-powered-by"} & set(answer.headers)


@pytest.mark.parametrize(
    ("version", "cipher", "accepted"),
    [
        (ssl.TLSVersion.TLSv1_3, None, True),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-GCM-SHA256", True),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA", False),
        (ssl.TLSVersion.TLSv1_2, "AES128-GCM-SHA256", False),
    ],
)
async def test_tls(
    gateway: Gateway, version: ssl.TLSVersion, cipher: str | None, accepted: bool
) -> None:
    """TLS 1.3, and TLS 1.2 with modern ciphers only; h2 is preferred."""
    context = gateway.certificate.trust()
    context.set_alpn_protocols(["http/1.1", "h2"])
    if cipher:
        context.set_ciphers(cipher)
    context.minimum_version = context.maximum_version = version

    async def connect() -> str | None:
        _, writer = await asyncio.open_connection("localhost", gateway.settings.port, ssl=context)
        protocol: str | None = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        writer.close()
        return protocol

    if accepted:
        assert await connect() == "h2"
    else:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await connect()


async def test_plain_http_is_not_served(gateway: Gateway) -> None:
    """HTTPS only: without it, whatever is asked is 400."""
    async with httpx.AsyncClient() as client:
        for path in ("/healthz", "/auth/login"):
            answer = await client.post(f"http://localhost:{gateway.settings.port}{path}", json={})
            error_of(answer, 400, "INVALID_ARGUMENT")
    assert gateway.backends.seen == []


async def test_pages_of_other_origins_may_not_call(gateway: Gateway) -> None:
    """CORS is off unless it is configured."""
    headers = {"origin": "https://console.example", "access-control-request-method": "GET"}
    answer = await gateway.http.options("/api/tenants", headers=headers)
    error_of(answer, 405, "UNIMPLEMENTED")
    user = bearer(gateway.signer.user())
    answer = await gateway.http.get("/api/tenants", headers={**user, **headers})
    assert not [name for name in answer.headers if name.startswith("access-control")]
