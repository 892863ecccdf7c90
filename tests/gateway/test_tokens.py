"""Which tokens pass, where they may stand, and what services get to know of them."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.gateway.harness import Gateway, bearer, error_of, eventually, running_gateway
from tests.gateway.tokens import DAY, DEVICE, SESSION, TENANT, USER, Signer

USERS_ROUTE = "/api/policies"
USERS_RPC = "/evergreen.v1.PolicyService/ListPolicies"


def _part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def _with_header(token: str, **header: object) -> str:
    _, payload, signature = token.split(".")
    return f"{_part({'alg': 'EdDSA', 'typ': 'JWT', **header})}.{payload}.{signature}"


def _signed_by_the_public_key(signer: Signer) -> str:
    """The classic confusion: HMAC with the public key's text as its secret."""
    pem = signer.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    payload = jwt.decode(signer.user(), options={"verify_signature": False})
    head = f"{_part({'alg': 'HS256', 'kid': signer.kid})}.{_part(payload)}"
    mac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(head.encode(), pem)
    return f"{head}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def _signed_with(algorithm: str, signer: Signer) -> str:
    payload = jwt.decode(signer.user(), options={"verify_signature": False})
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = (
        ec.generate_private_key(ec.SECP256R1())
        if algorithm == "ES256"
        else rsa.generate_private_key(65537, 2048)
    )
    return jwt.encode(payload, key, algorithm, {"kid": signer.kid})


def _altered(token: str) -> str:
    head, payload, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    return f"{head}.{_part({**claims, 'role': 'Owner', 'sub': DEVICE})}.{signature}"


BAD_TOKENS: dict[str, Callable[[Signer], str]] = {
    "empty": lambda s: "",
    "not a token": lambda s: "hello",
    "two parts": lambda s: ".".join(s.user().split(".")[:2]),
    "no signature": lambda s: ".".join([*s.user().split(".")[:2], ""]),
    "altered": lambda s: _altered(s.user(role="Auditor")),
    "forged by another key of the same id": lambda s: Signer(s.kid).user(),
    "unknown key id": lambda s: Signer("other").user(),
    "no key id, other key": lambda s: _with_header(Signer("x").user()),
    "alg none": lambda s: _with_header(s.user(), alg="none", kid=s.kid),
    "alg none, no signature": lambda s: jwt.encode({"iss": "evergreen:users"}, "", "none"),
    "HMAC with the public key": _signed_by_the_public_key,
    "ES256": lambda s: _signed_with("ES256", s),
    "RS256": lambda s: _signed_with("RS256", s),
    "key in the token": lambda s: _with_header(
        Signer(s.kid).user(), jwk=Signer(s.kid).jwk, jku="https://evil.example/jwks.json"
    ),
    "wrong issuer": lambda s: s.user(iss="evergreen:other"),
    "no issuer": lambda s: s.user(iss=None),
    "wrong audience": lambda s: s.user(aud="evergreen:devices"),
    "no audience": lambda s: s.user(aud=None),
    "expired": lambda s: s.user(lifetime=-120),
    "never expires": lambda s: s.user(exp=None),
    "not yet valid": lambda s: s.user(nbf=int(time.time()) + 600),
    "a device's": lambda s: s.device(),
    "a device's with a user's audience": lambda s: s.device(aud="evergreen:api"),
    "a user's with a device's issuer": lambda s: s.user(iss="evergreen:devices"),
}


@pytest.mark.parametrize("kind", BAD_TOKENS)
async def test_bad_tokens_are_refused(gateway: Gateway, kind: str) -> None:
    """In the header or the cookie, over JSON or gRPC: 401, and nothing reaches a service."""
    token = BAD_TOKENS[kind](gateway.signer)
    for headers in (bearer(token), {"cookie": f"session={token}"}):
        error_of(await gateway.http.get(USERS_ROUTE, headers=headers), 401, "UNAUTHENTICATED")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await gateway.grpc(USERS_RPC, token=token or " ")
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert gateway.backends.seen == []


@pytest.mark.parametrize("where", ["authorization", "cookie"])
async def test_services_get_the_claims_and_not_the_token(gateway: Gateway, where: str) -> None:
    """A user's token may stand in the header or in the console's cookie."""
    token = gateway.signer.user(iat=1_790_000_000, exp=4_000_000_000)
    headers = bearer(token) if where == "authorization" else {"cookie": f"a=b; session={token}"}
    answer = await gateway.http.get(USERS_ROUTE, headers=headers)
    assert answer.status_code == 200
    (seen,) = gateway.backends.seen
    assert {k: v for k, v in seen.headers.items() if k.startswith("x-evergreen-")} == {
        "x-evergreen-kind": "user",
        "x-evergreen-subject": USER,
        "x-evergreen-tenant": TENANT,
        "x-evergreen-role": "Owner",
        "x-evergreen-email": "owner@example.org",
        "x-evergreen-session": SESSION,
        "x-evergreen-token-issued": "1790000000",
        "x-evergreen-token-expires": "4000000000",
        "x-evergreen-timeout": "15",
    }
    assert token not in str(seen.headers)


