"""The web console under the same origin as the API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.gateway.harness import Gateway, bearer, error_of, running_gateway
from tests.support.stack import free_port

OURS = {"sec-fetch-site": "same-origin", "content-type": "application/json"}
PAGES = [
    *(
        ("GET", path)
        for path in (
            "/login?_rsc=1abc",
            "/auth/accept",
            "/auth/forgot",
            "/auth/account",
            "/auth/invitations",
            "/auth/signed-in",
            "/auth/assets/pages.css",
            "/auth/forms/login",
            "/api/auth/session",
        )
    ),
    *(
        ("POST", path)
        for path in (
            "/auth/forms/login",
            "/auth/forms/accept",
            "/auth/forms/logout",
            "/auth/forms/invite",
            "/api/auth/login",
            "/api/auth/refresh",
            "/api/auth/logout",
        )
    ),
]


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
        for path in ("/", "/dashboard/devices?x=1", "/_next/a.js", "/api/auth/other"):
            answer = await gateway.http.get(path, headers={**cookie, "accept": "text/html"})
            assert (answer.status_code, answer.text) == (200, path)
        assert all("cookie: session=" in head for head in heads)
        assert not any("x-evergreen-" in head for head in heads)
        before = len(heads)
        assert (await gateway.http.get("/api/policies", headers=cookie)).status_code == 200
        asked = await gateway.http.get("/api/policies", headers=bearer(gateway.signer.user()))
        assert asked.status_code == 200
        assert (await gateway.http.get("/loginx")).status_code == 404
        assert not any("cookie" in seen.headers for seen in gateway.backends.seen)
        for verb, path in PAGES:
            answer = await gateway.http.request(verb, path, headers={**cookie, **OURS})
            assert answer.status_code == 200, path
        assert len(heads) == before


@pytest.mark.parametrize(("verb", "path"), PAGES)
async def test_pages_and_the_consoles_session_are_identitys(
    gateway: Gateway, verb: str, path: str
) -> None:
    """With or without a console; the cookies arrive, a bearer token and others' headers do not."""
    headers = {
        **OURS,
        **bearer(gateway.signer.user()),
        "cookie": "session=x; session_refresh=y",
        "x-evergreen-role": "Owner",
    }
    answer = await gateway.http.request(verb, path, headers=headers)
    assert answer.status_code == 200
    (seen,) = gateway.backends.seen
    assert (seen.context, seen.form, seen.path) == ("identity", "http", path.partition("?")[0])
    assert seen.headers["cookie"] == "session=x; session_refresh=y"
    assert "authorization" not in seen.headers
    assert not any(name.startswith("x-evergreen-") for name in seen.headers)


async def test_pages_take_no_other_method_and_no_large_body(gateway: Gateway) -> None:
    """What no page of ours sends ends at the gateway."""
    for verb, path in PAGES:
        if "/forms/" not in path:
            other = "POST" if verb == "GET" else "GET"
            answer = await gateway.http.request(other, path, headers=OURS)
            error_of(answer, 405, "UNIMPLEMENTED")
    large = b"a" * (65 * 1024)
    for path in ("/auth/forms/login", "/api/auth/login"):
        answer = await gateway.http.post(path, headers=OURS, content=large)
        error_of(answer, 413, "INVALID_ARGUMENT")
    assert gateway.backends.seen == []


async def test_a_form_of_another_site_arrives_for_a_page_to_say_so(gateway: Gateway) -> None:
    """A person is to read it on a page; identity looks at where a form comes from."""
    headers = {
        "cookie": "session=x",
        "content-type": "application/x-www-form-urlencoded",
        "sec-fetch-site": "cross-site",
        "origin": "https://evil.example",
    }
    answer = await gateway.http.post("/auth/forms/login", headers=headers, content=b"a=b")
    assert answer.status_code == 200
    assert gateway.backends.seen[0].headers["sec-fetch-site"] == "cross-site"
    answer = await gateway.http.post("/api/auth/login", headers=headers, content=b"a=b")
    error_of(answer, 403, "PERMISSION_DENIED")


async def test_a_browser_without_a_console_comes_to_the_login(gateway: Gateway) -> None:
    """From the bare address; programs and other methods are told that nothing is there."""
    html = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    for verb in ("GET", "HEAD"):
        for client in (gateway.http, gateway.http1):
            answer = await client.request(verb, "/?x=1", headers=html)
            assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    error_of(await gateway.http.get("/"), 404, "NOT_FOUND")
    error_of(await gateway.http.post("/", headers=html), 404, "NOT_FOUND")
    assert gateway.backends.seen == []


async def test_a_logout_without_a_token_has_nothing_to_end(gateway: Gateway) -> None:
    """200 `{}`, as the console's server asks; with a token it is a call as any other."""
    for headers in ({}, {"cookie": "theme=dark"}):
        answer = await gateway.http.post("/auth/logout", headers=headers, json={})
        assert (answer.status_code, answer.json()) == (200, {})
        assert answer.headers["content-type"] == "application/json"
    assert gateway.backends.seen == []
    error_of(await gateway.http.get("/auth/logout"), 405, "UNIMPLEMENTED")
    wrong = {"authorization": "Bearer x"}
    error_of(
        await gateway.http.post("/auth/logout", headers=wrong, json={}), 401, "UNAUTHENTICATED"
    )
    cookie = {"cookie": "session=x", "sec-fetch-site": "same-origin"}
    error_of(
        await gateway.http.post("/auth/logout", headers=cookie, json={}), 401, "UNAUTHENTICATED"
    )


async def test_a_console_that_is_away_is_told_in_the_one_shape() -> None:
    """503 as JSON, and the API goes on."""
    async with running_gateway(console=f"http://127.0.0.1:{free_port()}") as gateway:
        answer = await gateway.http.get("/dashboard")
        assert answer.status_code == 503
        assert answer.json()["status"] == "UNAVAILABLE"
        headers = bearer(gateway.signer.user())
        assert (await gateway.http.get("/api/policies", headers=headers)).status_code == 200
