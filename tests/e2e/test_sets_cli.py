"""`evergreen plan`, `apply` and `export`, as an administrator and a pipeline use them."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
from typer.testing import CliRunner

from cli.main import app
from tests.e2e.world import Org, make_org, ok
from tests.fakes.agent.agent import Hardware
from tests.support.stack import PATIENCE, Stack, until

SECRET = "the passphrase of the class"


def run(stack: Stack, word: str, directory: Path, *words: str, code: int = 0) -> str:
    """What a command prints, with what it says beside it."""
    done = CliRunner().invoke(app, [word, str(directory), *words, "--home", str(stack.home)])
    assert done.exit_code == code, done.output
    return done.output


def files(tmp_path: Path, org: Org, **more: str) -> Path:
    """A set with a group and a policy for all and one for the group."""
    directory = tmp_path / "set"
    directory.mkdir(exist_ok=True)
    for name, text in {
        "set": f"kind: Set\nmetadata: {{name: school}}\norg: {org.id}\n",
        "groups": "kind: DeviceGroup\nalias: staff\npriority: 40\nfilter: labels.role = staff\n",
        "base": "kind: Policy\nalias: base\ntargets: [org]\nbundle:\n"
        "  browser: {homepage: https://school.example}\n"
        f"  network: {{wifi: [{{ssid: Class, security: wpa-psk, passphrase: {SECRET}}}]}}\n",
        "staff": "kind: Policy\nalias: staff\ntargets: [group:staff]\nbundle:\n"
        "  browser: {homepage: https://staff.example}\n",
        **more,
    }.items():
        (directory / f"{name}.yaml").write_text(text, encoding="utf-8")
    return directory


def test_a_set_is_planned_applied_changed_and_pruned(
    stack: Stack, root: httpx.Client, tmp_path: Path
) -> None:
    """Each time what was said is done, and the same set once more does nothing."""
    org = make_org(stack, root, "As code")
    directory = files(tmp_path, org)
    said = run(stack, "plan", directory, "--exit-code", code=3)
    assert "+ group  staff" in said
    assert "+ policy base                 is published" in said
    assert "+ policy staff                is published" in said
    assert ok(org.owner.get("/api/device-groups"))["deviceGroups"] == []
    assert "nobody can be asked here; give --yes" in run(stack, "apply", directory, code=2)
    assert "Applied." in run(stack, "apply", directory, "--yes")
    assert "Nothing to do." in run(stack, "apply", directory)
    assert "Nothing to do." in run(stack, "plan", directory, "--exit-code")
    serial = f"C-{org.id[:8]}"
    agent = org.device(hardware=Hardware(serial=serial))
    assert agent.document is not None
    assert agent.document["browser"]["homepage"] == "https://school.example"
    # A change is told with its devices.
    directory = files(
        tmp_path,
        org,
        base="kind: Policy\nalias: base\ntargets: [org]\nbundle: {apps: {required: []}}\n",
    )
    until(lambda: "1 of 1 devices" in run(stack, "plan", directory), PATIENCE, "no device is known")
    said = run(stack, "plan", directory)
    assert "~ policy base                 bundle; is published" in said
    assert "WIFI_LOST network.wifi: devices lose every network" in said
    assert serial in said
    assert SECRET not in said
    assert "it touches 1 object, not 2" in run(
        stack, "apply", directory, "--yes", "--expect", "2", code=2
    )
    run(stack, "apply", directory, "--yes", "--expect", "1")
    plan = json.loads(run(stack, "plan", directory, "--json"))
    assert {one["action"] for one in plan["policies"]["policies"]} == {"UNCHANGED"}
    # Groups go behind the policies that are for them.
    (directory / "groups.yaml").unlink()
    (directory / "staff.yaml").unlink()
    said = run(stack, "plan", directory, "--exit-code", code=3)
    assert "? group  staff                is not in the set any more; --prune deletes it" in said
    said = run(stack, "plan", directory, "--prune", "--exit-code", code=3)
    assert "- group  staff" in said
    said = run(stack, "apply", directory, "--prune", "--yes", code=2)
    assert "it deletes 2 of the set's 3 groups and policies" in said
    run(stack, "apply", directory, "--prune", "--yes", "--expect-deleted", "2")
    assert ok(org.owner.get("/api/device-groups"))["deviceGroups"] == []
    (policy,) = ok(org.owner.get("/api/policies"))["policies"]
    assert policy["name"] == "base"
    # What is refused is said with its place.
    directory = files(
        tmp_path, org, base="kind: Policy\nalias: base\ntargets: [org]\nbundle: {x: 1}\n"
    )
    said = run(stack, "apply", directory, "--yes", code=2)
    assert "policy base, bundle.x: is not a field that devices know" in said
    assert ok(org.owner.get("/api/device-groups"))["deviceGroups"] == []


def test_what_is_exported_is_adopted_and_changes_nothing(
    stack: Stack, root: httpx.Client, tmp_path: Path
) -> None:
    """Groups and policies of both forms, without their secrets."""
    org = make_org(stack, root, "Exported")
    named = {"orgId": org.id, "name": "Staff", "alias": "staff", "filter": "labels.role = staff"}
    group = ok(org.owner.post("/api/device-groups", json=named))
    ok(org.owner.post("/api/device-groups", json={"orgId": org.id, "name": "L", "alias": "l"}))
    form = {
        "configuration": {
            "network": {"wifiNetworks": [{"ssid": "C", "security": "wpa2", "passphrase": SECRET}]}
        }
    }
    body = {"orgId": org.id, "name": "The Form", "bundle": form, "signed": True}
    made = ok(org.owner.post("/api/policies", json=body))
    targets = {"groupIds": [group["id"]]}
    body = {"orgId": org.id, "name": "Staff", "bundle": {"apps": None}, "targets": targets}
    merging = {"lockedFields": ["apps"], "removedItems": {"browser.extensions": ["x"]}}
    everything = {**body, "merging": {**merging, "inherit": False}}
    ok(org.owner.post("/api/policies", json=everything))
    ok(org.owner.post("/api/policy-variables", json={"orgId": org.id, "name": "v", "value": "7"}))
    body = {"orgId": org.id, "name": "s", "value": SECRET, "secret": True}
    ok(org.owner.post("/api/policy-variables", json=body))
    directory = tmp_path / "set"
    said = run(stack, "export", directory, "--name", "school", "--org", org.id)
    assert said == "2 groups and 2 policies in 6 files.\n"
    written = "".join(path.read_text() for path in directory.rglob("*.yaml"))
    assert SECRET not in written
    said = run(stack, "plan", directory, "--org", org.id, code=2)
    assert "belongs to no set: adopt it" in said
    said = run(stack, "apply", directory, "--org", org.id, "--adopt", "--yes")
    assert said.count("belongs to the set from now on") == 5
    assert "Nothing to do." in run(stack, "plan", directory, "--exit-code")
    assert ok(org.owner.get(f"/api/policies/{made['id']}"))["etag"] == made["etag"]
    said = run(stack, "export", directory, "--name", "school", "--org", org.id, code=2)
    assert "is not empty" in said
