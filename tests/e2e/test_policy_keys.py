"""A school gets its own key for policies, and moves its devices to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.test_audit_cli import evergreen
from tests.e2e.world import Org, ok
from tests.fakes.agent.agent import Agent, AgentEndedError
from tests.support.stack import Stack, until

ARRIVES = 60


def _pulls(agent: Agent) -> str:
    agent.pull()
    return agent.applied[-1].version


def test_a_school_moves_to_a_key_of_its_own(stack: Stack, org: Org, tmp_path: Path) -> None:
    """Devices of before go on with the key that they pin; new ones pin the new one, and end with
    another; the old one of the school is retired when no device pins it; anybody can check what
    was signed."""

    def keys(*arguments: str | Path, code: int = 0) -> str:
        done = evergreen("keys", *arguments, "--home", stack.home)
        assert done.returncode == code, done.stderr
        return done.stdout

    def listed() -> dict[str, dict[str, str]]:
        lines = keys("list", "--json").splitlines()
        return {key["keyId"]: key for key in map(json.loads, lines) if key.get("orgId") == org.id}

    policy = org.publish()
    old = org.device()
    pem = keys("rotate", "policies", "--org", org.code)
    (first,) = listed()
    token = org.enrollment_token()
    assert (token["policyKeyId"], token["policyKeyPem"]) == (first, pem)
    new = org.device(pre_shared_key=token["preSharedKey"], pinned_key=pem)
    with pytest.raises(AgentEndedError):
        org.device(pre_shared_key=token["preSharedKey"])
    # A rotation of the school's own key.
    second_pem = keys("rotate", "policies", "--org", org.code)
    (second,) = set(listed()) - {first}
    assert (listed()[first]["state"], listed()[second]["state"]) == ("retiring", "active")
    ok(org.root.post(f"/api/policies/{policy['id']}/publish", json={}))
    version = str(ok(org.root.get(f"/api/policies/{policy['id']}"))["version"])
    until(lambda: _pulls(old) == version, ARRIVES, "the first key", 0.2)
    until(lambda: _pulls(new) == version, ARRIVES, "the school's first key", 0.2)
    until(lambda: int(listed()[first]["devices"]) == 2, ARRIVES, "the count", 0.2)
    assert new.device_id in keys("devices", first)
    refused = evergreen("keys", "retire", first, "--home", stack.home)
    assert (refused.returncode, "2 devices pin the key" in refused.stderr) == (2, True)
    # One moves, the one that ended is given up.
    ok(org.root.post(f"/api/devices/{new.device_id}/allow-reenrollment", json={}))
    moved = org.device(
        pre_shared_key=org.enrollment_token()["preSharedKey"],
        pinned_key=second_pem,
        hardware=new.hardware,
    )
    assert moved.device_id == new.device_id
    until(lambda: int(listed()[first]["devices"]) == 1, ARRIVES, "the count", 0.2)
    keys("retire", first, "--give-up-devices", "--yes", "--expect", "2", code=2)
    keys("retire", first, "--give-up-devices", "--yes", "--expect", "1")
    assert listed()[first]["state"] == "retired"
    # An auditor, with the key of the image and without a network.
    log, image, signed = (tmp_path / name for name in ("log", "image.pem", "start.json"))
    log.write_text(keys("log"))
    image.write_text(Path(stack.bootstrap["policy_public_key_file"]).read_text())
    file = org.root.post(
        "/api/registrations", json={"orgId": org.id, "serial": "SN-audited", "model": "M"}
    )
    signed.write_bytes(file.content)
    said = evergreen("keys", "verify", log, "--trust", image, "--policy", signed)
    assert said.returncode == 0, said.stdout + said.stderr
    assert f"signed by key {second}, which is in use" in said.stdout
    entries = ok(org.root.get("/api/audit", params={"orgId": org.id}))["entries"]
    told = [one["action"] for one in entries if one["action"].startswith("policy.key_")]
    assert set(told) == {"policy.key_created", "policy.key_activated", "policy.key_retired"}
    # What the log says for ever is asked for, and of one key.
    asked = evergreen("keys", "compromised", second, "--home", stack.home)
    assert (asked.returncode, "give --yes. Nothing was changed" in asked.stderr) == (2, True)
    keys("compromised", "", "--yes", code=2)
    assert listed()[second]["state"] == "active"
    assert "No new enrollment token" in keys("compromised", second, "--yes")
    assert listed()[second]["state"] == "compromised"
