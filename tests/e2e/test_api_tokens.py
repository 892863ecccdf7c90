"""API tokens through the whole product, and at the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from deploy.launcher.home import Home
from tests.e2e.test_audit_cli import evergreen
from tests.e2e.world import Org, assert_error, make_org, ok
from tests.support.stack import PATIENCE, Stack, until

_READS = {
    "policies:read": "/api/policies",
    "devices:read": "/api/devices",
    "devices:write": "/api/registrations",
    "events:read": "/api/events",
    "attestation:read": "/api/attestations",
    "audit:read": "/api/audit",
    "users:read": "/api/users",
    "tenants:read": "/api/tenants",
    "enrollment:read": "/api/enrollment-tokens",
}
"""A call of each area, so of each service."""


@pytest.fixture(scope="module")
def org(stack: Stack, root: httpx.Client) -> Org:
    return make_org(stack, root, "Tokens")


def _made(client: httpx.Client, **more: Any) -> dict[str, Any]:
    wanted = {"name": uuid4().hex, "scopes": sorted(_READS), **more}
    found: dict[str, Any] = ok(client.post("/api/tokens", json=wanted))
    return found


def test_a_revoked_token_is_refused_by_every_service(stack: Stack, org: Org) -> None:
    """It worked at once after it was made; its last use is noted. Nothing of it is in any log."""
    made = _made(org.owner)
    with stack.client(made["token"]) as program:
        for path in _READS.values():
            ok(program.get(path))
        assert_error(program.get("/auth/session"), 403, "PERMISSION_DENIED")
        # As a guest's.
        assert program.get("/api/version").json().keys() == {"product"}
        ok(org.owner.post(f"/api/tokens/{made['id']}/revoke", json={}))
        for path in _READS.values():
            until(
                lambda p=path: program.get(p).status_code == 401, PATIENCE, f"{path} still answers"
            )
        body = assert_error(program.get("/api/devices"), 401, "UNAUTHENTICATED")
        assert body["details"][0]["reason"] == "TOKEN_ENDED"

    signature = made["token"].rpartition(".")[2]
    logs = Home(stack.home).logs
    for file in [path for path in Path(logs).rglob("*") if path.is_file()]:
        text = file.read_bytes()
        assert b"evt_eyJ" not in text, file
        assert signature.encode() not in text, file
    assert "evt_eyJ" not in json.dumps(ok(org.owner.get("/api/audit")))


def test_what_a_program_does_is_in_the_audit_log(stack: Stack, org: Org) -> None:
    """As done by the token, for its holder."""
    account = ok(org.owner.post("/api/service-accounts", json={"name": "CI", "role": "Admin"}))
    made = _made(
        org.owner, name="Deploy", scopes=["policies:write"], serviceAccountId=account["id"]
    )
    with stack.client(made["token"]) as program:
        policy = ok(
            program.post("/api/policies", json={"name": "P", "orgId": org.id, "bundle": {}})
        )

    def entry() -> dict[str, Any] | None:
        entries = ok(org.owner.get("/api/audit", params={"action": "policy.created"}))["entries"]
        return next((e for e in entries if e["resource"] == f"policies/{policy['id']}"), None)

    found = until(entry, PATIENCE, "no audit entry arrived")
    assert found["actor"] == "token:Deploy (service account CI)"
    assert (found["actorId"], found["actorRole"]) == (account["id"], "Admin")


def test_tokens_at_the_command_line(stack: Stack, org: Org, tmp_path: Path) -> None:
    """Made, used in place of a login, looked into offline, rotated, revoked."""

    def run(*words: str | Path, expected: int = 0, **environment: str) -> str:
        done = evergreen(*words, "--home", stack.home, **environment)
        assert done.returncode == expected, done.stdout + done.stderr
        return done.stdout if expected == 0 else done.stderr

    name = f"job-{uuid4().hex[:6]}"
    assert name in run("service-accounts", "create", name, "--role", "Admin", "--org", org.code)
    made = run(
        *("tokens", "create", name, "--scope", "users:read", "--scope", "tenants:read"),
        *("--service-account", name, "--days", "30", "--role", "Auditor"),
    ).strip()
    file, keys = tmp_path / "token", tmp_path / "keys"
    file.write_text(f"{made}\n")
    with stack.client() as client:
        keys.write_text(client.get("/.well-known/jwks.json").text)

    # With the token only its own organisation is seen.
    for given in ({"EVERGREEN_API_TOKEN": made}, {"EVERGREEN_API_TOKEN_FILE": str(file)}):
        listed = run("orgs", "list", **given)
        assert org.code in listed
        assert "default" not in listed
    refused = run("tokens", "list", expected=2, EVERGREEN_API_TOKEN=made)
    assert "API tokens may not do this; log in" in refused

    shown = evergreen("tokens", "inspect", file, "--keys", keys)
    assert shown.returncode == 0, shown.stderr
    assert re.search(rf"acts for: +service account {name}\n", shown.stdout)
    assert re.search(r"signature: +right\n", shown.stdout)
    wrong = f"{made[:-20]}{'A' * 20}"
    file.write_text(wrong)
    assert "not checked" in evergreen("tokens", "inspect", file).stdout
    assert evergreen("tokens", "inspect", file, "--keys", keys).returncode == 2
    file.write_text(made.removeprefix("evt_"))
    assert "no API token" in evergreen("tokens", "inspect", file).stderr

    assert run("tokens", "rotate", name, "--overlap-hours", "1").startswith("evt_")
    listed = run("tokens", "list", "--service-account", name)
    assert listed.count("active") == 2
    assert run("tokens", "revoke", name).count("revoked") == 2
    assert "active" not in run("tokens", "list", "--service-account", name, "--ended")
    assert "Auditor" in run("service-accounts", "edit", name, "--role", "Auditor")
    assert "give --yes" in run("service-accounts", "delete", name, expected=2)
    run("service-accounts", "delete", name, "--yes")
    assert name in run("service-accounts", "list", "--deleted")
