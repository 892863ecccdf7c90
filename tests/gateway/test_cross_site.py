"""What a browser sends by itself is not enough to change anything."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator

import grpc
import httpx
import pytest

from deploy.gateway import Limits
from servicekit.http.origins import origin_of
from tests.gateway.conftest import PLENTY
from tests.gateway.harness import Gateway, bearer, error_of, running_gateway

PUBLIC = "https://evergreen.school.example"
FRIEND = "https://console.school.example:8443"
ORIGINS = {
    "none": None,
    "same": PUBLIC,
    "sibling": "https://students.school.example",
    "foreign": "https://evil.example",
    "allowed": FRIEND,
}
SITES = [None, "same-origin", "same-site", "cross-site", "none"]
TYPES = {
    "application/json": True,
    "text/plain": False,
    "application/x-www-form-urlencoded": False,
    "multipart/form-data; boundary=x": False,
}
CALLS = [
    ("GET", "/api/policies"),
    ("POST", "/api/policies"),
    ("PATCH", "/api/policies/x"),
    ("DELETE", "/api/policies/x"),
]


@pytest.fixture(scope="module")
async def strict_gateway() -> AsyncIterator[Gateway]:
    """One that knows its public address and a friend's."""
    async with running_gateway(
        public_url="https://Evergreen.School.Example:443/",
        cors_origins=(FRIEND,),
        limits=Limits(user=PLENTY, login=PLENTY, open=PLENTY, other=PLENTY),
    ) as gateway:
        yield gateway


@pytest.fixture
def gateway(strict_gateway: Gateway) -> Iterator[Gateway]:
    """Instead of the package's."""
    strict_gateway.backends.reset()
    yield strict_gateway


@pytest.mark.parametrize(("verb", "path"), CALLS)
@pytest.mark.parametrize("credential", ["cookie", "bearer", "both"])
async def test_the_cookie_changes_things_for_our_own_pages_only(
    gateway: Gateway, credential: str, verb: str, path: str
) -> None:
    """Each origin with each Sec-Fetch-Site and each content type; a bearer token needs nothing."""
    token = gateway.signer.user()
    carried: dict[str, str] = {}
    if credential != "bearer":
        carried["cookie"] = f"theme=dark; session={token}; session_refresh=x"
    if credential != "cookie":
        carried |= bearer(token)

    async def call(origin: str, site: str | None, kind: str) -> httpx.Response:
        headers = {**carried, "content-type": kind}
        if value := ORIGINS[origin]:
            headers["origin"] = value
        if site:
            headers["sec-fetch-site"] = site
        content = None if verb == "GET" else b"{}"
        return await gateway.http1.request(verb, path, headers=headers, content=content)

    cases = list(itertools.product(ORIGINS, SITES, TYPES))
    answers = await asyncio.gather(*itertools.starmap(call, cases))
    taken = 0
    for (origin, site, kind), answer in zip(cases, answers, strict=True):
        ours = site == "same-origin" or origin in {"same", "allowed"}
        case = (origin, site, kind)
        if verb == "GET" or credential != "cookie" or (ours and TYPES[kind]):
            assert answer.status_code == 200, case
            taken += 1
        else:
            body = error_of(answer, 403, "PERMISSION_DENIED")
            reason = "CONTENT_TYPE_NOT_JSON" if ours else "CROSS_SITE_REQUEST"
            assert body["details"][0]["reason"] == reason, case
    assert len(gateway.backends.seen) == taken


