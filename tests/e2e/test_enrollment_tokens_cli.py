"""`evergreen orgs create` and `evergreen enrollment-tokens`: an administrator's first day."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from tests.e2e.world import PASSWORD, Org, make_org, ok
from tests.fakes.agent import CallError, Hardware, read_config
from tests.support.stack import PATIENCE, Stack, until

_KEY = re.compile(r"[a-z0-9-]+:\S{32,}\n")
_TOKENS = "enrollment-tokens"


@pytest.fixture(scope="module")
def org(stack: Stack, root: httpx.Client) -> Org:
    return make_org(stack, root, "Carts")


def run(stack: Stack, *words: str | Path, code: int = 0) -> Result:
    """A command, as the first Owner."""
    done = CliRunner().invoke(app, [*map(str, words), "--home", str(stack.home)])
    assert done.exit_code == code, done.output
    return done


def said(stack: Stack, *words: str | Path, code: int = 0) -> str:
    """All that a command prints."""
    return run(stack, *words, code=code).output


def tokens(org: Org) -> list[dict[str, Any]]:
    """The organisation's enrollment tokens, newest first."""
    listed = ok(org.root.get("/api/enrollment-tokens", params={"orgId": org.id}))
    found: list[dict[str, Any]] = listed["enrollmentTokens"]
    return found


def refused(org: Org, key: str) -> CallError:
    """The answer to a device that enrolls in vain."""
    with pytest.raises(CallError) as told:
        org.device(pre_shared_key=key)
    return told.value


def test_organisations_are_created(stack: Stack, root: httpx.Client) -> None:
    """A reseller, and a school below it by its code; what the server refuses is told in its
    words, with the field."""
    above, below = (f"cli-{uuid4().hex[:8]}" for _ in range(2))
    made = run(stack, "orgs", "create", above, "--name", "Nordlicht", "--reseller")
    assert f"Nordlicht is a reseller with the code {above}" in made.output
    assert f"--parent {above}" in made.stderr
    made = run(
        stack, "orgs", "create", below, "--name", "Linden School", "--parent", above, "--json"
    )
    school = json.loads(made.stdout)
    reseller = ok(root.get(f"/api/tenants/{school['parentId']}"))
    assert (reseller["code"], reseller["kind"]) == (above, "reseller")
    assert (school["code"], school["kind"], school["name"]) == (below, "org", "Linden School")
    made = run(
        stack, "orgs", "create", f"{below}-2", "--name", "Oak", "--parent", school["parentId"]
    )
    assert f"evergreen enrollment-tokens create --org {below}-2" in made.stderr
    create = ("orgs", "create")
    assert "code: already in use" in said(stack, *create, below, "--name", "Other", code=2)
    assert "code: " in said(stack, *create, "Not a code", "--name", "Other", code=2)
    assert "code: is required" in said(stack, *create, "", "--name", "Other", code=2)
    assert "name: " in said(stack, *create, f"{below}-3", "--name", " ", code=2)
    under = (*create, f"{below}-3", "--name", "Other", "--parent")
    assert "no tenant with the code or id nowhere" in said(stack, *under, "nowhere", code=2)
    assert "parentId: " in said(stack, *under, below, code=2)
    codes = {one["code"] for one in ok(root.get("/api/tenants"))["tenants"]}
    assert {above, below, f"{below}-2"} <= codes and f"{below}-3" not in codes


