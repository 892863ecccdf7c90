"""SCIM at the gateway: its tokens alone, its sizes and rate, and errors in its own form."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from deploy.gateway.limits import Limits, Rate
from tests.gateway.harness import Gateway, bearer, running_gateway

_PATH = "/scim/v2/Users"
_TYPE = "application/scim+json"


def _scim_token(gateway: Gateway) -> str:
    return gateway.signer.api_token(knd="scim", role=None)


def _error(answer: httpx.Response, status: int) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["status"]) == (status, str(status))
    assert body["schemas"] == ["urn:ietf:params:scim:api:messages:2.0:Error"]
    assert answer.headers["content-type"] == _TYPE
    return body


async def test_a_source_reaches_identity(gateway: Gateway) -> None:
    """With its claims, its query and its body as they are, and without its token."""
    token = _scim_token(gateway)
    for verb in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        path = f'{_PATH}/x?filter=userName%20eq%20"a%2Fb"'
        content = b'{"a":1,"unknown":2}' if verb in {"POST", "PUT", "PATCH"} else None
        answer = await gateway.http.request(
            verb, path, headers=bearer(token) | {"content-type": _TYPE}, content=content
        )
        assert answer.status_code == 200, answer.text
    assert len(gateway.backends.seen) == 5
    for seen in gateway.backends.seen:
        assert seen.headers["x-evergreen-kind"] == "scim"
        assert "authorization" not in seen.headers
        assert "x-evergreen-role" not in seen.headers
        assert token.removeprefix("evt_") not in str(seen.headers)


@pytest.mark.parametrize("kind", ["nothing", "a session", "its cookie", "a device", "expired"])
async def test_others_are_refused(gateway: Gateway, kind: str) -> None:
    """In SCIM's form, and identity is not asked."""
    signer = gateway.signer
    headers = {
        "nothing": {},
        "a session": bearer(signer.user()),
        "its cookie": {"cookie": f"session={signer.user()}"},
        "a device": bearer(signer.device()),
        "expired": bearer(signer.api_token(lifetime=-120, knd="scim")),
    }[kind]
    _error(await gateway.http.get(_PATH, headers=headers), 401)
    assert gateway.backends.seen == []


async def test_sizes_and_verbs(gateway: Gateway) -> None:
    """256 KiB, and the verbs of the protocol."""
    headers = bearer(_scim_token(gateway)) | {"content-type": _TYPE}
    fits = await gateway.http.post(_PATH, headers=headers, content=b"x" * (256 << 10))
    assert fits.status_code == 200
    large = await gateway.http.post(_PATH, headers=headers, content=b"x" * ((256 << 10) + 1))
    _error(large, 413)
    answer = await gateway.http.request("OPTIONS", _PATH, headers=headers)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST, PUT, PATCH, DELETE")
    for path in ("/scim/v1/Users", "/scim", "/scim/v2"):
        assert (await gateway.http.get(path, headers=headers)).status_code in {401, 404}


async def test_its_rate_is_its_own(limited: Gateway) -> None:
    """Per token; users' calls and those of another source are not counted."""
    headers = bearer(_scim_token(limited))
    answers = [await limited.http.get(_PATH, headers=headers) for _ in range(4)]
    assert [one.status_code for one in answers] == [200, 200, 200, 429]
    _error(answers[-1], 429)
    assert 2 <= int(answers[-1].headers["retry-after"]) <= 8
    other = bearer(
        limited.signer.api_token(knd="scim", sub="0" * 8 + "-0000-4000-8000-" + "1" * 12)
    )
    assert (await limited.http.get(_PATH, headers=other)).status_code == 200
    assert (await limited.http.get("/api/users", headers=headers)).status_code != 429


@pytest.fixture
async def limited() -> AsyncIterator[Gateway]:
    limits = Limits(scim=Rate(burst=3, per_second=1))
    async with running_gateway(limits=limits) as found:
        yield found
