"""`GET /api/version`: anybody may ask, and only a user's token is told to the service."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from deploy.gateway import Limits, Rate
from servicekit.call import CLAIMS, H_ROLE, H_SUBJECT
from tests.gateway.conftest import PLENTY
from tests.gateway.harness import Gateway, bearer, error_of, running_gateway
from tests.gateway.tokens import DAY

PATH = "/api/version"


async def _told(gateway: Gateway, headers: Mapping[str, str]) -> Mapping[str, str]:
    """The headers that identity gets."""
    answer = await gateway.http.get(PATH, headers=headers)
    assert answer.status_code == 200, answer.text
    (seen,) = gateway.backends.seen
    assert (seen.context, seen.path, seen.form) == ("identity", PATH, "http")
    assert not {"authorization", "cookie"} & seen.headers.keys()
    return seen.headers


async def test_nobody_needs_a_token(gateway: Gateway) -> None:
    """Identity hears of nobody, whatever the caller says about itself."""
    headers = await _told(gateway, {H_SUBJECT: "somebody", H_ROLE: "Owner", "cookie": "theme=dark"})
    assert not {name for name in CLAIMS.values() if name in headers}


@pytest.mark.parametrize("form", ["Bearer {}", "bearer  {}", "cookie"])
async def test_a_user_is_told(gateway: Gateway, form: str) -> None:
    """With a bearer token, in any spelling of its scheme, or with the session's cookie."""
    token = gateway.signer.user(role="Auditor")
    headers = (
        {"cookie": f"session={token}"}
        if form == "cookie"
        else {"authorization": form.format(token)}
    )
    told = await _told(gateway, headers)
    assert told[H_ROLE] == "Auditor"
    assert told[H_SUBJECT]


async def test_other_tokens_are_refused(gateway: Gateway) -> None:
    """A wrong one is not the same as none: its owner learns why the release is not there."""
    signer = gateway.signer
    for token in ("abc.def.ghi", signer.device(), signer.user(lifetime=-DAY)):
        answer = await gateway.http.get(PATH, headers=bearer(token))
        error_of(answer, 401, "UNAUTHENTICATED")
    answer = await gateway.http.post(PATH, json={})
    error_of(answer, 405, "UNIMPLEMENTED")
    assert answer.headers["allow"] == "GET, HEAD"
    assert gateway.backends.seen == []


async def test_who_asks_for_it_takes_no_login_from_anybody() -> None:
    """Its rate is the one of what is open to all."""
    limits = Limits(open=Rate(burst=3, per_second=1), login=PLENTY)
    async with running_gateway(limits=limits) as gateway:
        asked = [(await gateway.http.get(PATH)).status_code for _ in range(10)]
        assert 429 in asked
        for path in ("/auth/login", "/auth/refresh", "/auth/accept-invitation"):
            answer = await gateway.http.post(path, json={})
            assert answer.status_code == 200, (path, answer.text)