def test_a_cart_enrolls_with_the_files_of_its_token(stack: Stack, org: Org, tmp_path: Path) -> None:
    """The agent starts from them, checks its policy with the key in them, and comes into the
    group with the labels; the key is shown once, and after as many devices it admits no more."""
    # A key of the school's own: that of the installation would not do.
    run(stack, "keys", "rotate", "policies", "--org", org.code)
    version = str(org.publish()["version"])
    run(stack, "groups", "create", "cart-3", "--org", org.id)
    directory = tmp_path / "image" / "agent"
    made = run(
        stack, _TOKENS, "create", "--org", org.code, "--name", "Cart 3", "--max-uses", "2",
        "--group", "cart-3", "--label", "room=214", "--label", "note=a = b", "--expires", "30d",
        "--agent-config", directory,
    )  # fmt: skip
    assert _KEY.fullmatch(made.stdout)
    key = made.stdout.strip()
    assert "It is shown this once" in made.stderr
    assert f"warning: agent.yaml names {stack.url}" in made.stderr
    assert key not in made.stderr
    assert {path.name for path in directory.iterdir()} == {"agent.yaml", "policy-public.pem"}
    assert (directory / "agent.yaml").stat().st_mode & 0o777 == 0o600
    config = read_config(directory / "agent.yaml")
    assert (config.backend_url, config.pre_shared_key) == (stack.url, key)
    assert config.policy_public_key.parent == Path("/etc/evergreen/agent")
    pinned = directory / config.policy_public_key.name
    (token,) = tokens(org)
    assert pinned.read_text() == said(stack, "keys", "pem", token["policyKeyId"])
    agent = org.device(pre_shared_key=config.pre_shared_key, pinned_key=pinned)
    assert agent.version == version
    device = ok(org.root.get(f"/api/registrations/{agent.device_id}"))
    assert device["labels"] == {"room": "214", "note": "a = b"}
    assert device["groupIds"] == token["groupIds"]
    assert agent.hardware.serial in said(stack, "groups", "members", "cart-3", "--org", org.id)
    ends = datetime.fromisoformat(token["expiresAt"]) - datetime.now(UTC)
    assert timedelta(days=29, hours=23) < ends <= timedelta(days=30)

    header, line = said(stack, _TOKENS, "list", "--org", org.code).splitlines()
    assert header.split() == ["ORG", "NAME", "USES", "EXPIRES", "(UTC)", "STATUS", "GROUPS", "ID"]
    expires = token["expiresAt"][:19].replace("T", " ")
    assert re.split(r" {2,}", line) == [
        org.code, "Cart 3", "1/2", expires, "active", "cart-3", token["id"],
    ]  # fmt: skip
    org.device(pre_shared_key=key, pinned_key=pinned)
    assert refused(org, key).status == 403
    assert "2/2" in said(stack, _TOKENS, "list", "--org", org.code)
    assert "Cart 3" not in said(stack, _TOKENS, "list", "--active", "--org", org.code)
    # Nothing has the secret any more.
    secret = key.partition(":")[2]
    shown = said(stack, _TOKENS, "show", "Cart 3", "--org", org.code)
    assert json.loads(shown) == tokens(org)[0]
    for text in (shown, said(stack, _TOKENS, "list", "--json")):
        assert secret not in text


def test_a_revoked_token_admits_no_device(stack: Stack, root: httpx.Client) -> None:
    """After a question, which nobody answers here; a device that has enrolled stays."""
    org = make_org(stack, root, "Revoking")
    first, second = (
        run(stack, _TOKENS, "create", "--org", org.id, "--name", "Carts").stdout.strip()
        for _ in range(2)
    )
    agent = org.device(pre_shared_key=first)
    newest, oldest = tokens(org)
    named = ("--org", org.code)
    assert "2 of what you see have the name Carts" in said(
        stack, _TOKENS, "revoke", "Carts", "--yes", *named, code=2
    )
    asked = said(stack, _TOKENS, "revoke", oldest["id"], code=2)
    assert "nobody can be asked here; give --yes. Nothing was changed" in asked
    assert {one["status"] for one in tokens(org)} == {"active"}
    done = said(stack, _TOKENS, "revoke", oldest["id"], "--yes")
    assert f"Carts of {org.code} is revoked; devices that have enrolled with it stay." in done
    assert refused(org, first).status == 403
    agent.report_state()
    # The name is now that of the one that works.
    assert json.loads(said(stack, _TOKENS, "show", "Carts", *named))["id"] == newest["id"]
    org.device(pre_shared_key=second)
    said(stack, _TOKENS, "revoke", "Carts", "--yes", *named)
    assert refused(org, second).status == 403
    assert "is revoked already" in said(stack, _TOKENS, "revoke", oldest["id"])


def test_an_expired_token_admits_no_device(stack: Stack, org: Org) -> None:
    """At the time that was given."""
    ends = datetime.now(UTC) + timedelta(seconds=8)
    made = run(
        stack, _TOKENS, "create", "--org", org.id, "--name", "Today", "--expires", ends.isoformat()
    )
    key = made.stdout.strip()
    pem = said(stack, "keys", "pem", tokens(org)[0]["policyKeyId"])
    org.device(pre_shared_key=key, pinned_key=pem)

    def line() -> str:
        listed = said(stack, _TOKENS, "list", "--org", org.id)
        return next(one for one in listed.splitlines() if "  Today  " in one)

    until(lambda: "expired" in line(), PATIENCE, "it does not expire", 1)
    assert refused(org, key).status == 403


