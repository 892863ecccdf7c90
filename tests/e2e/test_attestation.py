"""Evidence of boots through the gateway: every case of the corpus, and what administrators see."""

from __future__ import annotations

from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization

from tests.e2e.test_audit_cli import evergreen
from tests.e2e.world import Org, make_org, ok
from tests.fakes.agent import Agent
from tests.fakes.tpm import Maker, Tpm, proof_of
from tests.support.attestation import CORPUS
from tests.support.stack import PATIENCE, Stack, until


@pytest.fixture(scope="module")
def org(stack: Stack, root: httpx.Client) -> Org:
    return make_org(stack, root, "Attested")


def b64(data: bytes) -> str:
    return b64encode(data).decode()


def attest(client: httpx.Client, agent: Agent, evidence: Any) -> dict[str, Any]:
    body = {"device_id": agent.device_id, "evidence": evidence}
    return ok(client.post("/api/v1/devices/attest", json=body))


def bind(org: Org, agent: Agent, tpm: Tpm, **certificates: Any) -> dict[str, Any]:
    """Binds a device to its TPM, and answers the verdict over evidence for a challenge."""
    asked = {"ek_public": b64(tpm.ek_public), "ak_public": b64(tpm.ak.public), **certificates}
    with org.stack.client(agent.device_token) as client:
        offer = ok(client.post("/api/v1/devices/tpm-enrollments", json=asked))
        blob, seed = b64decode(offer["credential_blob"]), b64decode(offer["encrypted_secret"])
        secret = tpm.give_away(blob, seed)
        assert secret is not None
        proof = {"proof": b64(proof_of(secret, agent.device_id))}
        path = f"/api/v1/devices/tpm-enrollments/{offer['id']}:activate"
        assert ok(client.post(path, json=proof))["bound"]
        nonce = b64decode(ok(client.post("/api/v1/devices/challenge", json={}))["nonce"])
        return attest(client, agent, tpm.evidence(nonce, agent.device_id))


def test_the_corpus_comes_to_its_verdicts_through_the_gateway(org: Org) -> None:
    """One device sends what is good, another one what is changed, forged or stolen."""
    honest, other = org.device(), org.device()
    with (
        org.stack.client(honest.device_token) as good,
        org.stack.client(other.device_token) as bad,
    ):
        for name, case in CORPUS.items():
            for body in case["before"]:
                attest(good, honest, body["evidence"])
            sender = (good, honest) if case["kind"] == "valid" else (bad, other)
            told = attest(*sender, case["body"]["evidence"])
            wanted = case["expect"]
            assert told["verdict"] == wanted["verdict"], (name, told)
            if wanted["reason"]:
                assert told["reasons"] == [wanted["reason"]], name
            elif name == "agent-m8-unmeasured":
                assert "PCR_UNMEASURED" in told["reasons"]
    verdicts = {
        device["deviceId"]: device["verdict"]
        for device in ok(org.auditor.get("/api/attestations"))["attestations"]
    }
    assert verdicts == {honest.device_id: "SELF_CONSISTENT", other.device_id: "FAILED"}


