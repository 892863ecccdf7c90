"""Who may call what, through the gateway: a matrix made from the access table."""

from __future__ import annotations

import time
from pathlib import Path
from uuid import uuid4

import grpc
import httpx
import jwt
import pytest

from contract.access import AREAS, SCOPES, Audience, Role
from tests.e2e import tokens
from tests.e2e.rpcs import Rpc, rpcs
from tests.e2e.world import Org, assert_error, make_org
from tests.support.stack import PATIENCE, Stack, until

_USER = [r for r in rpcs() if r.rule.audience is Audience.USER]
_DEVICE = [r for r in rpcs() if r.rule.audience in {Audience.DEVICE, Audience.DEVICE_LAPSED}]
_INTERNAL = [r for r in rpcs() if r.rule.audience is Audience.INTERNAL]


def _name(rpc: Rpc) -> str:
    return rpc.name.rpartition(".")[2]


@pytest.fixture(scope="module")
def org(stack: Stack, root: httpx.Client) -> Org:
    return make_org(stack, root, "Matrix")


@pytest.fixture(scope="module")
def device_token(org: Org) -> str:
    return org.device().device_token


def _call(client: httpx.Client, rpc: Rpc, **headers: str) -> httpx.Response:
    some = str(uuid4())
    body = {} if rpc.method in {"POST", "PATCH"} else None
    url = rpc.url(id=some, policy_id=some, device_id=some, domain=some)
    return client.request(rpc.method, url, json=body, headers=headers)


@pytest.mark.parametrize("rpc", _USER, ids=_name)
def test_user_calls_refuse_everybody_else(
    stack: Stack, org: Org, device_token: str, rpc: Rpc
) -> None:
    """No token, every kind of wrong token, and a device's token: 401 in the one shape."""
    good = org.owner.headers["authorization"].removeprefix("Bearer ")
    with stack.client() as client:
        if _name(rpc) == "AuthService/Logout":
            assert _call(client, rpc).json() == {}  # there is nothing to end
        else:
            assert_error(_call(client, rpc), 401, "UNAUTHENTICATED")
        wrong = tokens.wrong_tokens(stack, good, "users")
        for what, token in {**wrong, "a device's token": device_token}.items():
            answer = _call(client, rpc, authorization=f"Bearer {token}".strip())
            assert answer.status_code == 401, f"{what}: {answer.status_code} {answer.text}"
            assert_error(answer, 401, "UNAUTHENTICATED")
        forged = {
            "x-evergreen-kind": "user",
            "x-evergreen-subject": str(uuid4()),
            "x-evergreen-tenant": org.id,
            "x-evergreen-role": "Owner",
            "x-evergreen-email": "a@b.example",
            "x-evergreen-session": str(uuid4()),
        }
        if _name(rpc) != "AuthService/Logout":
            assert_error(_call(client, rpc, **forged), 401, "UNAUTHENTICATED")


@pytest.fixture(scope="module")
def without(org: Org) -> dict[str, str]:
    """An Owner's API tokens with all scopes but those of an area; by `""` one with all."""
    found = {}
    for area in ("", *AREAS):
        scopes = [scope for scope in SCOPES if scope.partition(":")[0] != area]
        made = org.owner.post("/api/tokens", json={"name": f"not {area}", "scopes": scopes})
        found[area] = made.raise_for_status().json()["token"]
    return found


@pytest.mark.parametrize("rpc", _USER, ids=_name)
def test_api_tokens_may_what_their_scopes_say(
    stack: Stack, without: dict[str, str], rpc: Rpc
) -> None:
    """All other scopes together do not open a call, and some calls no scope does."""

    def reason(token: str) -> str:
        with stack.client(token) as client:
            answer = _call(client, rpc)
        if answer.status_code != 403:
            assert answer.status_code < 500 or not rpc.rule.offered, answer.text
            return ""
        return str(answer.json()["details"][0]["reason"])

    if rpc.rule.scope:
        assert reason(without[rpc.rule.area]) == "SCOPE_MISSING"
        assert reason(without[""]) not in {"SCOPE_MISSING", "TOKEN_MAY_NOT"}
    else:
        assert reason(without[""]) == "TOKEN_MAY_NOT"


@pytest.mark.parametrize("rpc", _USER, ids=_name)
def test_user_calls_refuse_roles_that_may_not(org: Org, rpc: Rpc) -> None:
    """403 for every role that the row does not name, before anything else is looked at."""
    clients = {Role.OWNER: org.owner, Role.ADMIN: org.admin, Role.AUDITOR: org.auditor}
    for role in set(Role) - rpc.rule.roles:
        body = assert_error(_call(clients[role], rpc), 403, "PERMISSION_DENIED")
        assert role.value in body["message"]


def test_headers_that_only_the_gateway_sets_are_not_believed(org: Org) -> None:
    """A caller with a token of its own cannot raise its role with headers."""
    answer = org.auditor.post(
        "/api/tenants",
        json={"name": "Mine"},
        headers={"x-evergreen-role": "Owner", "x-evergreen-tenant": str(uuid4())},
    )
    assert_error(answer, 403, "PERMISSION_DENIED")