def test_all_that_a_token_carries(stack: Stack, root: httpx.Client, tmp_path: Path) -> None:
    """Serial numbers, approval, expected devices alone, and the key for policies."""
    org = make_org(stack, root, "Careful")
    first = org.enrollment_token()["policyKeyId"]
    run(stack, "keys", "rotate", "policies", "--org", org.code)
    serials = [f"TC-{uuid4().hex[:8].upper()}" for _ in range(3)]
    file = tmp_path / "serials"
    file.write_text(f"{serials[1]}\n\n {serials[2]}\n")
    create = (_TOKENS, "create", "--org", org.code, "--json", "--name")
    made = run(
        stack, *create, "Listed", "--serial", serials[0], "--from-file", file,
        "--require-approval", "--policy-key", first,
    )  # fmt: skip
    token = json.loads(made.stdout)
    assert (token["serials"], token["requireApproval"]) == (serials, True)
    assert token["policyKeyId"] == first
    assert (token["maxUses"], "any number of devices" in made.stderr) == (0, True)
    agent = org.agent(hardware=Hardware(serial=serials[2]), pre_shared_key=token["preSharedKey"])
    with pytest.raises(CallError, match="AWAITING_APPROVAL"):
        agent.enroll()
    assert "SERIAL_NOT_LISTED" in str(refused(org, token["preSharedKey"]))
    token = json.loads(run(stack, *create, "Expected", "--only-expected").stdout)
    assert token["onlyExpected"] and token["policyKeyId"] != first
    assert refused(org, token["preSharedKey"]).status == 403


