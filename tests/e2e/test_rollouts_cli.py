"""`evergreen rollouts` and the commands that write policies, as an administrator uses them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import httpx
from typer.testing import CliRunner

from cli.main import app
from tests.e2e.world import PASSWORD, Org, make_org, ok
from tests.fakes.agent.agent import Agent, Hardware
from tests.support.stack import PATIENCE, Stack, until

DEVICES = 4


def run(stack: Stack, org: Org, *words: str, code: int = 0) -> str:
    """What a command prints, with what it says beside it."""
    done = CliRunner().invoke(app, [*words, "--org", org.code, "--home", str(stack.home)])
    assert done.exit_code == code, done.output
    return done.output


def written(path: Path, homepage: str) -> str:
    """A file with a bundle."""
    security = {"selinux_enforce": True, "usbguard": False}
    path.write_text(json.dumps({"browser": {"homepage": homepage}, "security": security}))
    return str(path)


def asks(stack: Stack, device: Agent) -> None:
    """A device asks for its policy as one does that cannot apply what it gets."""
    with stack.client(device.device_token) as client:
        client.post("/api/v1/devices/policy", json={"current_version": "1"})


def test_a_policy_is_written_and_published(
    stack: Stack, root: httpx.Client, tmp_path: Path
) -> None:
    """From a file; every command says whether devices get it."""
    org = make_org(stack, root, "Written")
    file = written(tmp_path / "bundle.json", "https://one.example")
    assert run(stack, org, "policies", "create", "Base", "--from-file", file) == (
        "Base is not published yet.\n"
    )
    again = run(stack, org, "policies", "create", "Base", "--from-file", file, code=2)
    assert "there is a policy called Base" in again
    assert run(stack, org, "policies", "publish", "Base") == "Base v1 is in force.\n"
    written(tmp_path / "bundle.json", "https://two.example")
    said = run(stack, org, "policies", "edit", "Base", "--from-file", file, "--publish")
    assert said == "Base v2 is in force.\n"
    shown = json.loads(run(stack, org, "policies", "show", "Base", "--bundle"))
    assert shown["browser"] == {"homepage": "https://two.example"}
    assert "v3 is in force" in run(stack, org, "policies", "rollback", "Base", "1")
    assert "as version 1" in run(stack, org, "policies", "versions", "Base")
    assert "say what to change" in run(stack, org, "policies", "edit", "Base", code=2)
    said = run(stack, org, "policies", "edit", "Base", "--publish", code=2)
    assert "`policies publish` publishes a policy as it is" in said
    for version in ("99", "v1"):
        said = run(stack, org, "policies", "rollback", "Base", version, code=2)
        assert "`policies versions` lists" in said
    assert "unpublished" not in run(stack, org, "policies", "diff", "Base")
    same = "Base has no unpublished changes"
    assert same in run(stack, org, "rollouts", "create", "Base")
    run(stack, org, "rollouts", "cancel", "Base")
    run(stack, org, "rollouts", "create", "Base", "--soak", "2h")
    plan = json.loads(run(stack, org, "rollouts", "show", "Base", "--json"))["plan"]
    batches = [(batch["percent"], batch["soak"]) for batch in plan["batches"]]
    assert batches == [(1, "2h"), (10, "2h"), (50, "2h"), (100, "2h")]
    run(stack, org, "rollouts", "cancel", "Base")
    run(stack, org, "policies", "edit", "Base", "--from-file", file)
    assert "not in it: unpublished changes" in run(stack, org, "policies", "diff", "Base")
    file = str(tmp_path / "none.json")
    said = run(stack, org, "policies", "edit", "Base", "--from-file", file, code=2)
    assert "none.json cannot be read: No such file" in said
    assert "in force" in run(stack, org, "policies", "delete", "Base", "--yes", code=2)
    assert "give --yes" in run(stack, org, "policies", "delete", "Base", code=2)
    run(stack, org, "policies", "withdraw", "Base", "--yes")
    assert run(stack, org, "policies", "delete", "Base", "--yes") == "Base is deleted.\n"


def test_a_rollout_stops_and_is_taken_back(
    stack: Stack, root: httpx.Client, tmp_path: Path
) -> None:
    """It says which devices did not apply the version, by serial number, and what to do."""
    org = make_org(stack, root, "Stopped")
    file = written(tmp_path / "bundle.json", "https://one.example")
    run(stack, org, "policies", "create", "Base", "--from-file", file, "--publish")
    serials = {f"R{number}-{uuid4().hex[:8]}" for number in range(DEVICES)}
    devices = [org.device(hardware=Hardware(serial=one)) for one in serials]
    written(tmp_path / "bundle.json", "https://two.example")
    simulate = ("policies", "simulate", "Base", "--from-file", file)
    until(
        lambda: f"of {DEVICES} devices" in run(stack, org, *simulate), PATIENCE, "no devices known"
    )
    run(stack, org, "policies", "edit", "Base", "--from-file", file)
    said = run(stack, org, "rollouts", "create", "Base", "--batches", "100", "--soak", "1h")
    assert "Base v2 is RUNNING\nbatch 1 of 1 (100 %), opened 20" in said
    assert "no device got it yet" in said
    again = run(stack, org, "rollouts", "create", "Base", code=2)
    assert "is being rolled out to these devices; cancel it, or give `supersede`" in again

    def stopped() -> bool:
        # What a delivery knows may be a second old: then it answers that nothing is new.
        for device in devices:
            asks(stack, device)
        return "STOPPED" in run(stack, org, "rollouts", "list")

    until(stopped, PATIENCE, "it goes on", 0.5)
    said = run(stack, org, "rollouts", "show", "Base", "--devices", "failed")
    assert f"(NOT_APPLIED: {DEVICES} of {DEVICES} devices did not apply it" in said
    assert "evergreen rollouts show Base --devices FAILED; then rollback" in said
    for serial in serials:
        assert f"{serial}  FAILED" in said
    as_json = run(stack, org, "rollouts", "show", "Base", "--devices", "failed", "--json")
    assert {json.loads(line)["state"] for line in as_json.splitlines()} == {"FAILED"}
    said = run(stack, org, "rollouts", "resume", "Base", code=2)
    assert "reason: is required" in said
    said = run(stack, org, "rollouts", "rollback", "Base", "--reason", "a wrong page")
    assert "Base v2 is ROLLED_BACK (by an administrator: a wrong page)" in said
    back = f"{DEVICES} devices took back what is in force"

    def returned() -> bool:
        for device in devices:
            asks(stack, device)
        return back in run(stack, org, "rollouts", "show", "Base")

    until(returned, PATIENCE, "they are not back", 0.5)
    assert "never in force" in run(stack, org, "policies", "versions", "Base")
    assert "ROLLED_BACK" not in run(stack, org, "rollouts", "list")


def test_a_second_person_approves_and_days_are_frozen(
    stack: Stack, root: httpx.Client, tmp_path: Path
) -> None:
    """Each command says what the version waits for."""
    org = make_org(stack, root, "Approved")
    file = written(tmp_path / "bundle.json", "https://one.example")
    email = f"ann-{uuid4().hex[:8]}@school.example"
    user = {"email": email, "role": "Admin", "tenantId": org.id, "password": PASSWORD}
    ok(root.post("/api/users", json=user))
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    ann = ("--email", email, "--password-file", str(password))
    wrong = ("--approval", "--freeze", "Exams=2027-06-03")
    assert "a freeze is such as" in run(stack, org, "rollouts", "settings", *wrong, code=2)
    assert "approves: no" in run(stack, org, "rollouts", "settings")
    said = run(stack, org, "rollouts", "settings", "--approval")
    assert "a second person approves: yes" in said
    said = run(stack, org, "policies", "create", "Base", "--from-file", file, "--publish")
    assert "Base is given to devices by a rollout: evergreen rollouts show Base" in said
    said = run(stack, org, "rollouts", "show", "Base")
    assert "AWAITING_APPROVAL" in said
    assert "somebody else approves it: evergreen rollouts approve Base" in said
    assert "somebody else" in run(stack, org, "rollouts", "approve", "Base", code=2)
    assert "Base v1 is" in run(stack, org, "rollouts", "approve", "Base", *ann)
    said = run(stack, org, "rollouts", "settings", "--no-approval", *ann, code=2)
    assert "an Owner has to agree" in said
    settings = ("rollouts", "settings")
    run(stack, org, *settings, "--freeze", "Exams=2027-06-03..2027-06-14")
    said = run(stack, org, *settings, "--freeze", "Exams=2027-06-03..2027-06-15", "--json")
    (freeze,) = json.loads(said)["freezes"]
    assert freeze["lastDay"] == "2027-06-15"
    said = run(stack, org, *settings, "--unfreeze", "Exmas", code=2)
    assert "no freeze is called Exmas" in said
    said = run(stack, org, *settings, "--no-approval", "--unfreeze", "Exams")
    assert "frozen" not in said


def test_mistakes_are_named(stack: Stack, root: httpx.Client, tmp_path: Path) -> None:
    """Before anything is changed."""
    org = make_org(stack, root, "Mistaken")
    file = written(tmp_path / "bundle.json", "https://one.example")
    run(stack, org, "policies", "create", "Base", "--from-file", file)
    create = ("rollouts", "create", "Base")
    for words, said in (
        (("rollouts", "create", "Bsae"), "no policy is called Bsae"),
        ((*create, "--batches", "0,10"), "0: --batches takes percents from 1 to 100"),
        ((*create, "--batches", "50,10"), "must be above that of the batch before"),
        ((*create, "--batches", "10", "--soak", "2x"), "must be a time such as 30m"),
        ((*create, "--pilot", "none"), "no group has the alias none"),
        ((*create, "--window", "at night"), "must be such as Mon-Fri"),
        (("rollouts", "show", "Base"), "no rollout Base"),
        (("policies", "simulate"), "name a policy, or give"),
    ):
        assert said in run(stack, org, *words, code=2).replace("\n", " ")
    assert run(stack, org, "rollouts", "list", "--json") == ""


def test_publishes_come_by_the_default_plan(
    stack: Stack, root: httpx.Client, tmp_path: Path
) -> None:
    """That is said in the settings, simulated, and passed by; a file has all that a plan may have.
    A freeze says what it does not hold."""
    org = make_org(stack, root, "Usual")
    file = written(tmp_path / "bundle.json", "https://one.example")
    run(stack, org, "policies", "create", "Base", "--from-file", file)
    plan = tmp_path / "plan.json"
    batch = {"name": "first", "percent": 25, "soak": "2h"}
    plan.write_text(json.dumps({"batches": [batch], "maxPerMinute": 30}))
    said = run(stack, org, "rollouts", "settings", "--default-plan", str(plan))
    assert "publishes without a plan: first for 2h, everybody for 1h; 30 devices a minute" in said
    said = run(stack, org, "policies", "simulate", "Base")
    assert "it would come by the default plan in batches, at the earliest:\n  first: 0 dev" in said
    said = run(stack, org, "policies", "simulate", "Base", "--plan", "careful")
    assert "it would come in batches, at the earliest:\n  1 %: 0 devices, 20" in said
    said = run(stack, org, "policies", "publish", "Base")
    assert "Base is given to devices by a rollout" in said
    (_, line) = run(stack, org, "policies", "versions", "Base").splitlines()
    assert line.endswith("in a rollout")
    assert "  in a rollout  " in run(stack, org, "policies", "list")
    said = run(stack, org, "rollouts", "show", "Base")
    assert "Base v1 is RUNNING\nbatch 1 of 2 (first)" in said
    assert "at most 30 devices a minute; 0 without it asked within a day" in said
    run(stack, org, "policies", "publish", "Base", "--now")
    assert "batch 1 of 1 (everybody)" in run(stack, org, "rollouts", "show", "Base")
    assert "batch" not in run(stack, org, "rollouts", "cancel", "Base")
    assert "in a rollout" not in run(stack, org, "policies", "versions", "Base")
    create = ("rollouts", "create", "Base", "--batches", "50", "--max-per-minute", "5")
    assert "at most 5 devices a minute" in run(stack, org, *create)
    run(stack, org, "rollouts", "cancel", "Base")
    said = run(stack, org, "rollouts", "settings", "--default-plan", "none")
    assert "publishes without a plan: to all devices at once" in said
    assert "none.json: a plan is careful, now, or a file with one as JSON" in run(
        stack, org, "rollouts", "settings", "--default-plan", str(tmp_path / "none.json"), code=2
    )
    day = datetime.now(UTC).date()
    freeze = f"Exams={day - timedelta(days=1)}..{day + timedelta(days=1)}"
    said = run(stack, org, "rollouts", "settings", "--freeze", freeze)
    assert "what tenants above\npublish reaches the devices all the same" in said
    assert "frozen now (Exams): without a plan it is refused" in run(
        stack, org, "policies", "simulate", "Base"
    )
