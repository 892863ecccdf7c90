"""What a client says about itself is not believed, however it is spelled."""

from __future__ import annotations

import asyncio

import pytest

from servicekit import call
from tests.gateway.harness import Gateway, bearer
from tests.gateway.tokens import DEVICE

SPOOFED = {
    call.H_KIND: "user",
    call.H_SUBJECT: "01930000-0000-7000-8000-00000000dead",
    call.H_TENANT: "01930000-0000-7000-8000-00000000dead",
    call.H_ROLE: "Owner",
    call.H_EMAIL: "root@example.org",
    call.H_SESSION: "01930000-0000-7000-8000-00000000dead",
    call.H_TOKEN_VERSION: "99",
    call.H_TOKEN_ISSUED: "1",
    call.H_TOKEN_EXPIRES: "9",
    call.H_SERVICE: "policy",
    call.H_REQUEST_ID: "spoofed",
    call.H_TIMEOUT: "spoofed",
    call.H_SOURCE: "203.0.113.9",
    "X-Evergreen-Anything": "spoofed",
    "x_evergreen_kind": "user",
    "x-envoy-original-path": "/api/spoofed",
    "x-envoy-upstream-rq-timeout-ms": "1",
    "x-envoy-retry-on": "5xx",
    "x-envoy-force-trace": "1",
    "x-envoy-internal": "true",
    "x-forwarded-for": "203.0.113.9",
    "x-forwarded-proto": "http",
    "x-forwarded-host": "evil.example",
    "x-real-ip": "203.0.113.9",
    "forwarded": "for=203.0.113.9",
}

ROUTES = [
    ("POST", "/auth/login", None),
    ("GET", "/api/v1/policy-keys", None),
    ("POST", "/api/v1/devices/enroll", None),
    ("GET", "/readyz", None),
    ("GET", "/api/policies", "user"),
    ("GET", f"/api/devices/{DEVICE}", "user"),
    ("POST", "/api/v1/devices/policy", "device"),
    ("POST", "/api/v1/devices/events", "device"),
]


@pytest.mark.parametrize(("verb", "path", "kind"), ROUTES, ids=str)
async def test_spoofed_headers_go_nowhere(
    gateway: Gateway, verb: str, path: str, kind: str | None
) -> None:
    """No header that a service believes reaches it from a client, on public routes neither."""
    token = {"user": gateway.signer.user(), "device": gateway.signer.device(), None: None}[kind]
    plain = bearer(token) if token else {}
    body = b"{}" if verb == "POST" else None
    honest = await gateway.http1.request(verb, path, headers=plain, content=body)
    spoofed = await gateway.http1.request(verb, path, headers=plain | SPOOFED, content=body)
    assert honest.status_code == spoofed.status_code == 200
    first, second = gateway.backends.seen
    unique = {call.H_REQUEST_ID}
    assert {k: v for k, v in first.headers.items() if k not in unique} == {
        k: v for k, v in second.headers.items() if k not in unique
    }
    assert first.headers[call.H_REQUEST_ID] != second.headers[call.H_REQUEST_ID] != "spoofed"
    assert second.headers[call.H_SOURCE] == "127.0.0.1"
    assert second.headers["x-forwarded-proto"] == "https"


async def test_spoofed_metadata_of_native_grpc_goes_nowhere(gateway: Gateway) -> None:
    """The same holds for gRPC metadata."""
    await gateway.grpc("/evergreen.v1.AuthService/Login", headers=SPOOFED)
    await gateway.grpc(
        "/evergreen.v1.PolicyService/ListPolicies", token=gateway.signer.user(), headers=SPOOFED
    )
    public, private = gateway.backends.seen
    ours = {name: value for name, value in public.headers.items() if "x-evergreen" in name}
    assert ours == {call.H_TIMEOUT: "45"}
    assert private.headers[call.H_EMAIL] == "owner@example.org"
    for seen in (public, private):
        assert seen.headers[call.H_SOURCE] == "127.0.0.1"
        assert "spoofed" not in str(seen.headers)
        assert "203.0.113.9" not in str(seen.headers)


async def test_services_are_told_how_long_the_gateway_waits(gateway: Gateway) -> None:
    """Not with polls, which stay as cheap as they are, nor with downloads, which have no limit."""
    user, device = bearer(gateway.signer.user()), bearer(gateway.signer.device())
    await gateway.http.get("/api/policies", headers=user)
    await gateway.http.get("/api/audit/export", headers=user)
    await gateway.http.post("/api/v1/devices/events", headers=device, content=b"{}")
    await gateway.http.post("/api/v1/devices/policy", headers=device, content=b"{}")
    told = [seen.headers.get(call.H_TIMEOUT) for seen in gateway.backends.seen]
    assert told == ["15", None, "60", None]