def test_an_admin_of_another_organisation_sees_nothing(
    stack: Stack, root: httpx.Client, org: Org, tmp_path: Path
) -> None:
    """Neither the token nor its organisation, by name or id; and revokes and creates nothing."""
    other = make_org(stack, root, "Elsewhere")
    address = f"admin-{uuid4().hex[:8]}@school.example"
    user = {"email": address, "role": "Admin", "tenantId": other.id, "password": PASSWORD}
    ok(root.post("/api/users", json=user))
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    admin = ("--email", address, "--password-file", file)
    run(stack, _TOKENS, "create", "--org", org.id, "--name", "Not yours")
    (token,) = [one for one in tokens(org) if one["name"] == "Not yours"]
    # The only organisation that an Admin sees needs no name.
    mine = run(stack, _TOKENS, "create", "--name", "Mine", *admin)
    assert mine.stdout.startswith(f"{other.code}:")
    listed = said(stack, _TOKENS, "list", *admin)
    assert "Mine" in listed and "Not yours" not in listed
    for name in (token["id"], "Not yours"):
        for verb in ("show", "revoke"):
            answer = said(stack, _TOKENS, verb, name, *admin, code=2)
            assert f"you see no enrollment token with the name or id {name}" in answer
    before = len(tokens(org))
    for place in (org.id, org.code):
        answer = said(stack, _TOKENS, "create", "--org", place, "--name", "X", *admin, code=2)
        assert f"you see no organisation with the code or id {place}" in answer
    listed = said(stack, _TOKENS, "list", "--org", org.id, *admin, code=2)
    assert "no such organisation" in listed
    run(stack, "groups", "create", "theirs", "--org", org.id)
    group = said(stack, _TOKENS, "create", "--name", "X", "--group", "theirs", *admin, code=2)
    assert "no group has the alias theirs" in group
    assert len(tokens(org)) == before
    assert {one["status"] for one in tokens(org) if one["id"] == token["id"]} == {"active"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--label", "room"), "--label is KEY=VALUE, as room=214, not 'room'"),
        (("--label", "a=1", "--label", "a=2"), "--label: a is given twice"),
        (("--label", "Room=214"), "labels.Room: keys have small letters"),
        (("--label", "room="), "labels.room: must not be blank"),
        (("--expires", "soon"), "--expires is how long from now"),
        (("--expires", "0d"), "expiresAt: must be in the future"),
        (("--expires", "2020-01-01"), "expiresAt: must be in the future"),
        (("--expires", "4000d"), "expiresAt: must be at most 3653 days from now"),
        (("--max-uses", "1000001"), "maxUses: "),
        (("--group", "no-such"), "no group has the alias no-such"),
        (("--group", "filtered"), "groupIds[0]: is a group with a filter"),
        (("--serial", "Default string"), "serials[0]: is a placeholder"),
        (("--serial", "TC-1", "--only-expected"), "serials: must be empty with onlyExpected"),
        (("--policy-key", "other"), "policyKeyId: is no policy key"),
        (("--backend-url", "http://mdm.example"), "--backend-url must be an address like https"),
        (("--backend-url", "https://[mdm"), "--backend-url must be an address like https"),
        (("--from-file", "no-such-file"), "no-such-file cannot be read"),
    ],
)
def test_what_is_wrong_creates_nothing(
    stack: Stack, org: Org, tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    """No token, no file; the error names the option or the field."""
    if "filtered" in words:
        run(stack, "groups", "create", "filtered", "--filter", "labels.a = 1", "--org", org.id)
    before = len(tokens(org))
    directory = tmp_path / "agent"
    create = (_TOKENS, "create", "--org", org.id, "--name", "Bad", "--agent-config", directory)
    answer = run(stack, *create, *words, code=2)
    assert told in answer.output
    assert answer.stdout == ""
    assert not directory.exists() or not list(directory.iterdir())
    assert len(tokens(org)) == before


def test_files_are_never_overwritten(stack: Stack, org: Org, tmp_path: Path) -> None:
    """Nor is anything created at the server then; a directory that cannot be is told, too."""
    before = len(tokens(org))
    create = (_TOKENS, "create", "--org", org.id, "--name", "Again", "--agent-config")
    for name in ("agent.yaml", "policy-public.pem"):
        directory = tmp_path / name
        directory.mkdir()
        (directory / name).write_text("mine")
        answer = said(stack, *create, directory, code=2)
        assert f"{directory / name} is there already, and is not overwritten" in answer
        assert [path.name for path in directory.iterdir()] == [name]
        assert (directory / name).read_text() == "mine"
    dangling = tmp_path / "dangling"
    dangling.mkdir()
    (dangling / "agent.yaml").symlink_to(tmp_path / "elsewhere")
    assert "is there already" in said(stack, *create, dangling, code=2)
    assert not (tmp_path / "elsewhere").exists()
    assert "is no directory" in said(stack, *create, tmp_path / "agent.yaml/agent.yaml", code=2)
    assert len(tokens(org)) == before
    answer = said(stack, *create, tmp_path / "new", "--backend-url", "https://mdm.school.example/")
    assert "warning" not in answer
    config = read_config(tmp_path / "new" / "agent.yaml")
    assert config.backend_url == "https://mdm.school.example"
    without = (_TOKENS, "create", "--org", org.id, "--name", "Again", "--backend-url")
    told = said(stack, *without, "https://mdm.example", code=2)
    assert "--backend-url is for the files of --agent-config" in told


def test_devices_that_wait_are_approved_and_rejected(stack: Stack, root: httpx.Client) -> None:
    """By their ids, as the list of those that wait shows them; one that is unknown is named."""
    org = make_org(stack, root, "Waiting")
    create = (_TOKENS, "create", "--org", org.code, "--name", "Waiting", "--require-approval")
    key = run(stack, *create).stdout.strip()
    agents = {
        name: org.agent(hardware=Hardware(serial=f"{name}-{uuid4().hex[:8]}"), pre_shared_key=key)
        for name in "ab"
    }
    for agent in agents.values():
        with pytest.raises(CallError):
            agent.enroll()
    waiting = ("devices", "list", "--org", org.code, "--status", "pending", "--json")
    rows = [json.loads(line) for line in run(stack, *waiting).stdout.splitlines()]
    ids = {row["serial"][0]: row["id"] for row in rows}
    nobody = str(uuid4())
    told = said(stack, "devices", "approve", ids["a"], nobody, code=2)
    assert f"{agents['a'].hardware.serial} is approved" in told
    assert f"{nobody}: " in told
    assert "is rejected" in said(stack, "devices", "reject", ids["b"])
    agents["a"].enroll()
    with pytest.raises(CallError):
        agents["b"].enroll()
    assert run(stack, *waiting).stdout == ""
    said(stack, "devices", "allow-reenrollment", ids["b"])
    agents["b"].enroll()
