"""`evergreen policies`, as an administrator uses it."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
from typer.testing import CliRunner

from cli.main import app
from tests.e2e.world import PASSWORD, Org, assert_error, make_org, ok
from tests.fakes.agent.agent import Hardware
from tests.fakes.agent.gojson import marshal
from tests.fakes.agent.structs import DOCUMENT
from tests.support.stack import PATIENCE, Stack, until


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
    (line,) = [one for one in run(stack, org, "list").splitlines() if "draft" in one]
    assert " -  " in line
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
    assert "not in force" in run(stack, org, "list")


def test_a_publish_is_simulated(stack: Stack, root: httpx.Client, tmp_path: Path) -> None:
    """With a file, for a group, and as a withdrawal; devices are named by serial number."""
    org = make_org(stack, root, "Simulated")
    org.publish({"apps": {"required": [{"id": "org.gnome.Chess"}]}})
    (policy,) = ok(org.owner.get("/api/policies"))["policies"]
    serial = f"S-{org.id[:8]}"
    org.device(hardware=Hardware(serial=serial))
    file = tmp_path / "bundle.json"
    file.write_text(json.dumps({"browser": {"homepage": "https://school.example"}}))
    words = ("simulate", policy["name"], "--from-file", str(file))
    until(lambda: "1 of 1 devices" in run(stack, org, *words), PATIENCE, "no device is known")
    said = run(stack, org, *words)
    assert '+ browser.homepage: "https://school.example"  (1 device)' in said
    assert "APPS_UNINSTALLED apps.required[org.gnome.Chess]: devices uninstall" in said
    assert f"(1 device: {serial})" in said
    assert json.loads(run(stack, org, *words, "--json"))["devicesAffected"] == 1
    said = run(stack, org, "simulate", policy["id"], "--withdraw")
    assert "0 of 1 devices get something else" in said
    assert "nothing is different" in said
    new = ("simulate", "--from-file", str(file))
    said = run(stack, org, *new, "--device", serial)
    assert "1 of 1 devices get something else\n" in said
    merging = tmp_path / "merging.json"
    merging.write_text('{"inherit": false}')
    said = run(stack, org, *new, "--device", serial, "--merging", str(merging))
    assert "- apps.required[org.gnome.Chess]: {" in said
    assert "1 of 1 devices" in run(stack, org, *new, "--all-devices")
    assert "--all-devices alone" in run(
        stack, org, *new, "--all-devices", "--device", serial, code=2
    )
    said = run(stack, org, *words, "--withdraw", code=2)
    assert "bundle: must not be given for a withdrawal" in said
    file.write_text("no JSON")
    assert "is not JSON" in run(stack, org, *words, code=2)
    ok(org.owner.post("/api/device-groups", json={"orgId": org.id, "name": "S", "alias": "s"}))
    assert "withdraw it before" in run(stack, org, "simulate", policy["id"], "--group", "s", code=2)


def test_a_policy_is_for_a_group_and_explained(stack: Stack, root: httpx.Client) -> None:
    """From the enrollment on; the group stays while the policy is in force."""
    org = make_org(stack, root, "Targeted")
    ok(org.owner.post("/api/device-groups", json={"orgId": org.id, "name": "S", "alias": "staff"}))
    org.publish()
    bundle = {"browser": {"homepage": "https://staff.example"}}
    body = {"name": "Staff", "orgId": org.id, "bundle": bundle}
    policy = ok(org.owner.post("/api/policies", json=body))
    said = run(stack, org, "target", "Staff", "--group", "staff")
    assert said == "Staff is for staff; not published yet.\n"
    assert "in force" in run(stack, org, "target", "Staff", "--group", "staff", "--publish")
    listed = {line.split()[0]: line for line in run(stack, org, "list").splitlines()[1:]}
    assert " in force           staff " in listed["Staff"]
    assert "all devices" in next(line for name, line in listed.items() if name != "Staff")
    (group,) = ok(org.owner.get("/api/device-groups"))["deviceGroups"]
    serial = f"T-{org.id[:8]}"
    path = f"/api/device-groups/{group['id']}/members"
    ok(org.owner.post(path, json={"add": [serial]}))
    agent = org.device(hardware=Hardware(serial=serial))
    assert agent.document is not None
    assert agent.document["browser"]["homepage"] == "https://staff.example"
    said = run(stack, org, "explain", serial)
    assert "group staff: Staff v" in said
    assert "https://staff.example" in said
    as_json = json.loads(run(stack, org, "explain", agent.device_id, "--json"))
    assert [layer["level"] for layer in as_json["layers"]] == ["ORG", "GROUP"]
    assert "group staff: Staff v" in run(stack, org, "effective", "--group", "staff")
    assert "no device has the serial number" in run(stack, org, "explain", "Nobody's", code=2)
    refused = org.owner.delete(f"/api/device-groups/{group['id']}")
    message = assert_error(refused, 400, "FAILED_PRECONDITION")["message"]
    assert "in force for the group: Staff; withdraw these" in message
    said = run(stack, org, "target", "Staff", "--all-devices", code=2)
    assert "withdraw it before" in said
    run(stack, org, "withdraw", "Staff", "--yes")
    ok(org.owner.delete(f"/api/device-groups/{group['id']}"))
    assert "all devices" in run(stack, org, "target", policy["id"], "--all-devices")


def test_a_resellers_admin_publishes_its_own_layer(
    stack: Stack, root: httpx.Client, tmp_path: Path
) -> None:
    """By the commands for one policy, and as a set; a school's policies of the same name are its
    own."""
    reseller = ok(root.post("/api/tenants", json={"name": "District", "reseller": True}))
    school = ok(root.post("/api/tenants", json={"name": "Below", "parentId": reseller["id"]}))
    below = Org(stack, school["id"], school["code"], root)
    email, password = f"admin-{reseller['code']}@district.example", tmp_path / "password"
    password.write_text(PASSWORD)
    user = {"email": email, "role": "Admin", "tenantId": reseller["id"], "password": PASSWORD}
    ok(root.post("/api/users", json=user))
    who = ["--home", str(stack.home), "--email", email, "--password-file", str(password)]

    def said(*words: str | Path, org: str = reseller["code"]) -> str:
        done = CliRunner().invoke(app, [*map(str, words), "--org", org, *who])
        assert done.exit_code == 0, done.output
        return done.output

    bundle, merging = tmp_path / "bundle.json", tmp_path / "merging.json"
    bundle.write_text(json.dumps({"browser": {"homepage": "https://district.example"}}))
    merging.write_text('{"lockedFields": ["browser"]}')
    said("policies", "create", "Base", "--from-file", bundle, org=below.code)
    assert "not published" in said("policies", "create", "Base", "--from-file", bundle)
    assert "+ browser.homepage" in said("policies", "simulate", "Base")
    assert "in force" in said("policies", "edit", "Base", "--merging", merging, "--publish")
    (row,) = said("policies", "list", "--json").splitlines()
    assert json.loads(row)["orgId"] == reseller["id"]
    assert "compared with nothing" in said("policies", "diff", "Base")
    agent = below.device()
    assert agent.document is not None
    assert agent.document["browser"]["homepage"] == "https://district.example"
    assert "District" in said("policies", "effective", org=below.code)
    directory = tmp_path / "set"
    said("export", directory, "--name", "district")
    assert "Applied." in said("apply", directory, "--adopt", "--yes")
    assert "Nothing to do." in said("plan", directory, "--prune", "--exit-code")
    said("policies", "withdraw", "Base", "--yes")
    assert "not in force" in said("policies", "list")
    said("policies", "delete", "Base", "--yes")
    assert "draft" in said("policies", "list", org=below.code)


def test_variables_and_secrets(stack: Stack, root: httpx.Client) -> None:
    """Set, listed, published and deleted; a secret is read from standard input and never shown."""
    org = make_org(stack, root, "Named")

    def said(*words: str, value: str | None = None, code: int = 0) -> str:
        where = ["--org", org.id, "--home", str(stack.home)]
        done = CliRunner().invoke(app, [*words, *where], input=value)
        assert done.exit_code == code, done.output
        assert " passphrase" not in done.output
        assert "abc12" not in done.output
        return done.output

    assert said("variables", "set", "host", "one.example") == "host is set.\n"
    assert said("secrets", "set", "wifi", value="the first passphrase\n").startswith(
        "wifi is set.\n"
    )
    (line,) = said("secrets", "list", "--json").splitlines()
    first = json.loads(line)["fingerprint"]
    wifi = {"ssid": "Class", "passphrase": "{{secret.wifi}}", "security": "wpa-psk"}
    template = {"browser": {"homepage": "https://{{var.host}}"}, "network": {"wifi": [wifi]}}
    body = {"name": "Base", "orgId": org.id, "signed": True, "bundle": {"template": template}}
    ok(org.owner.post("/api/policies", json=body))
    agent = org.device()
    later = said("variables", "set", "host", "two.example")
    assert "Base: devices get the value with its next publish" in later
    advice = said("secrets", "set", "wifi", value="abc12")
    assert "warning: Base, bundle.template.network.wifi[0].passphrase must have 8 to 63" in advice
    waits = said("secrets", "set", "wifi", value="the second passphrase")
    assert "Base: devices get the value with its next publish" in waits
    now = said("secrets", "set", "wifi", "--now", value="the second passphrase")
    assert "Base: is in force with the value" in now
    agent.pull()
    got = json.loads(marshal(DOCUMENT, agent.applied[-1].document))
    assert got["browser"]["homepage"] == "https://two.example"
    assert got["network"]["wifi"][0]["passphrase"] == "the second passphrase"
    (line,) = said("secrets", "list", "--json").splitlines()
    assert json.loads(line)["fingerprint"] != first
    assert "two.example" in said("variables", "list")
    rolled = said("variables", "set", "host", "three.example", "--rollout")
    (rollout,) = ok(org.owner.get("/api/rollouts", params={"orgId": org.id}))["rollouts"]
    assert f"Base: comes to devices by the rollout {rollout['id']}" in rolled
    assert "not both" in said("variables", "set", "host", "x", "--now", "--rollout", code=2)
    assert "one of the secrets" in said("variables", "unset", "wifi", code=2)
    assert "policies name it: Base" in said("secrets", "unset", "wifi", code=2)
    assert "nothing is called other" in said("variables", "unset", "other", code=2)
    said("variables", "set", "spare", "x")
    assert said("variables", "unset", "spare") == "spare is deleted.\n"


def test_a_district_is_told_of_freezes_below(
    stack: Stack, root: httpx.Client, tmp_path: Path
) -> None:
    """By a simulation and a publish, which reach the school all the same with its own value."""
    tenant = ok(root.post("/api/tenants", json={"name": "District", "reseller": True}))
    district = Org(stack, tenant["id"], tenant["code"], root)
    below = {"name": "Linden", "parentId": district.id}
    made = ok(root.post("/api/tenants", json=below))
    school = Org(stack, made["id"], made["code"], root)
    file = tmp_path / "bundle.json"
    file.write_text(json.dumps({"template": {"browser": {"homepage": "https://{{var.host}}"}}}))
    where = ["--home", str(stack.home), "--org"]
    for org, host in ((district, "district.example"), (school, "linden.example")):
        words = ["variables", "set", "host", host, *where, org.code]
        done = CliRunner().invoke(app, [*words, *(["--overridable"] if org is district else [])])
        assert done.exit_code == 0, done.output
    freeze = {"name": "Exams", "firstDay": "2020-01-01", "lastDay": "2100-01-01"}
    body = {"orgId": school.id, "freezes": {"items": [freeze]}}
    ok(root.patch("/api/policy-settings", json=body))
    assert "Base is not published yet." in run(
        stack, district, "create", "Base", "--from-file", str(file)
    )
    told = "1 organisation below is in a freeze of their own; their devices get it all the same"
    assert told in run(stack, district, "simulate", "Base")
    assert told in run(stack, district, "publish", "Base")
    until(
        lambda: "https://linden.example" in run(stack, school, "effective"), PATIENCE, "not reached"
    )
    listed = CliRunner().invoke(app, ["variables", "list", *where, district.code]).output
    (row,) = listed.splitlines()[1:]
    assert row.split()[:3] == ["host", "yes", "district.example"]
