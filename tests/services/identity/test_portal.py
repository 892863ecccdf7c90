"""The portal serves the API's description and readiness, and nothing that is loaded elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from unittest.mock import Mock

import grpc
import httpx
import pytest
from starlette.routing import Mount, Route

from contract.addresses import HTTP
from services.identity.http import identity_app
from services.identity.pages.http import Surroundings
from services.identity.portal import portal_app

ready: dict[str, bool] = {}


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async def readiness() -> dict[str, bool]:
        if not ready:
            raise RuntimeError("nobody said what is ready")
        return ready

    ready.clear()
    ready.update(identity=True, policy=True)
    transport = httpx.ASGITransport(portal_app(readiness), raise_app_exceptions=False)
    headers = {"x-request-id": "r-1"}
    async with httpx.AsyncClient(
        transport=transport, base_url="https://evergreen.test", headers=headers
    ) as found:
        yield found


def check_error(response: httpx.Response, status: int, code: int, name: str) -> None:
    body = response.json()
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert list(body) == ["code", "status", "message", "error", "details", "requestId"]
    assert (body["code"], body["status"], body["requestId"]) == (code, name, "r-1")
    assert body["error"] == body["message"] != ""


async def test_description_is_served_and_cached(client: httpx.AsyncClient) -> None:
    """The document comes as JSON; whoever has it already gets 304."""
    first = await client.get("/openapi.json")
    assert first.status_code == 200
    assert first.json()["openapi"].startswith("3.1")
    etag = first.headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}'):
        again = await client.get("/openapi.json", headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
    changed = await client.get("/openapi.json", headers={"if-none-match": '"other"'})
    assert changed.content == first.content


async def test_the_schema_of_sets_is_served(client: httpx.AsyncClient) -> None:
    """As JSON Schema, to everybody."""
    found = await client.get("/api/policy-schema.json")
    assert found.headers["content-type"] == "application/schema+json"
    assert found.json()["$schema"] == "https://json-schema.org/draft/2020-12/schema"


async def test_docs_page_loads_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    """All that the page names is on this origin and there; its policy forbids the rest."""
    page = await client.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(named) == 5
    for path in named:
        assert path.startswith("/")
        assert (await client.get(path)).status_code == 200, path
    assert "<script>" not in page.text
    assert "http" not in (await client.get("/docs/start.js")).text


@pytest.mark.parametrize(
    "path", ["/openapi.json", "/docs", "/docs/", "/docs/start.js", "/docs/assets/swagger-ui.css"]
)
async def test_head_is_get_without_a_body(client: httpx.AsyncClient, path: str) -> None:
    """HEAD gives the headers that GET gives."""
    get, head = await client.get(path), await client.head(path)
    assert head.status_code == 200
    assert head.headers["content-type"] == get.headers["content-type"]
    assert head.headers["content-length"] == str(len(get.content))


@pytest.mark.parametrize(
    "path", ["/openapi.json", "/docs", "/docs/assets/swagger-ui.css", "/readyz"]
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_other_methods_are_refused(client: httpx.AsyncClient, path: str, method: str) -> None:
    """The refusal has the one shape of errors and says what is allowed."""
    response = await client.request(method, path)
    check_error(response, 405, 12, "UNIMPLEMENTED")
    assert response.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/", "/nothing", "/docs/assets/nothing", "/docs/assets/../x"])
async def test_other_paths_are_not_found(client: httpx.AsyncClient, path: str) -> None:
    """An unknown path is an error of the one shape, below the assets too."""
    check_error(await client.get(path), 404, 5, "NOT_FOUND")


async def test_readiness_names_what_is_missing(client: httpx.AsyncClient) -> None:
    """Ready means all parts are; otherwise the answer names those that are not."""
    answer = await client.get("/readyz")
    assert (answer.status_code, json.loads(answer.content)) == (200, {"status": "ready"})
    ready.update(policy=False, audit=False)
    answer = await client.get("/readyz")
    check_error(answer, 503, 14, "UNAVAILABLE")
    assert answer.json()["message"] == "not ready: audit, policy"
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["cache-control"] == "no-store"


async def test_an_unexpected_failure_tells_nothing(client: httpx.AsyncClient) -> None:
    """What nobody expected is INTERNAL with a plain message."""
    ready.clear()
    answer = await client.get("/readyz")
    check_error(answer, 500, 13, "INTERNAL")
    assert "RuntimeError" not in answer.text


async def test_every_address_has_its_row_and_every_row_an_address() -> None:
    """What identity serves over HTTP is routed by the gateway, with the same methods."""
    async with grpc.aio.insecure_channel("unix:/nowhere") as channel:
        around = Surroundings(
            *(Mock() for _ in range(5)),
            "https://evergreen.test",
            origins=("https://evergreen.test",),
            console=True,
            password_min=15,
        )
        app = identity_app(Mock(), lambda _: channel, Mock(), around, Mock())
    # The gateway fetches the keys itself; browsers get them by the RPC of this path.
    served = {
        (f"{route.path}/" if isinstance(route, Mount) else route.path): (
            {"GET", "HEAD"} if isinstance(route, Mount) else set(route.methods or ())
        )
        for route in app.routes
        if isinstance(route, Route | Mount) and route.path != "/.well-known/jwks.json"
    }
    rows = [row for row in HTTP if row.served_by == "identity" and not row.is_grpc]
    unused = list(rows)
    for path, methods in served.items():
        covering = [row for row in rows if re.fullmatch(row.path.replace("*", ".*"), path)]
        assert methods <= {verb for row in covering for verb in row.verbs}, path
        unused = [row for row in unused if row not in covering]
    assert unused == []
