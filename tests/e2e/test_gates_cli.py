"""`evergreen gates`, as an administrator uses it."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import httpx
from typer.testing import CliRunner

from cli.main import app
from tests.e2e.test_attestation import attest
from tests.e2e.world import Org, make_org, ok
from tests.fakes.agent.agent import Hardware
from tests.support.attestation import CORPUS
from tests.support.stack import PATIENCE, Stack, until

LARGE = [f"https://extensions.example/{number:03}" for number in range(100)]


def run(stack: Stack, org: Org, *words: str, code: int = 0) -> str:
    """What a command prints, with what it says beside it."""
    done = CliRunner().invoke(app, [*words, "--org", org.id, "--home", str(stack.home)])
    assert done.exit_code == code, done.output
    return done.output


def today() -> str:
    return str(datetime.now(UTC).date())


def test_a_gate_is_previewed_enforced_and_ended(stack: Stack, root: httpx.Client) -> None:
    """By the number of the preview; the device has the other policy, packed by gzip, and its own
    one back. What is wrong changes nothing."""
    org = make_org(stack, root, "Gated")
    run(stack, org, "groups", "create", "quarantine", "--name", "Quarantine")
    org.publish({"browser": {"homepage": "https://normal", "extensions": LARGE}})
    other = {"browser": {"homepage": "https://other", "extensions": LARGE}}
    ok(
        org.owner.post(
            "/api/policies", json={"name": "Quarantine", "orgId": org.id, "bundle": other}
        )
    )
    run(stack, org, "policies", "target", "Quarantine", "--group", "quarantine", "--publish")
    agent = org.device(hardware=Hardware(serial=f"G-{org.id[:8]}"))
    evidence = CORPUS["agent-m7-allbanks"]["body"]["evidence"]
    with stack.client(agent.device_token) as client:
        # Evidence that another device has sent, or that nobody asked for.
        attest(client, agent, evidence | {"nonce": ""})
    ask = ("gates", "preview", "--at-least", "KNOWN_TPM")
    until(lambda: "FAILED" in run(stack, org, *ask), PATIENCE, "no verdict is known")
    said = run(stack, org, *ask)
    assert "1 of 1 devices in use fall short of KNOWN_TPM, 0 still have time" in said
    assert agent.hardware.serial in said
    (line,) = run(stack, org, *ask, "--json").splitlines()
    assert json.loads(line)["deviceId"] == agent.device_id
    enforce = ("gates", "enforce", "--otherwise", "Quarantine", "--at-least", "KNOWN_TPM")
    share = ("--max-percent", "100")
    assert "number to confirm is 1" in run(stack, org, *enforce, *share, "--dry-run")
    for wrong, text in (
        (("--yes", *share), "--yes needs --expect 1"),
        (("--yes", "--expect", "2", *share), "touches 1 object, not 2"),
        (("--yes", "--expect", "1"), "maxPercent: is required"),
        (("--yes", "--expect", "1", "--max-percent", "99"), "more than 99 percent"),
        (("--yes", "--expect", "1", *share, "--group", "none"), "no group has the alias none"),
    ):
        assert text in run(stack, org, *enforce, *wrong, code=2)
    assert run(stack, org, "gates", "show").startswith("OFF")
    said = run(stack, org, *enforce, *share, "--expect", "1", "--yes")
    assert "ENFORCE: at least KNOWN_TPM, 24 hours to send evidence" in said
    assert "otherwise Quarantine v" in said
    assert "1 device restricted" in said

    def has(homepage: str) -> bool:
        agent.pull()
        document = agent.document or {}
        return bool((document.get("browser") or {}).get("homepage") == homepage)

    until(lambda: has("https://other"), PATIENCE, "the device keeps its policy", pause=0.3)
    said = run(stack, org, "policies", "explain", agent.hardware.serial)
    assert "its boot is FAILED, and KNOWN_TPM is asked for" in said
    assert "attestation gate of all devices: Quarantine v" in said

    def listed() -> bool:
        found = ok(org.owner.get("/api/devices", params={"restricted": "true"}))["devices"]
        return [one["id"] for one in found] == [agent.device_id]

    until(listed, PATIENCE, "the list does not show it")
    assert json.loads(run(stack, org, "gates", "show", "--json"))["restrictedDevices"] == 1
    (_, line) = run(stack, org, "gates", "list", "--enforced").splitlines()
    assert line.split()[:9] == [
        org.code,
        "-",
        "ENFORCE",
        "KNOWN_TPM",
        "100",
        "%",
        "1",
        "-",
        today(),
    ]
    assert run(stack, org, "gates", "list", "--held", "--json") == ""
    # As the released agent gets it: the gateway passes on what the service packed.
    with stack.client(agent.device_token) as client:
        answer = client.post(
            "/api/v1/devices/policy",
            json={"current_version": ""},
            headers={"accept-encoding": "gzip"},
        )
        assert answer.headers["content-encoding"] == "gzip"
        assert ok(answer)["policy"]["browser"]["homepage"] == "https://other"
    said = run(stack, org, *enforce, *share, "--grace-hours", "0", "--expect", "1", "--yes")
    assert "ENFORCE: at least KNOWN_TPM, 0 hours" in said
    assert "OBSERVE" in run(stack, org, "gates", "observe", "--grace-hours", "2")
    until(lambda: has("https://normal"), PATIENCE, "the device keeps the other one", pause=0.3)
    assert run(stack, org, "gates", "off").startswith("OFF: at least KNOWN_TPM, 2 hours")
