"""Backup under load, restore on another machine: the whole product, twice."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import httpx
import pytest

from deploy.launcher.home import Home
from tests.e2e.test_attestation import attest, b64, bind
from tests.e2e.test_audit_cli import evergreen
from tests.e2e.world import DOCUMENT, Org, make_org, ok
from tests.fakes.agent import Agent
from tests.fakes.agent.agent import CallError
from tests.fakes.boot import Boot
from tests.fakes.tpm import Maker, Tpm, proof_of
from tests.support import stack as test_stack
from tests.support.stack import PATIENCE, Stack, until

pytestmark = pytest.mark.servers

T = TypeVar("T")


@dataclass
class Load:
    """Devices that report for as long as the block runs, and what was acknowledged when."""

    agents: list[Agent]
    acknowledged: list[tuple[float, str, str]] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._report, args=(agent,)) for agent in self.agents]
        for thread in threads:
            thread.start()
        try:
            until(lambda: len(self.acknowledged) > 20, PATIENCE, "nothing was acknowledged")
            yield
        finally:
            self._ended.set()
            for thread in threads:
                thread.join()

    def _report(self, agent: Agent) -> None:
        while not self._ended.is_set():
            event = agent.record("app.installed", {"message": "under load"})
            try:
                agent.send_events()
                agent.report_state()
            except CallError:
                time.sleep(0.2)
                continue
            self.acknowledged.append((time.time(), agent.device_id, event))


def rows(stack: Stack, statement: str, *arguments: Any) -> list[Any]:
    """What a superuser sees."""
    home = Home(stack.home)

    async def run() -> list[Any]:
        connection = await asyncpg.connect(
            f"postgresql://postgres@/evergreen?host={home.run_directory() / 'postgres'}",
            password=(home.secrets / "postgres_superuser").read_text().strip(),
        )
        try:
            return list(await connection.fetch(statement, *arguments))
        finally:
            await connection.close()

    return asyncio.run(run())


@pytest.mark.timeout(400)
def test_a_restored_installation_goes_on(tmp_path: Path) -> None:
    """From the home to another one, a while later: devices, decisions, versions and the log."""
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("correct horse battery\n")
    archive, export = tmp_path / "one.backup", tmp_path / "audit.jsonl"
    old_checkpoint, new_checkpoint = tmp_path / "old.txt", tmp_path / "new.txt"
    key = ("--passphrase-file", passphrase)

    with test_stack.running(tmp_path / "first") as first:
        root = first.client(first.login()["token"])
        org = make_org(first, root)
        policy = org.publish()
        devices = [org.device() for _ in range(3)]
        stays, leaves, _ = devices
        lives = ("--home", first.home)
        attested = Attested.of(org)
        load = Load(devices)
        with load.running():
            checkpoint(first, old_checkpoint)
            made = evergreen("backup", "create", "-o", archive, *key, *lives)
            assert made.returncode == 0, made.stderr
            until(lambda: len(load.acknowledged) > 60, PATIENCE, "the load ended")

        # What the backup does not know.
        ok(root.post(f"/api/devices/{leaves.device_id}/decommission", json={}))
        for _ in range(2):
            ok(root.patch(f"/api/policies/{policy['id']}", json={"bundle": changed(policy)}))
            policy = ok(root.post(f"/api/policies/{policy['id']}/publish", json={}))
        assert patiently(stays.pull)
        version = int(stays.version)
        comes = org.device()
        until(
            lambda: "enrollment.device_decommissioned" in actions(root, org.id),
            PATIENCE,
            "the log does not tell",
        )
        exported = evergreen("audit", "export", "-o", export, *lives)
        assert exported.returncode == 0, exported.stderr
        checkpoint(first, new_checkpoint)
        before = first

    verified = evergreen("backup", "verify", archive, *key)
    assert verified.returncode == 0, verified.stderr
    second_home = tmp_path / "second"
    restored = evergreen(
        "backup", "restore", archive, *key, "--home", second_home, "--audit-export", export
    )
    assert restored.returncode == 0, restored.stderr
    assert "retired again: 1" in restored.stdout
    point = datetime.fromisoformat(
        restored.stdout.partition("Restored as of ")[2].partition(" UTC")[0] + "+00:00"
    )
    for path in (second_home / "secrets").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    again = evergreen("backup", "restore", archive, *key, "--home", second_home)
    assert again.returncode == 1
    assert "--replace" in again.stderr

    with test_stack.running(second_home, EVERGREEN_PORT=str(before.port)) as second:
        assert second.ca_file != before.ca_file
        # A session from before is no session here.
        assert root.get("/api/policies").status_code == 401
        root = second.client(second.login()["token"])

        # Nobody gets a lower version, or loses what was acknowledged.
        assert not patiently(stays.pull)
        assert int(stays.version) == version
        stored = {
            (str(row["device_id"]), row["event_id"])
            for row in rows(second, "SELECT device_id, event_id FROM telemetry.event")
        }
        due = {(device, event) for at, device, event in load.acknowledged if at < point.timestamp()}
        assert due
        assert due <= stored
        stays.record("app.installed", {"message": "after"})
        patiently(stays.send_events)
        patiently(stays.report_state)

        # What was asked of a TPM before is void; its binding and what may boot are as they were.
        attested.go_on(second)

        # Retired stays retired; who came since goes on, and is in the registry.
        with pytest.raises(CallError) as refused:
            patiently(leaves.pull)
        assert refused.value.status == 401
        patiently(comes.pull)
        patiently(comes.report_state)
        assert ok(root.get(f"/api/devices/{comes.device_id}"))
        ok(root.post(f"/api/devices/{comes.device_id}/decommission", json={}))

        # The next policy reaches everybody, above all that they had.
        published = ok(root.post(f"/api/policies/{policy['id']}/publish", json={}))
        assert int(published["version"]) > version
        until(lambda: patiently(stays.pull), PATIENCE, "the new policy does not arrive", pause=0.5)
        assert int(stays.version) == int(published["version"])

        until(lambda: "audit.restored" in actions(root, org.id), PATIENCE, "the log does not tell")
        sound = evergreen("audit", "verify", "--checkpoint", old_checkpoint, "--home", second_home)
        assert sound.returncode == 0, sound.stdout
        lost = evergreen("audit", "verify", "--checkpoint", new_checkpoint, "--home", second_home)
        assert lost.returncode == 2, lost.stdout
        assert "RESTORED" in lost.stdout
        assert "TAMPERED" not in lost.stdout


@dataclass
class Attested:
    """A device whose boots are verified, with a challenge and an enrollment that are open."""

    agent: Agent
    tpm: Tpm
    values: Any
    nonce: str = ""
    enrollment: str = ""
    proof: str = ""

    @classmethod
    def of(cls, org: Org) -> Attested:
        maker, tpm, agent = Maker(), Tpm(), org.device()
        ok(org.root.post("/api/tpm-roots", json={"certificatePem": maker.root_pem}))
        certificates = {
            "ek_certificate": b64(maker.certify(tpm.ek)),
            "ek_chain": [b64(part) for part in maker.chain],
        }
        assert bind(org, agent, tpm, **certificates)["verdict"] == "KNOWN_TPM"
        tpm.pcrs = Boot().registers()
        found = cls(agent, tpm, [])
        with org.stack.client(agent.device_token) as client:
            assert found.boot(client)["verdict"] == "KNOWN_TPM"
            for kind in ("FIRMWARE", "OS_IMAGE"):
                path = f"/api/devices/{agent.device_id}/attestation:learn"
                value = ok(org.root.post(path, json={"name": kind, "kind": kind}))
                active = {"state": "ACTIVE"}
                ok(org.root.patch(f"/api/reference-values/{value['id']}", json=active))
            assert found.boot(client)["verdict"] == "VERIFIED"
            found.nonce = ok(client.post("/api/v1/devices/challenge", json={}))["nonce"]
            keys = {"ek_public": b64(tpm.ek_public), "ak_public": b64(tpm.ak.public)}
            offer = ok(client.post("/api/v1/devices/tpm-enrollments", json=keys | certificates))
        blob, seed = b64decode(offer["credential_blob"]), b64decode(offer["encrypted_secret"])
        secret = tpm.give_away(blob, seed)
        assert secret is not None
        found.enrollment, found.proof = offer["id"], b64(proof_of(secret, agent.device_id))
        found.values = ok(org.root.get("/api/reference-values", params={"orgId": org.id}))
        return found

    def boot(self, client: httpx.Client, nonce: str = "") -> dict[str, Any]:
        """The verdict over a boot, for a new challenge or another one."""
        nonce = nonce or ok(client.post("/api/v1/devices/challenge", json={}))["nonce"]
        evidence = self.tpm.evidence(b64decode(nonce), self.agent.device_id)
        return attest(client, self.agent, evidence | {"event_log": b64(Boot().log())})

    def go_on(self, stack: Stack) -> None:
        """Behind a restore."""
        with stack.client(self.agent.device_token) as client:
            late = self.boot(client, self.nonce)
            assert (late["verdict"], late["reasons"]) == ("FAILED", ["CHALLENGE_UNKNOWN"])
            path = f"/api/v1/devices/tpm-enrollments/{self.enrollment}:activate"
            told = ok(client.post(path, json={"proof": self.proof}))
            assert told["reasons"] == ["ENROLLMENT_UNKNOWN"]
            assert self.boot(client)["verdict"] == "VERIFIED"
        with stack.client(stack.login()["token"]) as root:
            shown = ok(root.get(f"/api/devices/{self.agent.device_id}/attestation"))
            assert (shown["bound"], shown["verdict"]) == (True, "VERIFIED")
            listed = ok(root.get("/api/reference-values", params={"orgId": shown["orgId"]}))
            assert listed == self.values
            assert len(ok(root.get("/api/tpm-roots"))["roots"]) == 1


def patiently(call: Callable[[], T]) -> T:
    """The answer to an agent's call; what is refused for its rate is asked again."""
    answers: list[T] = []

    def asked() -> bool:
        try:
            answers.append(call())
        except CallError as error:
            if error.status == 429:
                return False
            raise
        return True

    until(asked, PATIENCE, "it is refused for ever", pause=0.5)
    return answers[0]


