"""`evergreen policies`, as an administrator uses it."""

from __future__ import annotations

import json

import httpx
from typer.testing import CliRunner

from cli.main import app
from tests.e2e.world import Org, make_org, ok
from tests.support.stack import Stack


def run(stack: Stack, org: Org, *words: str, code: int = 0) -> str:
    """What a command prints, with what it says beside it."""
    done = CliRunner().invoke(app, ["policies", *words, "--org", org.id, "--home", str(stack.home)])
    assert done.exit_code == code, done.output
    return done.output


def test_versions_are_listed_compared_and_withdrawn(stack: Stack, root: httpx.Client) -> None:
    """By the policy's name; a secret is in nothing that is printed."""
    org = make_org(stack, root, "Compared")
    wifi = {"ssid": "Class", "passphrase": "a first passphrase", "security": "wpa-psk"}
    body = {"name": "Base", "orgId": org.id, "bundle": {"network": {"wifi": [wifi]}}}
    assert "draft" not in run(stack, org, "list")
    policy = ok(org.owner.post("/api/policies", json=body))
    assert "draft" in run(stack, org, "list")
    assert "was never published" in run(stack, org, "diff", "Base", code=2)
    ok(org.owner.post(f"/api/policies/{policy['id']}/publish", json={}))
    change = {"bundle": {"network": {"wifi": [{**wifi, "passphrase": "another one of it"}]}}}
    ok(org.owner.patch(f"/api/policies/{policy['id']}", json={**change, "signed": True}))
    said = run(stack, org, "diff", "Base")
    assert "version 2, compared with 1" in said
    assert "! network.wifi[Class]: a secret is another one" in said
    assert "nothing is different" in run(stack, org, "diff", "Base", "2", "--base", "2")
    assert "compared with nothing" in run(stack, org, "diff", policy["id"], "1")
    (line,) = run(stack, org, "diff", "Base", "--json").splitlines()
    assert json.loads(line)["secretChanged"] is True
    assert [row.split()[0] for row in run(stack, org, "versions", "Base").splitlines()] == [
        "VERSION",
        "2",
        "1",
    ]
    assert "passphrase" not in said.replace('"passphrase": "[masked]"', "")
    assert "no policy is called Nothing" in run(stack, org, "versions", "Nothing", code=2)
    said = run(stack, org, "effective", "--all")
    assert said.startswith("CURRENT")
    assert "Compared" in said
    assert "network.wifi[Class]" in said
    assert "another one of it" not in said
    assert "DEFAULT" in said
    run(stack, org, "withdraw", "Base", "--yes")
    assert "withdrawn" in run(stack, org, "list")
