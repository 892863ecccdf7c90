"""SCIM through the whole product: the standard's own tester, its tokens' ends, and the command
line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import httpx2
import pytest

from tests.e2e.test_audit_cli import evergreen
from tests.e2e.world import Org, make_org, ok
from tests.support.stack import PATIENCE, Stack, until

TYPE = "application/scim+json"


@pytest.fixture(scope="module")
def org(stack: Stack, root: httpx.Client) -> Org:
    return make_org(stack, root, "SCIM")


def _source(org: Org, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A new source and a token for it."""
    rows = [{"group": "staff", "role": "Auditor"}]
    wanted = {"name": uuid4().hex, "roleMappings": rows, **more}
    source = ok(org.owner.post("/api/scim-sources", json=wanted))
    token = {"name": uuid4().hex, "scimSourceId": source["id"]}
    return source, ok(org.owner.post("/api/tokens", json=token))


def test_the_standards_tester_is_content(stack: Stack, org: Org) -> None:
    """scim2-tester reports nothing but success."""
    # Not by every process that only looks for tests: it takes seconds.
    from scim2_client.engines.httpx2 import SyncSCIMClient  # noqa: PLC0415
    from scim2_tester import Status, check_server  # noqa: PLC0415

    source, made = _source(org)
    base = f"{stack.url}/scim/v2"
    assert source["baseUrl"] == base
    headers = {"authorization": f"Bearer {made['token']}"}
    with httpx2.Client(
        base_url=base, headers=headers, verify=stack.tls(), timeout=PATIENCE
    ) as http:
        client = SyncSCIMClient(http)
        client.discover()
        results = check_server(client)
    counted = Counter(one.status for one in results)
    bad = [
        f"{one.status.name} {one.title}: {one.reason}"
        for one in results
        if one.status is not Status.SUCCESS
    ]
    assert not bad, "\n".join(bad)
    assert counted[Status.SUCCESS] > 60


def test_a_revoked_token_is_refused_within_seconds(stack: Stack, org: Org) -> None:
    """It never opened anything else, and its source is in the audit log as who acted."""
    _, made = _source(org)
    with stack.client(made["token"]) as program:
        program.headers["content-type"] = TYPE
        answer = program.post("/scim/v2/Groups", json={"displayName": "staff"})
        assert answer.status_code == 201, answer.text
        assert answer.headers["location"].startswith(f"{stack.url}/scim/v2/Groups/")
        for path in ("/api/users", "/api/devices", "/api/scim-sources", "/auth/session"):
            assert program.get(path).status_code == 401, path
        assert program.get("/api/version").json().keys() == {"product"}
        ok(org.owner.post(f"/api/tokens/{made['id']}/revoke", json={}))
        until(
            lambda: program.get("/scim/v2/Groups").status_code == 401, PATIENCE, "it still answers"
        )
    with stack.client(org.owner.headers["authorization"].removeprefix("Bearer ")) as person:
        answer = person.get("/scim/v2/Users")
        assert (answer.status_code, answer.json()["status"]) == (401, "401")

    def entry() -> Any:
        asked = {"action": "identity.scim_group_created"}
        return ok(org.owner.get("/api/audit", params=asked))["entries"]

    (found, *_) = until(entry, PATIENCE, "no audit entry arrived")
    assert found["actor"].startswith(f"token:{made['name']} (SCIM source ")


def test_scim_at_the_command_line(stack: Stack, org: Org, tmp_path: Path) -> None:
    """Added, used, looked at, changed, deleted."""

    def run(*words: str | Path, expected: int = 0) -> str:
        done = evergreen(*words, "--home", stack.home)
        assert done.returncode == expected, done.stdout + done.stderr
        return done.stdout if expected == 0 else done.stderr

    name = f"Entra {uuid4().hex[:6]}"
    made = run("scim", "create", name, "--map", "staff=Auditor", "--org", org.code)
    assert f"{stack.url}/scim/v2 (base URL)" in made
    token = run("scim", "token", name, "--name", name, "--days", "30").strip()
    assert token.startswith("evt_")
    domain = f"{uuid4().hex[:8]}.example"
    run("email-domains", "assign", domain, "--org", org.code)
    with stack.client(token) as program:
        program.headers["content-type"] = TYPE
        user = program.post("/scim/v2/Users", json={"userName": f"anna@{domain}"}).json()
        program.post("/scim/v2/Users", json={"userName": f"bert@{domain}"})
        members = [{"value": user["id"]}]
        group = {"displayName": "staff", "members": members}
        assert program.post("/scim/v2/Groups", json=group).status_code == 201
    people = run("scim", "people", name)
    assert "anna" in people
    assert "NO_ROLE" in run("scim", "people", name, "--without-account")
    listed = [json.loads(line) for line in run("scim", "list", "--json").splitlines()]
    (found,) = [one for one in listed if one["name"] == name]
    assert (found["people"], found["groups"], found["users"], found["held"]) == (2, 1, 1, 0)
    assert f"anna@{domain}" in run("users", "list")
    assert "Nobody is held." in run("scim", "confirm", name)
    run("scim", "edit", name, "--map", "others=Admin", "--new-name", f"{name} 2")
    assert json.loads(run("scim", "show", f"{name} 2"))["roleMappings"][0]["group"] == "others"
    assert "say what to change" in run("scim", "edit", f"{name} 2", expected=2)
    assert name in run("tokens", "list")
    run("tokens", "rotate", name, "--overlap-hours", "1")
    run("scim", "delete", f"{name} 2", "--yes")
    assert name not in run("tokens", "list")
