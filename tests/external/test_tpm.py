"""A TPM (swtpm) goes all the way with the example client, and the refusals of a real TPM."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.world import Org, make_org, ok
from tests.external import tpm as software
from tests.external.tpm import SoftwareTpm
from tests.fakes.agent import Agent
from tests.fakes.boot import Boot
from tests.support.paths import ROOT
from tests.support.stack import Stack

CLIENT = ROOT / "docs/examples/attest.py"


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    with software.running(tmp_path_factory.mktemp("tpm")) as found:
        yield found


@pytest.fixture(scope="module")
def other_tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    with software.running(tmp_path_factory.mktemp("tpm")) as found:
        yield found


@pytest.fixture(scope="module")
def org(stack: Stack) -> Iterator[Org]:
    with stack.first_owner() as root:
        yield make_org(stack, root, "With TPMs")


def attested(
    tpm: SoftwareTpm, agent: Agent, state: Path, stack: Stack, log: bytes | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the example client for a device."""
    state.mkdir(exist_ok=True)
    token = state / "token"
    token.write_text(agent.device_token)
    command = [sys.executable, str(CLIENT), "--url", stack.url, "--ca-file", str(stack.ca_file)]
    command += ["--device-id", str(agent.device_id), "--token-file", str(token)]
    command += ["--state", str(state), "--chain", str(tpm.issuer)]
    written = state / "log"
    if log is not None:
        written.write_bytes(log)
    command += ["--event-log", str(written)]
    return subprocess.run(
        command, env=tpm.environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_a_tpm_goes_all_the_way(
    stack: Stack, org: Org, tpm: SoftwareTpm, other_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    """Refused before its maker's root is added; then known, at each boot anew; and one device's."""
    agent = org.device()
    refused = attested(tpm, agent, tmp_path / "device", stack)
    assert "refused: EK_UNTRUSTED" in refused.stderr
    roots = [
        ok(org.root.post("/api/tpm-roots", json={"certificatePem": maker.root_pem}))
        for maker in (tpm, other_tpm)
    ]
    assert "swtpm-localca-rootca" in roots[0]["subject"]
    # A certificate that never ends, as these, is one.
    assert roots[0]["notAfter"].startswith("9999-")
    for boot in (1, 2):
        done = attested(tpm, agent, tmp_path / "device", stack)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["verdict"] == "KNOWN_TPM", (boot, told)
        # The machine boots something else.
        tpm.run("tpm2_pcrextend", f"4:sha256={boot:064x}")
    shown = ok(org.auditor.get(f"/api/devices/{agent.device_id}/attestation"))
    assert (shown["verdict"], shown["bound"]) == ("KNOWN_TPM", True)
    history = ok(org.auditor.get(f"/api/devices/{agent.device_id}/attestations"))["verdicts"]
    first, second = history[1]["pcrs"], history[0]["pcrs"]
    assert {index for index in first if first[index] != second[index]} == {"4"}
    thief = org.device()
    stolen = attested(tpm, thief, tmp_path / "thief", stack)
    assert "refused: EK_OF_ANOTHER_DEVICE" in stolen.stderr
    moved = attested(other_tpm, agent, tmp_path / "moved", stack)
    assert "refused: BOUND_TO_ANOTHER_TPM" in moved.stderr
    # A copied disk: the client thinks that it is bound, and another TPM signs.
    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / "bound").touch()
    done = attested(other_tpm, agent, copied, stack)
    assert json.loads(done.stdout)["reasons"] == ["AK_NOT_PINNED"]
    reset = f"/api/devices/{agent.device_id}/tpm-binding:reset"
    assert ok(org.admin.post(reset, json={}))["bound"] is False
    done = attested(other_tpm, agent, tmp_path / "moved", stack)
    assert json.loads(done.stdout)["verdict"] == "KNOWN_TPM", done.stderr


def test_a_measured_boot_is_verified(stack: Stack, org: Org, tmp_path: Path) -> None:
    """A TPM measures it, its values are learned and made active; a changed log, and another image,
    are found.
    """
    agent = org.device()
    boot = Boot()
    state = tmp_path / "device"
    with software.running(tmp_path / "tpm") as tpm:
        ok(org.root.post("/api/tpm-roots", json={"certificatePem": tpm.root_pem}))
        for event in boot.events:
            tpm.run("tpm2_pcrextend", f"{event.pcr}:sha256={event.digest.hex()}")

        def told(log: bytes) -> tuple[str, list[str]]:
            done = attested(tpm, agent, state, stack, log)
            assert done.returncode == 0, done.stderr
            answer = json.loads(done.stdout)
            return answer["verdict"], answer["reasons"]

        assert told(boot.log()) == ("KNOWN_TPM", ["NO_REFERENCE_VALUES"])
        for kind in ("FIRMWARE", "OS_IMAGE"):
            learn = f"/api/devices/{agent.device_id}/attestation:learn"
            value = ok(org.admin.post(learn, json={"name": kind, "kind": kind}))
            ok(org.admin.patch(f"/api/reference-values/{value['id']}", json={"state": "ACTIVE"}))
        assert told(boot.log()) == ("VERIFIED", [])
        changed = Boot(firmware=b"firmware 6.6").log()
        assert told(changed) == ("FAILED", ["LOG_MISMATCH"])
        tpm.run("tpm2_pcrextend", f"11:sha256={'ab' * 32}")
        assert told(boot.log()) == ("KNOWN_TPM", ["OS_IMAGE_UNKNOWN"])


@pytest.mark.parametrize(
    ("kind", "attributes", "reason"),
    [
        ("ecc256:ecdsa-sha256:null", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign",
         "AK_ATTRIBUTES"),
        ("rsa2048:rsassa-sha1:null",
         "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign",
         "AK_SCHEME"),
    ],
)  # fmt: skip
def test_a_tpms_key_that_would_sign_anything_is_refused(
    stack: Stack, org: Org, tpm: SoftwareTpm, kind: str, attributes: str, reason: str
) -> None:
    """A TPM makes it, and it is no key for evidence all the same."""
    agent = org.device()
    tpm.run("tpm2_createek", "-G", "rsa", "-c", "k.ctx", "-u", "k.pub")
    tpm.run("tpm2_flushcontext", "-t")
    tpm.run("tpm2_createprimary", "-C", "e", "-G", kind, "-a", attributes, "-c", "a.ctx")
    tpm.run("tpm2_readpublic", "-c", "a.ctx", "-o", "a.pub")
    tpm.run("tpm2_flushcontext", "-t")
    from base64 import b64encode  # noqa: PLC0415

    body = {
        "ek_public": b64encode((tpm.folder / "k.pub").read_bytes()[2:]).decode(),
        "ak_public": b64encode((tpm.folder / "a.pub").read_bytes()[2:]).decode(),
    }
    with stack.client(agent.device_token) as client:
        told = ok(client.post("/api/v1/devices/tpm-enrollments", json=body))
    assert (told["id"], told["reasons"]) == ("", [reason])