@pytest.mark.parametrize("form", ["http", "grpc"])
async def test_a_device_is_known_by_its_token(gateway: Gateway, form: str) -> None:
    """The JSON and the gRPC form give the service the same headers."""
    token = gateway.signer.device(iat=1_790_000_000, exp=4_000_000_000)
    if form == "http":
        await gateway.http.post("/api/v1/devices/state", headers=bearer(token), json={})
    else:
        await gateway.grpc("/evergreen.v1.DeviceService/ReportState", token=token)
    (seen,) = gateway.backends.seen
    assert {k: v for k, v in seen.headers.items() if k.startswith("x-evergreen-")} == {
        "x-evergreen-kind": "device",
        "x-evergreen-subject": DEVICE,
        "x-evergreen-tenant": TENANT,
        "x-evergreen-token-version": "3",
        "x-evergreen-token-issued": "1790000000",
        "x-evergreen-token-expires": "4000000000",
        "x-evergreen-timeout": "15",
    }
    assert token not in str(seen.headers)


async def test_the_cookie_is_for_users_only(gateway: Gateway) -> None:
    """A device's token in the cookie opens no device route."""
    cookie = {"cookie": f"session={gateway.signer.device()}"}
    answer = await gateway.http.post("/api/v1/devices/state", headers=cookie, json={})
    error_of(answer, 401, "UNAUTHENTICATED")


async def test_tokens_in_the_query_do_not_count(gateway: Gateway) -> None:
    """A token in an address would end up in logs; it opens nothing."""
    for name in ("access_token", "token", "session"):
        answer = await gateway.http.get(USERS_ROUTE, params={name: gateway.signer.user()})
        error_of(answer, 401, "UNAUTHENTICATED")


async def test_two_tokens_of_different_kinds_open_nothing(gateway: Gateway) -> None:
    """A user's cookie beside a device's bearer token is refused, not chosen from."""
    headers = bearer(gateway.signer.device()) | {"cookie": f"session={gateway.signer.user()}"}
    error_of(await gateway.http.get(USERS_ROUTE, headers=headers), 401, "UNAUTHENTICATED")


async def test_public_routes_do_not_look_at_tokens(gateway: Gateway) -> None:
    """A good or bad token changes nothing where none is needed, and names nobody."""
    for token in (gateway.signer.user(), gateway.signer.user(lifetime=-120), "x.y.z"):
        headers = bearer(token) | {"cookie": f"session={token}"}
        answer = await gateway.http.post("/auth/login", headers=headers, json={})
        assert answer.status_code == 200
    for seen in gateway.backends.seen:
        ours = {name for name in seen.headers if name.startswith("x-evergreen-")}
        assert ours == {"x-evergreen-timeout"}


@pytest.mark.parametrize("path", ["policy", "state", "events", "attest", "challenge"])
@pytest.mark.parametrize(("lapse", "status"), [(60, 200), (89 * DAY, 200), (91 * DAY, 401)])
async def test_a_devices_token_passes_for_ninety_days_after_its_end(
    gateway: Gateway, path: str, lapse: int, status: int
) -> None:
    """Services see when it ended, and take it for the policy alone (tests/kit/rpc/test_chain.py)
    ."""
    headers = bearer(gateway.signer.device(lifetime=-lapse))
    answer = await gateway.http.post(f"/api/v1/devices/{path}", headers=headers, json={})
    assert answer.status_code == status
    for seen in gateway.backends.seen:
        assert int(seen.headers["x-evergreen-token-expires"]) < time.time()


async def test_a_key_opens_nothing_of_another_purpose() -> None:
    """A user's token by the devices' key is as good as one by a stranger's, and the reverse."""
    async with running_gateway(key_refresh=0.2) as gateway:
        users, devices = gateway.signer, Signer("devices")
        gateway.backends.jwks = {
            "users": {"keys": [users.jwk]},
            "devices": {"keys": [devices.jwk]},
        }

        async def poll(signer: Signer) -> bool:
            answer = await gateway.http.post(
                "/api/v1/devices/policy", headers=bearer(signer.device()), json={}
            )
            return answer.status_code == 200

        await eventually(lambda: poll(devices))
        assert not await poll(users)
        answer = await gateway.http.get(USERS_ROUTE, headers=bearer(devices.user()))
        error_of(answer, 401, "UNAUTHENTICATED")
        answer = await gateway.http.get(USERS_ROUTE, headers=bearer(users.user()))
        assert answer.status_code == 200


async def test_tokens_of_the_last_release_pass(gateway: Gateway) -> None:
    """Theirs have the type `JWT`; those of devices live for more than a year."""
    for token, path in (
        (gateway.signer.user(), "/auth/logout"),
        (gateway.signer.device(), "/api/v1/devices/policy"),
    ):
        payload = jwt.decode(token, options={"verify_signature": False})
        old = jwt.encode(payload, gateway.signer.key, "EdDSA", {"kid": gateway.signer.kid})
        answer = await gateway.http.post(path, headers=bearer(old), json={})
        assert answer.status_code == 200
