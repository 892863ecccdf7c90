"""API tokens at the gateway: no service is asked, and no kind of token is read as another."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from deploy.gateway.limits import Limits, Rate
from tests.gateway.harness import Gateway, bearer, error_of, eventually, running_gateway
from tests.gateway.test_tokens import USERS_ROUTE, USERS_RPC, _altered
from tests.gateway.tokens import API_TOKEN, DEVICE, SESSION, TENANT, USER, Signer

CLAIMS = {
    "x-evergreen-kind": "token",
    "x-evergreen-subject": API_TOKEN,
    "x-evergreen-token-owner": USER,
    "x-evergreen-token-who": "owner@example.org",
    "x-evergreen-token-name": "Nightly%20report",
    "x-evergreen-token-scopes": "devices:read policies:write",
    "x-evergreen-tenant": TENANT,
    "x-evergreen-role": "Admin",
    "x-evergreen-token-issued": "1790000000",
    "x-evergreen-token-expires": "4000000000",
}


@pytest.mark.parametrize("form", ["json", "grpc", "other spelling", "stale cookie"])
async def test_services_get_the_claims_and_not_the_token(gateway: Gateway, form: str) -> None:
    """Whatever else the request carries."""
    token = gateway.signer.api_token(iat=1_790_000_000, exp=4_000_000_000)
    headers = {
        "json": bearer(token),
        "other spelling": {"authorization": f"bearer  {token}"},
        "stale cookie": bearer(token) | {"cookie": f"session={gateway.signer.user(lifetime=-120)}"},
    }
    if form == "grpc":
        await gateway.grpc(USERS_RPC, token=token)
    else:
        answer = await gateway.http.get(USERS_ROUTE, headers=headers[form])
        assert answer.status_code == 200
    (seen,) = gateway.backends.seen
    ours = {name: value for name, value in seen.headers.items() if "x-evergreen" in name}
    assert ours == {**CLAIMS, "x-evergreen-timeout": "15"}
    assert token.removeprefix("evt_") not in str(seen.headers)


_BAD: dict[str, Callable[[Signer], str]] = {
    "without its prefix": lambda s: s.api_token().removeprefix("evt_"),
    "a session with the prefix": lambda s: f"evt_{s.user()}",
    "a device's with the prefix": lambda s: f"evt_{s.device()}",
    "a session of the tokens' issuer": lambda s: s.user(iss="evergreen:tokens"),
    "of the users' issuer": lambda s: s.api_token(iss="evergreen:users"),
    "for others": lambda s: s.api_token(aud="evergreen:devices"),
    "altered": lambda s: "evt_" + _altered(s.api_token().removeprefix("evt_")),
    "of a stranger": lambda s: Signer(s.kid).api_token(),
    "expired": lambda s: s.api_token(lifetime=-120),
    "without an end": lambda s: s.api_token(exp=None),
    "twice the prefix": lambda s: f"evt_{s.api_token()}",
    "the prefix alone": lambda s: "evt_",
}


@pytest.mark.parametrize("kind", _BAD)
async def test_bad_tokens_are_refused(gateway: Gateway, kind: str) -> None:
    """401 over JSON and gRPC, and nothing reaches a service."""
    token = _BAD[kind](gateway.signer)
    error_of(await gateway.http.get(USERS_ROUTE, headers=bearer(token)), 401, "UNAUTHENTICATED")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await gateway.grpc(USERS_RPC, token=token)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert gateway.backends.seen == []


async def test_a_token_stands_in_the_header_alone(gateway: Gateway) -> None:
    """No browser is to have one: neither in the cookie nor in an address."""
    token = gateway.signer.api_token()
    for text in (token, token.removeprefix("evt_")):
        cookie = {"cookie": f"session={text}"}
        error_of(await gateway.http.get(USERS_ROUTE, headers=cookie), 401, "UNAUTHENTICATED")
    query = {"access_token": token}
    error_of(await gateway.http.get(USERS_ROUTE, params=query), 401, "UNAUTHENTICATED")


async def test_a_token_is_no_devices(gateway: Gateway) -> None:
    """On devices' routes it is as none."""
    answer = await gateway.http.post(
        "/api/v1/devices/state", headers=bearer(gateway.signer.api_token()), json={}
    )
    error_of(answer, 401, "UNAUTHENTICATED")


async def test_a_key_of_another_purpose_makes_no_token() -> None:
    """Nor does the tokens' key make a session. Without keys of theirs, as an identity of the last
    release answers, users and devices go on."""
    async with running_gateway(key_refresh=0.2) as gateway:
        users, tokens = gateway.signer, Signer("tokens")

        async def opens(token: str) -> bool:
            answer = await gateway.http.get(USERS_ROUTE, headers=bearer(token))
            return answer.status_code == 200

        def answer(*signers: Signer) -> dict[str, list[dict[str, object]]]:
            return {"keys": [signer.jwk for signer in signers]}

        gateway.backends.jwks = {
            "users": answer(users),
            "devices": answer(users),
            "tokens": answer(tokens),
        }
        await eventually(lambda: opens(tokens.api_token()))
        assert not await opens(users.api_token())
        assert not await opens(tokens.user())
        assert await opens(users.user())
        gateway.backends.jwks = {
            "users": answer(users),
            "devices": answer(users),
            "tokens": answer(),
        }
        for _ in range(20):
            assert await opens(users.user())


async def test_each_token_has_a_rate_of_its_own() -> None:
    """One that calls too often leaves the others of its holder alone, and the holder."""
    limits = Limits(user=Rate(burst=3, per_second=1))
    async with running_gateway(limits=limits) as gateway:
        busy, quiet = gateway.signer.api_token(), gateway.signer.api_token(sub=SESSION)

        async def status(token: str) -> int:
            return (await gateway.http.get(USERS_ROUTE, headers=bearer(token))).status_code

        assert 429 in [await status(busy) for _ in range(20)]
        assert await status(quiet) == 200
        assert await status(gateway.signer.user(sub=DEVICE)) == 200