@pytest.mark.parametrize("rpc", _DEVICE, ids=_name)
def test_device_calls_refuse_everybody_else(stack: Stack, org: Org, rpc: Rpc) -> None:
    """No token, every kind of wrong token, and a user's token: 401 in the one shape."""
    agent = org.device()
    user = org.owner.headers["authorization"].removeprefix("Bearer ")
    wrong = tokens.wrong_tokens(stack, agent.device_token, "devices")
    if rpc.rule.audience is Audience.DEVICE_LAPSED:
        del wrong["expired"]  # accepted on this route alone; tested below
    with stack.client() as client:
        assert_error(_call(client, rpc), 401, "UNAUTHENTICATED")
        for what, token in {**wrong, "a user's token": user}.items():
            answer = _call(client, rpc, authorization=f"Bearer {token}".strip())
            assert answer.status_code == 401, f"{what}: {answer.status_code} {answer.text}"
            assert_error(answer, 401, "UNAUTHENTICATED")


def test_tokens_say_what_they_are(stack: Stack, org: Org) -> None:
    """Each kind has a type and a key of its own; the public set has the keys of all."""
    user = org.owner.headers["authorization"].removeprefix("Bearer ")
    headers = [jwt.get_unverified_header(t) for t in (user, org.device().device_token)]
    assert [h["typ"] for h in headers] == ["evergreen-user+jwt", "evergreen-device+jwt"]
    with stack.client() as client:
        known = {key["kid"] for key in client.get("/.well-known/jwks.json").json()["keys"]}
    assert known >= {h["kid"] for h in headers}
    assert len({h["kid"] for h in headers}) == 2


def test_a_lapsed_token_still_pulls_a_policy_and_is_replaced(stack: Stack, org: Org) -> None:
    """A laptop that was off all summer comes back by itself; after 90 days it does not."""
    org.publish()
    agent = org.device()
    found = tokens.claims(agent.device_token)
    now = int(time.time())

    def lapsed(days: int) -> str:
        return tokens.sign(
            stack, "devices", {**found, "iat": now - 500 * 86400, "exp": now - days * 86400}
        )

    agent.device_token = lapsed(89)
    assert agent.pull() is True
    assert tokens.claims(agent.device_token)["exp"] > now
    agent.report_state()
    with stack.client(lapsed(91)) as client:
        answer = client.post("/api/v1/devices/policy", json={"current_version": ""})
        assert_error(answer, 401, "UNAUTHENTICATED")


@pytest.mark.parametrize("rpc", _INTERNAL, ids=_name)
def test_internal_calls_cannot_be_reached(stack: Stack, org: Org, rpc: Rpc) -> None:
    """Not by gRPC, whoever asks."""
    credentials = grpc.ssl_channel_credentials(Path(stack.ca_file).read_bytes())
    token = org.owner.headers["authorization"]
    with grpc.secure_channel(f"localhost:{stack.port}", credentials) as channel:
        call = channel.unary_unary(rpc.name)
        for metadata in ((), (("authorization", token),)):
            with pytest.raises(grpc.RpcError) as error:
                call(b"", metadata=metadata, timeout=60)
            assert error.value.code() in {  # type: ignore[attr-defined]  # grpc's errors are calls too
                grpc.StatusCode.UNIMPLEMENTED,
                grpc.StatusCode.NOT_FOUND,
                grpc.StatusCode.UNAUTHENTICATED,
                grpc.StatusCode.PERMISSION_DENIED,
            }


def test_a_logged_out_session_is_refused_by_every_service(stack: Stack, org: Org) -> None:
    """Within five seconds, whatever service is asked."""
    client = org.user("Admin")
    reads = ["/api/tenants", "/api/policies", "/api/devices", "/api/audit", "/api/registrations"]
    for path in reads:
        assert client.get(path).status_code == 200, path
    assert client.post("/auth/logout", json={}).status_code == 200
    for path in reads:
        until(lambda p=path: client.get(p).status_code == 401, PATIENCE, f"{path} still answers")


def test_a_session_cookie_is_as_good_as_a_bearer_token(stack: Stack, org: Org) -> None:
    """The console's pages send the cookie `session`."""
    token = org.owner.headers["authorization"].removeprefix("Bearer ")
    with stack.client() as client:
        answer = client.get("/api/policies", headers={"cookie": f"session={token}"})
        assert answer.status_code == 200
        session = client.get("/auth/session", headers={"cookie": f"session={token}"}).json()
        assert session["role"] == "Owner"
        assert_error(client.get("/api/policies", headers={"cookie": "session=x"}), 401)


@pytest.mark.parametrize(
    "path",
    [
        "/api/tenants/",
        "//api/tenants",
        "/api//tenants",
        "/api/./tenants",
        "/x/../api/tenants",
        "/api/%74enants",
        "/api%2Ftenants",
        "/API/tenants",
        "/api/v1/../tenants",
        "/auth/%2e%2e/api/tenants",
        "/evergreen.v1.TenantService/ListTenants",
        "/evergreen.v1.IdentityInternalService/IssueDeviceToken",
        "/metrics",
        "/admin",
        "/nowhere",
    ],
)
def test_no_spelling_of_a_path_slips_past(stack: Stack, path: str) -> None:
    """Without a token nothing of a tenant is answered, however the path is written."""
    request = b"GET " + path.encode() + b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    status, body = stack.raw(request)
    assert status in {400, 401, 404, 405, 415}, (status, body)
    assert b"Default" not in body