async def _raw(gateway: Gateway, verb: str, target: str, headers: dict[str, str]) -> int:
    """Sends a target exactly as it is written and answers the status."""
    reader, writer = await asyncio.open_connection(
        "localhost", gateway.settings.port, ssl=gateway.certificate.trust()
    )
    lines = [f"{verb} {target} HTTP/1.1", "host: localhost", "connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write(("\r\n".join(lines) + "\r\ncontent-length: 2\r\n\r\n{}").encode("latin-1"))
    status_line = await reader.readline()
    writer.close()
    return int(status_line.split(b" ", 2)[1])


SPELLINGS = [
    "/api/v1/devices/state",
    "/api/v1/de%76ices/state",
    "/api/v1/devices/st%61te",
    "/%61pi/v1/devices/state",
    "/api/v1/devices/%73%74%61%74%65",
    "/api/v1//devices/state",
    "//api/v1/devices/state",
    "/api/v1/devices/state/",
    "/api/v1/devices/state//",
    "/api/v1/devices/./state",
    "/api/v1/devices/x/../state",
    "/api/v1/devices/enroll/../state",
    "/auth/login/../../api/v1/devices/state",
    "/api/v1/devices/%2e%2e/devices/state",
    "/api/v1/devices%2fstate",
    "/api/v1/devices%5cstate",
    "/api/v1/devices\\state",
    "/api/v1/devices/STATE",
    "/API/v1/devices/state",
    "/api/v1/devices/state;x=y",
    "/api/v1/devices/state%00",
    "/api/v1/devices/state%20",
    "/api/v1/devices/state%0a",
    "/api/v1/devices/state?x=/auth/login",
    "/api/v1/devices/state#/auth/login",
    "/api/v1/devices/%73tate/../state",
    "/healthz/../api/v1/devices/state",
    "/healthz/..%2fapi/v1/devices/state",
    "/docs/../api/v1/devices/state",
    "/docs/%2e%2e/api/v1/devices/state",
    "/api/policies",
    "/api/p%6flicies",
    "/api//policies",
    "/api/policies/",
    "/api/./policies",
    "/api/x/../policies",
    "/auth/login/../../api/policies",
    "/.well-known/../api/policies",
    "/api/v1/policy-keys/../../policies",
    "/api%2fpolicies",
    "/api/policies%2f",
    "/api/policies;a=b",
    "/API/policies",
    "/api/policies%00",
    "https://localhost/api/policies",
    "https://evil.example/api/policies",
    "http://localhost/api/policies",
    "/evergreen.v1.PolicyService/ListPolicies",
    "/evergreen.v1.PolicyService//ListPolicies",
    "/evergreen.v1.PolicyService/ListPolicies/",
    "/evergreen.v1.Policy%53ervice/ListPolicies",
    "/evergreen.v1.AuthService/../evergreen.v1.PolicyService/ListPolicies",
    "/evergreen.v1.PolicyInternalService/GetDevicePolicy",
    "/evergreen.v1.PolicyInternal%53ervice/GetDevicePolicy",
    "/evergreen.v1.IdentityInternalService/IssueDeviceToken",
]
DISGUISES: list[dict[str, str]] = [
    {},
    {"content-type": "application/grpc"},
    {"content-type": "application/grpc-web+proto"},
    {"x-http-method-override": "GET"},
    {"x-http-method-override": "DELETE", "x-method-override": "DELETE"},
    {"x-original-url": "/auth/login", "x-rewrite-url": "/auth/login"},
]


@pytest.mark.parametrize("target", SPELLINGS)
async def test_no_spelling_of_a_path_avoids_the_token(gateway: Gateway, target: str) -> None:
    """Without a token nothing behind a token is reached, whatever the method or disguise."""
    disguised = [(verb, disguise) for verb in ("GET", "POST") for disguise in DISGUISES]
    others: list[tuple[str, dict[str, str]]] = [
        (verb, {}) for verb in ("PATCH", "DELETE", "PUT", "OPTIONS", "HEAD", "get")
    ]
    statuses = await asyncio.gather(
        *(_raw(gateway, verb, target, disguise) for verb, disguise in (*disguised, *others))
    )
    assert max(statuses) < 500
    assert gateway.backends.seen == []


async def test_a_spelled_path_still_gets_the_right_rule(gateway: Gateway) -> None:
    """A normalised path is the same route: with the right token it is served, once."""
    headers = bearer(gateway.signer.device()) | {"content-type": "application/json"}
    for target in ("/api/v1/de%76ices/state", "/api/v1//devices/x/../state"):
        assert await _raw(gateway, "POST", target, headers) == 200
    assert [s.path for s in gateway.backends.seen] == ["/api/v1/devices/state"] * 2


@pytest.mark.parametrize(("verb", "path", "kind"), ROUTES, ids=str)
async def test_a_header_that_grpc_cannot_carry_fails_no_call(
    gateway: Gateway, verb: str, path: str, kind: str | None
) -> None:
    """HTTP allows more characters in names than gRPC, and any value in a header whose name ends in
    -bin; gRPC answers INTERNAL to them."""
    token = {"user": gateway.signer.user(), "device": gateway.signer.device(), None: None}[kind]
    plain = bearer(token) if token else {}
    odd = {"!name": "a", "it's": "b", "a%b": "c", "grpc-trace-bin": "!", "x-bin": "!"}
    kept = {"x-plain.name-1": "kept"}
    body = b"{}" if verb == "POST" else None
    answer = await gateway.http.request(verb, path, headers=plain | odd | kept, content=body)
    assert answer.status_code == 200
    for seen in gateway.backends.seen:
        assert not set(odd) & set(seen.headers)
        assert seen.headers["x-plain.name-1"] == "kept"


@pytest.mark.parametrize(("verb", "path", "kind"), ROUTES, ids=str)
async def test_how_a_grpc_call_is_written_means_nothing_in_json(
    gateway: Gateway, verb: str, path: str, kind: str | None
) -> None:
    """A call in JSON has the time of its route and no compression, whatever such headers say."""
    token = {"user": gateway.signer.user(), "device": gateway.signer.device(), None: None}[kind]
    plain = bearer(token) if token else {}
    body = b"{}" if verb == "POST" else None
    for odd in (
        {"grpc-timeout": "1n"},
        {"grpc-timeout": "soon"},
        {"grpc-encoding": "br"},
        {"grpc-accept-encoding": "br"},
    ):
        answer = await gateway.http.request(verb, path, headers=plain | odd, content=body)
        assert answer.status_code == 200, (odd, answer.text)
