"""A backup from a home of `make run` goes on in containers: Compose, and the chart's pods."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from contract.contexts import CONTEXTS
from deploy.launcher.home import Home
from tests.compose.docker import Docker
from tests.compose.installations import evaluation
from tests.compose.pod import Pod
from tests.compose.project import Project, new_directory
from tests.e2e.test_audit_cli import evergreen
from tests.e2e.test_backup import actions, patiently
from tests.e2e.world import make_org, ok
from tests.fakes.agent import Agent
from tests.support import stack as test_stack
from tests.support.doctor import wrong
from tests.support.stack import PATIENCE, Stack, attached, free_port, until

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("EVERGREEN_TEST_COMPOSE"), reason="takes minutes: make test-compose"
    ),
    pytest.mark.timeout(1800),
]

_CONTAINERS = 10001
_SECRETS = {
    "ev-master-key": {"master_key": "secrets/master_key"},
    "ev-admin": {
        "password": "secrets/admin_password",
        "enrollment-secret": "secrets/enrollment_secret",
    },
    "ev-gateway-tls": {
        "tls.crt": "tls/server.crt",
        "tls.key": "tls/server.key",
        "ca.crt": "tls/ca.crt",
    },
}
"""The secrets that are made of what a restore has written."""


@dataclass(frozen=True)
class Fleet:
    """Devices of an installation that is gone, and its backup."""

    directory: Path
    """With `monday.backup` and `passphrase`, as containers may read them."""
    port: int
    org_id: str
    policy_id: str
    devices: list[Agent]
    messages: set[str]
    """Of the events that they reported."""


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """Enrolled with `make run`, which made a backup and is stopped for good."""
    directory = new_directory()
    archive, passphrase = directory / "monday.backup", directory / "passphrase"
    passphrase.write_text("correct horse battery\n")
    with test_stack.running(directory / "home", EVERGREEN_PORT=str(free_port())) as stack:
        with stack.first_owner() as root:
            org = make_org(stack, root)
            policy = org.publish()
            devices = [org.device() for _ in range(2)]
        messages = set()
        for device in devices:
            messages.add(_report(device, "before"))
            patiently(device.pull)
        words = ("backup", "create", "-o", archive, "--passphrase-file", passphrase)
        made = evergreen(*words, "--home", stack.home)
        assert made.returncode == 0, made.stderr
    for path in (directory, archive, passphrase):
        os.chown(path, _CONTAINERS, _CONTAINERS)
    yield Fleet(directory, stack.port, org.id, policy["id"], devices, messages)
    shutil.rmtree(directory)


def _goes_on(fleet: Fleet, stack: Stack) -> None:
    """Nobody enrolls again; nothing is lost; the next policy reaches everybody."""
    with stack.first_owner() as root:
        for device in fleet.devices:
            had = int(device.version)
            assert not patiently(device.pull)
            assert int(device.version) == had
            fleet.messages.add(_report(device, "after"))
            patiently(device.report_state)
        published = ok(root.post(f"/api/policies/{fleet.policy_id}/publish", json={}))
        for device in fleet.devices:
            until(lambda device=device: patiently(device.pull), PATIENCE, "no new policy", 0.5)
            assert device.version == str(published["version"])
        assert _messages(root, fleet.org_id) >= fleet.messages
        until(lambda: "audit.restored" in actions(root, fleet.org_id), PATIENCE, "no word of it")


def _report(device: Agent, when: str) -> str:
    message = f"{when}, on {device.device_id}"
    device.record("app.installed", {"message": message})
    patiently(device.send_events)
    return message


def _messages(root: httpx.Client, org_id: str) -> set[str]:
    found: Any = ok(root.get("/api/events", params={"orgId": org_id, "pageSize": 100}))
    return {event["message"] for event in found["events"]}


def test_into_compose(docker: Docker, fleet: Fleet) -> None:
    """By the commands of docs/backup.md, into an installation that is empty."""
    project = Project(docker, fleet.directory, {}, port=fleet.port)
    try:
        project.compose("up", "--detach", "--wait", "--no-build", "postgres")
        project.compose("run", "--rm", "--no-TTY", "database")
        restored = project.compose(
            "run", "--rm", "--no-TTY", f"--volume={fleet.directory}:/backup:ro", "operator",
            "backup", "restore", "/backup/monday.backup",
            "--passphrase-file", "/backup/passphrase",
        )  # fmt: skip
        assert "Restored as of" in restored.stdout
        project.up()
        _goes_on(fleet, project.stack())
    finally:
        project.down()


def test_into_the_charts_pods(docker: Docker, fleet: Fleet, tmp_path: Path) -> None:
    """By the operator's pod, as docs/backup.md says."""
    with evaluation(docker, publicUrl=f"https://localhost:{fleet.port}") as release:
        cluster = release.cluster
        release.start_all()
        cluster.load_balancer("ev-gateway", fleet.port)
        release.migrate()
        release.until_ready()
        with ThreadPoolExecutor(len(CONTEXTS)) as pool:
            list(pool.map(Pod.stop, [pod for context in CONTEXTS for pod in release.pods(context)]))
        operator = cluster.start("Deployment/ev-operator")
        for name in ("monday.backup", "passphrase"):
            operator.put(f"/tmp/{name}", (fleet.directory / name).read_bytes())
        restored = operator.run(
            "evergreen", "backup", "restore", "/tmp/monday.backup",
            "--passphrase-file", "/tmp/passphrase",
            "--secrets", "/tmp/secrets", "--tls", "/tmp/tls", "--replace",
        )  # fmt: skip
        assert restored.returncode == 0, restored.stderr
        for secret, files in _SECRETS.items():
            cluster.secrets[secret] = {
                key: operator.run("cat", f"/tmp/{path}").stdout.encode()
                for key, path in files.items()
            }
        release.migrate(is_upgrade=True)
        # `kubectl rollout restart`: one with the other certificate would still be asked.
        release.pods("gateway")[0].stop()
        for part in (*CONTEXTS, "gateway"):
            cluster.start(f"Deployment/ev-{part}", 1)
        release.until_ready()
        home = Home(tmp_path / "facts")
        _goes_on(fleet, attached(release.facts(home, f"https://localhost:{fleet.port}")))

        # And the other way round, from a pod that has the new secrets.
        operator = cluster.start("Deployment/ev-operator", 1)
        operator.put("/tmp/passphrase", (fleet.directory / "passphrase").read_bytes())
        backup = operator.run(
            "evergreen", "backup", "create", "-o", "/tmp/tuesday.backup",
            "--passphrase-file", "/tmp/passphrase",
        )  # fmt: skip
        assert backup.returncode == 0, backup.stderr
        assert wrong(json.loads(operator.run("evergreen", "doctor", "--json").stdout)) == []