@pytest.mark.parametrize("http2", [True, False])
async def test_a_call_without_a_body_needs_no_content_type(gateway: Gateway, http2: bool) -> None:
    """As a browser sends a DELETE; with a body, and from elsewhere, it is refused as ever."""
    client = gateway.http if http2 else gateway.http1
    cookie = {"cookie": f"session={gateway.signer.user()}"}
    ours = cookie | {"sec-fetch-site": "same-origin"}
    for verb, path in CALLS[1:]:
        assert (await client.request(verb, path, headers=ours)).status_code == 200
        error_of(await client.request(verb, path, headers=cookie), 403, "PERMISSION_DENIED")
        answer = await gateway.http1.request(verb, path, headers=ours, content=b"{}")
        error_of(answer, 403, "PERMISSION_DENIED")
        if verb != "DELETE":
            answer = await gateway.http1.request(verb, path, headers=ours, content=_chunks())
            error_of(answer, 403, "PERMISSION_DENIED")


async def _chunks() -> AsyncIterator[bytes]:
    yield b"{}"


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "http://evergreen.school.example",
        f"{PUBLIC}:8443",
        f"{PUBLIC}.evil.example",
        f"{PUBLIC}, https://evil.example",
        f"{PUBLIC}/",
    ],
)
async def test_an_origin_that_looks_like_ours_is_not(gateway: Gateway, origin: str) -> None:
    """It is compared as a whole."""
    headers = {"cookie": f"session={gateway.signer.user()}", "origin": origin}
    error_of(
        await gateway.http1.post("/api/policies", headers=headers, json={}),
        403,
        "PERMISSION_DENIED",
    )


@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        ("Application/JSON; charset=utf-8", True),
        ("application/json;charset=utf-8", True),
        ("text/plain; application/json", False),
        ("application/jsonp", False),
        ("application/json, text/plain", False),
        ("", False),
    ],
)
async def test_json_is_known_by_its_type(gateway: Gateway, kind: str, taken: bool) -> None:
    """Parameters and case do not matter; what only looks like it is none."""
    headers = {"cookie": f"session={gateway.signer.user()}", "origin": PUBLIC, "content-type": kind}
    answer = await gateway.http1.post("/api/policies", headers=headers, content=b"{}")
    assert answer.status_code == (200 if taken else 403), answer.text


@pytest.mark.parametrize("kind", ["application/grpc", "application/grpc-web+proto"])
async def test_grpc_with_the_cookie_is_no_json(gateway: Gateway, kind: str) -> None:
    """Its content types count as what they are, from pages of ours too."""
    headers = {
        "cookie": f"session={gateway.signer.user()}",
        "content-type": kind,
        "te": "trailers",
        "origin": PUBLIC,
        "sec-fetch-site": "same-origin",
    }
    rpc = "/evergreen.v1.PolicyService/CreatePolicy"
    answer = await gateway.http.post(rpc, headers=headers, content=b"\0\0\0\0\0")
    assert answer.headers["grpc-status"] == str(grpc.StatusCode.PERMISSION_DENIED.value[0])
    assert "application/json" in answer.headers["grpc-message"]
    assert gateway.backends.seen == []
    del headers["cookie"]
    headers |= bearer(gateway.signer.user())
    answer = await gateway.http.post(rpc, headers=headers, content=b"\0\0\0\0\0")
    assert len(gateway.backends.seen) == 1


async def test_a_disguised_rpc_is_still_guarded(gateway: Gateway) -> None:
    """Neither another spelling of the path nor a header that the transcoder sets helps."""
    cookie = {"cookie": f"session={gateway.signer.user()}", "content-type": "text/plain"}
    disguises: list[dict[str, str]] = [
        {"x-envoy-original-path": "/api/policies"},
        {"x-http-method-override": "GET"},
        {"authorization": "Basic Ym9iOmJvYg=="},
        {"authorization": "bearer"},
        {"authorization": "xbearer y"},
        {"cookie": f'a=b;session="{gateway.signer.user()}"'},
        {"cookie": f"a=b;  session={gateway.signer.user()}"},
    ]
    for disguise in disguises:
        for path in ("/api/policies", "/api//policies", "/api/x/../policies", "/api/p%6flicies"):
            answer = await gateway.http1.post(path, headers=cookie | disguise, content=b"{}")
            error_of(answer, 403, "PERMISSION_DENIED")
    assert gateway.backends.seen == []


