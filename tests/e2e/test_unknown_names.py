"""Names that no field has: refused to users, ignored to devices; and the console sends none."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest

from tests.e2e.rpcs import Rpc, rpcs
from tests.e2e.world import PASSWORD, Org, assert_error, make_org, ok
from tests.support.stack import Stack

_STRICT = [r for r in rpcs() if r.rule.strict]


@pytest.fixture(scope="module")
def org(stack: Stack, root: httpx.Client) -> Org:
    return make_org(stack, root, "Strict")


@pytest.fixture(scope="module")
def turns(org: Org) -> Iterator[httpx.Client]:
    """Owners who take turns: there are more calls than one of them may make in a few seconds."""
    return itertools.cycle([org.user("Owner") for _ in range(4)])


def _violation(answer: httpx.Response) -> dict[str, str]:
    body = assert_error(answer, 400, "INVALID_ARGUMENT")
    (found,) = [d for d in body["details"] if d["@type"].endswith("BadRequest")]
    violation: dict[str, str] = found["fieldViolations"][0]
    assert body["message"].startswith(f"{violation['field']}: {violation['description']}")
    return violation


@pytest.mark.parametrize("rpc", _STRICT, ids=lambda r: r.name.rpartition(".")[2])
def test_every_call_of_users_names_what_it_does_not_know(
    turns: Iterator[httpx.Client], rpc: Rpc
) -> None:
    """In the query and in the body; logins as well."""
    owner = next(turns)
    some = str(uuid4())
    url = rpc.url(id=some, policy_id=some, device_id=some, domain=some)
    body = {} if rpc.method in {"POST", "PATCH"} else None
    answer = owner.request(rpc.method, f"{url}?nosuch=1", json=body)
    violation = _violation(answer)
    assert violation["field"] == "nosuch"
    assert violation["description"].startswith("no such query parameter; ")
    if body is not None:
        violation = _violation(owner.request(rpc.method, url, json={"nosuch": {"a": 1}}))
        assert violation["field"] == "nosuch"
        assert violation["description"].startswith("no such field; ")


def test_what_is_not_true_or_false_publishes_nothing(org: Org) -> None:
    """`signed: "no"` once was a text that the gateway read as false, and "yes" as true."""
    policy = {"name": uuid4().hex, "orgId": org.id, "bundle": {}, "signed": "yes"}
    violation = _violation(org.owner.post("/api/policies", json=policy))
    assert violation == {"field": "signed", "description": "must be true or false"}
    listed = ok(org.owner.get("/api/policies"))["policies"]
    assert policy["name"] not in {one["name"] for one in listed}
    directory = {"roleMappings": {"group": "a", "role": "Admin"}}
    violation = _violation(org.owner.post("/api/directories", json=directory))
    assert violation == {"field": "roleMappings", "description": "must be a list"}


def test_a_misspelt_organisation_makes_nobody(org: Org) -> None:
    """An Owner above would have made a user of the own tenant."""
    before = ok(org.root.get("/api/users"))["users"]
    user = {"email": f"{uuid4().hex}@school.example", "role": "Admin", "orgid": org.id}
    violation = _violation(org.root.post("/api/users", json=user))
    assert violation["description"] == 'no such field; did you mean "orgId"?'
    assert ok(org.root.get("/api/users"))["users"] == before


def test_a_user_cannot_be_moved_unnoticed(org: Org) -> None:
    """What an update does not take, it does not pretend to have done, nor the rest of it."""
    given = {"email": f"{uuid4().hex}@school.example", "role": "Admin", "orgId": org.id}
    user = ok(org.root.post("/api/users", json=given))
    answer = org.root.patch(f"/api/users/{user['id']}", json={"role": "Owner", "tenant": org.id})
    assert _violation(answer)["field"] == "tenant"
    assert ok(org.root.get(f"/api/users/{user['id']}"))["role"] == "Admin"


def test_what_is_unknown_is_told_only_to_those_who_may_call(org: Org) -> None:
    """The role comes first."""
    answer = org.auditor.post("/api/users", json={"nosuch": 1})
    assert_error(answer, 403, "PERMISSION_DENIED")


@pytest.mark.parametrize("path", ["/api/users", "/api/event-credentials"])
def test_an_organisation_has_one_name_everywhere(org: Org, path: str) -> None:
    """`orgId`, or its older name; both, when they say the same."""

    def make(**where: str) -> httpx.Response:
        body = {"name": "SIEM"}
        if path == "/api/users":
            body = {"email": f"{uuid4().hex}@school.example", "role": "Admin", "password": PASSWORD}
        return org.root.post(path, json=body | where)

    for where in ({"orgId": org.id}, {"tenantId": org.id}, {"orgId": org.id, "tenantId": org.id}):
        assert ok(make(**where))["tenantId"] == org.id
    assert _violation(make(orgId=org.id, tenantId=str(uuid4())))["field"] == "orgId"


def test_empty_parameters_are_not_given(org: Org) -> None:
    """A form sends its empty fields, too."""
    for path in (
        "/api/devices?orgId=&status=&search=&lastSeenAfter=&lastSeenBefore=&pageSize=&pageToken=",
        "/api/events?deviceId=&orgId=&action=&severity=&search=&limit=&occurredAfter=",
        "/api/events/export?orgId=&limit=&format=json&occurredBefore=",
        "/api/users?orgId=&pageSize=",
        "/api/audit?orgId=&actor=&occurredAfter=&pageSize=",
    ):
        answer = org.owner.get(path)
        assert answer.status_code == 200, (path, answer.text)


def test_a_search_finds_what_has_a_space(org: Org) -> None:
    """Written as `+`, as browsers do it, or as `%20`."""
    agent = org.device()
    agent.record("x", {"message": "disk nearly full"})
    agent.send_events()
    for space in ("+", "%20"):
        found = ok(org.owner.get(f"/api/events?search=disk{space}nearly{space}full"))["events"]
        assert len(found) == 1


def test_devices_may_send_more_than_is_known(org: Org) -> None:
    """Released agents are not refused for what a later release of them sends."""
    agent = org.device()
    with org.stack.client(agent.device_token) as client:
        body = {"current_version": "", "kernel": {"version": "6.18"}}
        assert client.post("/api/v1/devices/policy?x=1", json=body).status_code in {200, 304}


def test_what_the_console_sends_is_known(org: Org) -> None:
    """Every call of the released web console, with all that it sends."""
    owner, name = org.owner, uuid4().hex
    bundle = {
        "id": "",
        "name": "Lab",
        "version": "1.0.0",
        "orgId": org.id,
        "configuration": {
            "apps": [{"id": "chrome", "target": "all"}],
            "updateChannel": "stable",
            "browser": {"homepageUrl": "https://school.example", "allowPopups": False},
            "security": {"diskEncryption": True, "lockAfterMinutes": 5},
        },
    }
    ok(owner.post("/auth/login", json=_credentials(owner)))
    ok(owner.get("/auth/session"))
    policy = {"name": "Lab", "orgId": org.id, "bundle": bundle, "signed": False}
    made = ok(owner.post("/api/policies", json=policy))
    ok(owner.patch(f"/api/policies/{made['id']}", json=policy))
    ok(owner.post(f"/api/policies/{made['id']}/publish", json={}))
    user = ok(owner.post("/api/users", json={"email": f"{name}@s.example", "role": "Auditor"}))
    ok(owner.patch(f"/api/users/{user['id']}", json={"role": "Admin"}))
    ok(owner.post(f"/api/users/{user['id']}/deactivate", json={}))
    tenant = {"name": name, "parentId": ok(org.root.get("/api/tenants"))["tenants"][0]["id"]}
    tenant_id = ok(org.root.post("/api/tenants", json={**tenant, "reseller": False}))["id"]
    ok(org.root.patch(f"/api/tenants/{tenant_id}", json={**tenant, "reseller": False}))
    device = org.device().device_id
    ok(owner.post(f"/api/devices/{device}/sync", json={}))
    filters = f"orgId={org.id}&search={quote('a b')}"
    for path in (
        f"/api/devices?{filters}&status=online&lastSeenAfter=2026-01-01T00:00:00Z"
        "&lastSeenBefore=2099-01-01T00:00:00Z",
        f"/api/events?{filters}&deviceId={device}&action=x&severity=info&limit=50",
        f"/api/events/export?{filters}&deviceId={device}&action=x&severity=info&limit=50&format=csv",
        f"/api/users?orgId={org.id}",
        f"/api/devices/{device}",
        f"/api/policies/{made['id']}",
        "/api/policies",
        "/api/tenants",
    ):
        answer = owner.get(path)
        assert answer.status_code == 200, (path, answer.text)
    assert_error(owner.delete(f"/api/policies/{made['id']}"), 400, "FAILED_PRECONDITION")
    draft = ok(owner.post("/api/policies", json=policy))
    ok(owner.delete(f"/api/policies/{draft['id']}"))
    ok(owner.post(f"/api/devices/{device}/decommission", json={}))


def _credentials(client: httpx.Client) -> dict[str, str]:
    return {"email": ok(client.get("/auth/session"))["email"], "password": PASSWORD}