def test_administrators_see_verdicts_and_their_history(org: Org) -> None:
    """The latest with its registers, those before, a file, and an entry of the audit log."""
    silent, agent = org.device(), org.device()
    device = f"/api/devices/{agent.device_id}"
    assert ok(org.auditor.get(f"{device}/attestation"))["verdict"] == "NONE"
    evidence = CORPUS["agent-m7-allbanks"]["body"]["evidence"]
    with org.stack.client(agent.device_token) as client:
        # Another device may have sent it: then it is a replay, and shown as such.
        told = attest(client, agent, evidence)
        attest(client, agent, evidence | {"nonce": ""})
    shown = ok(org.auditor.get(f"{device}/attestation"))
    assert (shown["verdict"], shown["reasons"], shown["stale"]) == ("FAILED", ["NONCE_SIZE"], False)
    assert shown["serialNumber"] == agent.hardware.serial
    history = ok(org.auditor.get(f"{device}/attestations"))["verdicts"]
    assert [v["verdict"] for v in history] == ["FAILED", told["verdict"]]
    asked = {"verdict": "NONE", "pageSize": 500}
    none = ok(org.auditor.get("/api/attestations", params=asked))["attestations"]
    assert silent.device_id in {found["deviceId"] for found in none}
    file = org.auditor.get(
        "/api/attestations/export", params={"format": "csv", "verdict": "FAILED"}
    )
    header, *rows = file.text.splitlines()
    assert header.startswith("\ufeffserialNumber,deviceId,")
    (mine,) = [row for row in rows if str(agent.device_id) in row]
    assert mine.startswith(f"{agent.hardware.serial},{agent.device_id},")
    assert ",FAILED,NONCE_SIZE," in mine

    def recorded() -> set[str]:
        asked = {"resource": f"devices/{agent.device_id}"}
        entries = ok(org.auditor.get("/api/audit", params=asked))["entries"]
        return {entry["action"] for entry in entries}

    until(
        lambda: "attestation.verdict_changed" in recorded(), PATIENCE, "the verdict is not recorded"
    )


def test_a_device_is_bound_to_its_tpm_in_json(org: Org, root: httpx.Client) -> None:
    """All of it as an agent of another language would call it, from the root to KNOWN_TPM."""
    maker, tpm, agent = Maker("Chips"), Tpm(), org.device()
    made = ok(root.post("/api/tpm-roots", json={"certificatePem": maker.root_pem}))
    certificates = {
        "ek_certificate": b64(maker.certify(tpm.ek)),
        "ek_chain": [b64(part) for part in maker.chain],
    }
    told = bind(org, agent, tpm, **certificates)
    assert told["verdict"] == "KNOWN_TPM"
    device = f"/api/devices/{agent.device_id}"

    def shown() -> bool:
        return bool(ok(org.auditor.get(device))["attestationVerdict"] == "KNOWN_TPM")

    until(shown, PATIENCE, "the inventory does not show the verdict")
    freed = ok(org.admin.post(f"{device}/tpm-binding:reset", json={}))
    assert (freed["bound"], freed["verdict"]) == (False, "SELF_CONSISTENT")
    ok(root.delete(f"/api/tpm-roots/{made['id']}"))


def test_roots_are_imported_by_command(stack: Stack, tmp_path: Path) -> None:
    """Shown before they are trusted, in PEM and DER, each once; listed and removed again."""
    first, second = Maker("First"), Maker("Second")
    both = tmp_path / "roots.pem"
    both.write_text(f"A comment\n{first.root_pem}\n{second.root_pem}")
    der = tmp_path / "root.der"
    der.write_bytes(first.root.public_bytes(serialization.Encoding.DER))

    def command(*arguments: object) -> str:
        done = evergreen("tpm-roots", *arguments, "--home", stack.home)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = command("import", both, der, "--dry-run")
    assert "CN=First root" in shown
    assert "Nothing was changed." in shown
    assert "CN=First root" not in command("list")
    assert evergreen("tpm-roots", "import", both, "--home", stack.home).returncode == 2
    assert "2 certificates are trusted now." in command("import", both, der, "--yes")
    assert command("import", der, "--yes") == ""
    lines = [line for line in command("list").splitlines() if " root " in f"{line} "]
    ids = [line.split()[-1] for line in lines if "First root" in line or "Second root" in line]
    assert len(ids) == 2
    for made in ids:
        command("remove", made)
    assert "First root" not in command("list")
    (tmp_path / "none.pem").write_text("none")
    refused = evergreen("tpm-roots", "import", tmp_path / "none.pem", "--home", stack.home)
    assert (refused.returncode, "no certificate" in refused.stderr) == (2, True)