def changed(policy: dict[str, Any]) -> dict[str, Any]:
    """Another document each time."""
    homepage = f"https://school.example/{policy.get('version', 0)}"
    return DOCUMENT | {"browser": DOCUMENT["browser"] | {"homepage": homepage}}


def checkpoint(stack: Stack, path: Path) -> None:
    done = evergreen("audit", "checkpoint", "-o", path, "--home", stack.home)
    assert done.returncode == 0, done.stderr


def actions(root: Any, org_id: str) -> list[str]:
    return [e["action"] for e in ok(root.get("/api/audit", params={"orgId": org_id}))["entries"]]


@pytest.mark.timeout(400)
def test_backups_on_a_schedule_and_a_rehearsal(tmp_path: Path) -> None:
    """`evergreen up` runs the schedule; what it stored is restored, started and counted."""
    store, secrets = tmp_path / "store", tmp_path / "secrets"
    store.mkdir()
    secrets.mkdir(0o700)
    (secrets / "passphrase").write_text("correct horse battery\n")
    (secrets / "passphrase").chmod(0o600)
    settings = {
        "EVERGREEN_BACKUP_TARGET": str(store),
        "EVERGREEN_BACKUP_SECRETS": str(secrets),
    }
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.settimeout(PATIENCE)
    told.bind(str(tmp_path / "notify"))
    settings |= {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    with test_stack.running(
        tmp_path / "home", EVERGREEN_BACKUP_SCHEDULE="02:30", **settings
    ) as stack:
        # A service manager hears of it (and a rehearsal's launcher is not the service's).
        ready = told.recv(1000).decode().splitlines()
        assert ready[0] == "READY=1"
        assert f"https://localhost:{stack.port}" in ready[1]
        root = stack.client(stack.login()["token"])
        org = make_org(stack, root)
        devices = [org.device() for _ in range(2)]
        assert len(devices) == 2
        home = str(stack.home)
        assert stack.children(stack.process.pid, "schedule")
        assert finding(home, "BACKUP_NONE")
        made = evergreen("backup", "run", "--home", home, **settings)
        assert made.returncode == 0, made.stderr
        assert not finding(home, "BACKUP_")
        words = ("backup", "rehearse", "--home", home)
        rehearsed = evergreen(*words, seconds=4 * PATIENCE, **settings)
        assert rehearsed.returncode == 0, rehearsed.stderr
        assert "A restore works: 2 organisations" in rehearsed.stdout
        assert "2 devices" in rehearsed.stdout
        status = json.loads(evergreen("backup", "status", "--json", "--home", home).stdout)
        assert status["lastRehearsal"]
        assert "A restore works" in status["rehearsal"]
        log = (stack.home / "logs" / "backup.log").read_text()
        assert "backups are scheduled" in log
    assert told.recv(1000).decode().startswith("STOPPING=1")
    told.close()
    # A home that is stopped is backed up, too.
    made = evergreen("backup", "run", "--home", home, "--keep", "1", **settings)
    assert made.returncode == 0, made.stderr
    assert len(list(store.iterdir())) == 1


def finding(home: str, code: str) -> list[str]:
    """What the doctor says of a kind."""
    return [
        line for line in evergreen("doctor", "--home", home).stdout.splitlines() if code in line
    ]
