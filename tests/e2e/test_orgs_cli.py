"""`evergreen orgs` against the running product: an organisation leaves, and goes."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import httpx

from tests.e2e.test_audit_cli import evergreen
from tests.e2e.world import DOCUMENT, assert_error, make_org, ok
from tests.support.stack import PATIENCE, Stack, until


def test_an_organisation_is_exported_archived_and_deleted(
    stack: Stack, root: httpx.Client, tmp_path: Path
) -> None:
    """One file has everything and its audit log verifies offline; a changed or shortened file is
    found. Nothing is closed without its number, and in the end only the log and the name are left.
    """
    org = make_org(stack, root, "Leaving")
    policy = org.publish()
    agent = org.device()
    agent.report_state()
    agent.record("secret.event", {"message": "a report"})
    agent.record("", {"message": "a bad one"})
    agent.send_events()
    _ = org.owner
    wanted = {"orgId": org.id, "name": "Cart 3", "alias": "cart-3"}
    group = ok(root.post("/api/device-groups", json=wanted))
    path = f"/api/device-groups/{group['id']}/members"
    ok(root.post(path, json={"add": [agent.device_id, "5CD0000001"]}))

    def logged() -> bool:
        entries = ok(root.get("/api/audit", params={"orgId": org.id}))["entries"]
        return "enrollment.device_enrolled" in {entry["action"] for entry in entries}

    until(logged, PATIENCE, "the entries did not arrive")

    def orgs(*arguments: str | Path, expected: int = 0) -> str:
        done = evergreen("orgs", *arguments, "--home", stack.home)
        assert done.returncode == expected, done.stdout + done.stderr
        return done.stdout + done.stderr

    file = tmp_path / "leaving.zip"
    orgs("export", org.code, "-o", file)
    assert "is complete" in evergreen("orgs", "verify-export", file).stdout
    with zipfile.ZipFile(file) as archive:
        archive.extractall(tmp_path / "out")
    out = tmp_path / "out"
    assert agent.device_id in (out / "registrations.jsonl").read_text()
    assert agent.device_id in (out / "devices.json").read_text()
    assert "secret.event" in (out / "events.json").read_text()
    assert len((out / "quarantined-events.jsonl").read_text().splitlines()) == 1
    assert "owner-" in (out / "users.jsonl").read_text()
    listed = (out / "device-groups" / group["id"] / "members.jsonl").read_text()
    assert len(listed.splitlines()) == 2
    versions = (out / "policies" / policy["id"] / "versions.jsonl").read_text()
    assert len(versions.splitlines()) == 1
    everything = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    passphrase = DOCUMENT["network"]["wifi"][0]["passphrase"].encode()
    secret = org.pre_shared_key.partition(":")[2].encode()
    assert passphrase not in everything
    assert secret not in everything
    verified = evergreen(
        "audit", "verify", "--from-export", out / "audit" / "log.jsonl",
        "--checkpoint", out / "audit" / "checkpoint.txt",
        "--public-key", out / "audit" / "keys.pem", "--org", org.id,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stdout + verified.stderr
    broken = tmp_path / "broken.zip"
    broken.write_bytes(file.read_bytes()[:-40])
    assert evergreen("orgs", "verify-export", broken).returncode == 2
    with zipfile.ZipFile(file) as whole, zipfile.ZipFile(broken, "w") as changed:
        for name in whole.namelist():
            content = whole.read(name)
            changed.writestr(name, content + b"\n" if name == "users.jsonl" else content)
    assert "users.jsonl" in evergreen("orgs", "verify-export", broken).stderr

    def number(verb: str) -> str:
        said = orgs(verb, org.code, "--dry-run")
        assert "1 device" in said
        return said.rsplit("confirm is ", 1)[1].rstrip(".\n")

    count = number("archive")
    orgs("archive", org.code, "--yes", expected=2)
    orgs("archive", org.code, "--yes", "--expect", f"{count}0", expected=2)
    orgs("archive", org.code, "--yes", "--expect", count)
    new = {"name": "x", "orgId": org.id, "bundle": DOCUMENT}
    until(
        lambda: root.post("/api/policies", json=new).status_code == 400,
        PATIENCE,
        "policies are still added",
    )
    simulated = {"orgId": org.id, "bundle": DOCUMENT}
    assert_error(root.post("/api/policies/simulate", json=simulated), 400, "FAILED_PRECONDITION")
    assert "archived already" in orgs("archive", org.code)
    assert org.code in orgs("list")
    assert "nothing of it is being deleted" in orgs("deletion", org.code, expected=2)
    assert "1 device" in orgs("restore", org.code)
    assert "nothing to restore" in orgs("restore", org.code)
    assert "has no old code" in orgs("drop-code", org.code, "other", expected=2)
    orgs("archive", org.code, "--yes", "--expect", number("archive"))
    assert "is deleted" in orgs("delete", org.id, "--yes", "--expect", number("delete"))
    assert_error(root.get("/api/policies", params={"orgId": org.id}), 404)
    (gone,) = [line for line in orgs("list", "--deleted", "--json").splitlines() if org.id in line]
    assert json.loads(gone)["status"] == "deleted"
    assert "is deleted" in orgs("restore", org.id, expected=2)
    entries = ok(root.get("/api/audit", params={"orgId": org.id}))["entries"]
    assert {entry["orgName"] for entry in entries} == {json.loads(gone)["name"]}


def test_devices_are_retired_and_deleted_by_number(stack: Stack, root: httpx.Client) -> None:
    """Nothing is done when one of them cannot be, or without the number; then all are."""
    org = make_org(stack, root, "Selling")
    agents = [org.device(), org.device()]
    ids = [agent.device_id for agent in agents]

    def devices(*arguments: str, expected: int = 0) -> str:
        done = evergreen("devices", *arguments, "--home", stack.home)
        assert done.returncode == expected, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "DEVICE_NOT" not in devices("delete", *ids, "--yes", "--expect", "2", expected=2)
    devices("decommission", *ids, "--yes", expected=2)
    devices("decommission", *ids, "--yes", "--expect", "3", expected=2)
    assert "confirm is 2" in devices("decommission", *ids, "--dry-run")
    assert f"{org.id}: no such device" in devices("delete", org.id, "--dry-run", expected=2)
    statuses = {ok(root.get(f"/api/registrations/{device}"))["status"] for device in ids}
    assert statuses == {"active"}
    devices("decommission", *ids, "--yes", "--expect", "2")
    devices("delete", *ids, "--yes", "--expect", "2")
    listed = ok(root.get("/api/registrations", params={"orgId": org.id}))["registrations"]
    assert listed == []
    assert "may enroll until" in devices("allow-reenrollment", ids[0])