async def test_programs_log_in_without_an_origin_and_browsers_elsewhere_do_not(
    gateway: Gateway,
) -> None:
    """`POST /auth/login` sets no cookie; what is below `/api/auth` does."""
    assert (await gateway.http.post("/auth/login", json={})).status_code == 200
    for headers in ({}, {"origin": "https://evil.example"}, bearer(gateway.signer.user())):
        answer = await gateway.http1.post("/api/auth/login", headers=headers, json={})
        body = error_of(answer, 403, "PERMISSION_DENIED")
        assert body["details"][0]["reason"] == "CROSS_SITE_REQUEST"
    form = {"sec-fetch-site": "same-origin", "content-type": "text/plain"}
    answer = await gateway.http1.post("/api/auth/login", headers=form, content=b"{}")
    assert error_of(answer, 403, "PERMISSION_DENIED")["details"][0]["reason"] == (
        "CONTENT_TYPE_NOT_JSON"
    )


async def test_a_bearer_token_counts_and_the_cookie_beside_it_does_not(gateway: Gateway) -> None:
    """A cookie of whatever kind neither helps nor harms a program that has a token."""
    good, lapsed = gateway.signer.user(), gateway.signer.user(lifetime=-3600)
    for cookie in (lapsed, gateway.signer.device(), "garbage"):
        headers = bearer(good) | {"cookie": f"session={cookie}"}
        assert (await gateway.http.get("/api/policies", headers=headers)).status_code == 200
    headers = bearer(lapsed) | {"cookie": f"session={good}"}
    error_of(await gateway.http.get("/api/policies", headers=headers), 401, "UNAUTHENTICATED")
    # A proxy in front may ask for a password of its own.
    headers = {"authorization": "Basic Ym9iOmJvYg==", "cookie": f"session={good}"}
    assert (await gateway.http.get("/api/policies", headers=headers)).status_code == 200


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "bEaReR", "Bearer  ", "bearer   "])
async def test_the_schemes_case_does_not_matter(gateway: Gateway, scheme: str) -> None:
    """RFC 7235, for users and devices, over JSON and gRPC."""
    user = {"authorization": f"{scheme} {gateway.signer.user()}"}
    device = {"authorization": f"{scheme} {gateway.signer.device()}"}
    for client in (gateway.http, gateway.http1):
        assert (await client.post("/api/policies", headers=user, json={})).status_code == 200
        answer = await client.post("/api/v1/devices/policy", headers=device, json={})
        assert answer.status_code == 200
        error_of(await client.get("/api/policies", headers=device), 401, "UNAUTHENTICATED")
    await gateway.grpc("/evergreen.v1.PolicyService/ListPolicies", headers=user)
    await gateway.grpc("/evergreen.v1.DeviceService/ReportState", headers=device)
    assert all("authorization" not in seen.headers for seen in gateway.backends.seen)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://localhost", "https://localhost"),
        ("https://localhost/", "https://localhost"),
        ("HTTPS://Evergreen.Example:443", "https://evergreen.example"),
        ("https://evergreen.example:8443/", "https://evergreen.example:8443"),
        ("http://evergreen.example:80", "http://evergreen.example"),
        ("https://[2001:DB8::1]:8443", "https://[2001:db8::1]:8443"),
        ("https://schule-müller.example", "https://xn--schule-mller-klb.example"),
    ],
)
def test_an_address_is_known_as_browsers_write_it(url: str, origin: str) -> None:
    """Case, default ports and slashes make no difference."""
    assert origin_of(url) == origin


@pytest.mark.parametrize("url", ["evergreen.example", "ftp://evergreen.example", "https://"])
def test_what_is_no_address_is_said(url: str) -> None:
    """The operator learns which one."""
    with pytest.raises(ValueError, match="not http"):
        origin_of(url)
