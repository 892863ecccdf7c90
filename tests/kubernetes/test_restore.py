"""Restores in a cluster, by the commands of docs/backup.md.

Pods are killed at each step of one, and Secrets are empty, gone or another's.
"""

from __future__ import annotations

import base64
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from contract.contexts import CONTEXTS
from tests.e2e.test_backup import patiently
from tests.e2e.world import make_org, ok
from tests.fakes.agent import Agent
from tests.helm.chart import HELM
from tests.kubernetes.cluster import PATIENCE, RESTRICTED, Cluster, Namespace
from tests.kubernetes.images import TREE
from tests.kubernetes.releases import Release, image
from tests.support.documented import Block, Commands, script
from tests.support.paths import ROOT
from tests.support.stack import Stack, until

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
BACKUPS = {
    "backup.enabled": "true",
    "backup.existingSecret": "evergreen-backup",
    "backup.resources.requests.cpu": "10m",
    "restore.resources.requests.cpu": "10m",
}
"""As in a file of values that an operator keeps."""


@dataclass
class Documented:
    """An installation with the names of the documentation."""

    release: Release
    directory: Path

    @property
    def namespace(self) -> Namespace:
        return self.release.namespace

    def run(self, block: Block) -> str:
        """Runs a block of the page, word for word; answers what it prints."""
        done = subprocess.run(
            ["bash", "-euxo", "pipefail", "-c", script([block], self.directory)],
            cwd=self.directory,
            env={**os.environ, "PATH": f"{Path(HELM).parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def reached(self) -> Iterator[Stack]:
        """The product; devices find its gateway at the same address each time."""
        self.namespace.kubectl("rollout", "status", "deployment/evergreen-gateway", "--timeout=5m")
        with self.release.reached(self.directory) as stack:
            yield stack

    def goes_on(self, device: Agent, policy_id: str) -> None:
        """The device is known, trusts the gateway, and gets what is published next."""
        with self.reached() as stack, stack.client(stack.login()["token"]) as root:
            patiently(device.pull)
            patiently(device.report_state)
            published = ok(root.post(f"/api/policies/{policy_id}/publish", json={}))
            until(lambda: patiently(device.pull), PATIENCE, "no new policy", 0.5)
            assert device.version == str(published["version"])

    def replicas(self) -> set[int]:
        """Of the services."""
        names = [f"deployment/evergreen-{context}" for context in CONTEXTS]
        found = self.namespace.get(names[0], *names[1:])["items"]
        return {one["spec"]["replicas"] for one in found}

    def restore(self, name: str, passphrase: str) -> None:
        """Makes the Secret and the Job of a restore, and does not wait."""
        words = ("--from-literal=archive=newest", f"--from-literal=passphrase={passphrase}")
        self.namespace.kubectl("delete", "secret", "evergreen-restore", "--ignore-not-found")
        self.namespace.kubectl("create", "secret", "generic", "evergreen-restore", *words)
        self.namespace.kubectl("create", "job", name, "--from=cronjob/evergreen-restore")

    def outcome(self, job: str) -> str:
        """The condition with which a Job ends; empty while it runs."""
        status = self.namespace.get(f"job/{job}").get("status", {})
        kinds = [c["type"] for c in status.get("conditions", []) if c["status"] == "True"]
        return next((kind for kind in kinds if kind in {"Complete", "Failed"}), "")

    def pods_of(self, job: str) -> list[str]:
        """The pods of a Job, the oldest first."""
        found = self.namespace.get(
            "pods",
            "-l",
            f"batch.kubernetes.io/job-name={job}",
            "--sort-by=.metadata.creationTimestamp",
        )
        return [pod["metadata"]["name"] for pod in found["items"]]


@pytest.fixture(scope="module")
def documented(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Documented]:
    directory = tmp_path_factory.mktemp("documented")
    (directory / "helm").symlink_to(ROOT / "helm")
    labelled = {"name": "evergreen", "labels": dict(RESTRICTED)}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": labelled})
    release = Release(Namespace(cluster, "evergreen"), "evergreen", image(TREE))
    try:
        release.install()
        yield Documented(release, directory)
    finally:
        cluster.kubectl("delete", "namespace", "evergreen", "--timeout=5m")


@pytest.fixture(scope="module")
def fleet(documented: Documented) -> tuple[Agent, str]:
    """A device, and the id of the policy that it has."""
    with documented.reached() as stack, stack.client(stack.login()["token"]) as root:
        org = make_org(stack, root)
        policy = org.publish()
        device = org.device()
        patiently(device.pull)
    return device, policy["id"]


def test_a_new_installation_takes_over(documented: Documented, fleet: tuple[Agent, str]) -> None:
    """All is lost but the volume of backups and the passphrase; the page's commands repair it."""
    namespace = documented.namespace
    with Commands("docs/backup.md", "kubernetes") as commands:
        (backup,) = commands.take("On Kubernetes")
        restore, upload = commands.take("Into a Helm release")
    assert "verified, in /backups" in documented.run(backup)
    documented.release.values |= BACKUPS
    namespace.helm("uninstall", "evergreen", "--wait", "--timeout=5m")
    for kind, kept in (("secrets", "evergreen-backup"), ("pvc", "evergreen-backups")):
        for found in namespace.get(kind)["items"]:
            if (name := found["metadata"]["name"]) != kept:
                namespace.kubectl("delete", kind, name, "--timeout=3m")
    documented.release.install()
    key = namespace.secret("evergreen-master-key")
    assert "Restored as of" in documented.run(restore)
    assert documented.replicas() == {1}
    documented.goes_on(*fleet)
    assert namespace.secret("evergreen-master-key") == key
    for secret in namespace.get("secrets")["items"]:
        assert LAST_APPLIED not in secret["metadata"].get("annotations", {})
    (documented.directory / "monday.backup").write_bytes(b"a file of the operator's")
    documented.run(upload)
    # Helm changes none of it afterwards.
    documented.release.test()
    documented.release.upgrade({})
    documented.goes_on(*fleet)


STEPS = (
    "The archive is whole",
    "Filling the database",
    "Starting the services",
)
"""What the pod has just said when it is killed."""


def test_a_pod_killed_at_any_step_is_followed_by_one_that_goes_on(
    documented: Documented, fleet: tuple[Agent, str]
) -> None:
    """The Job comes to its end, and the installation is the restored one."""
    namespace = documented.namespace
    passphrase = (documented.directory / "passphrase").read_text().strip()
    documented.restore("killed", passphrase)
    killed: set[str] = set()
    for step in STEPS:

        def said(step: str = step) -> str:
            pods = [pod for pod in documented.pods_of("killed") if pod not in killed]
            if not pods:
                return ""
            log = namespace.kubectl("logs", pods[-1], "-c", "restore", check=False).stdout
            return pods[-1] if step in log else ""

        pod = until(said, PATIENCE, f"no pod says: {step}", pause=0.2)
        killed.add(pod)
        namespace.kubectl("delete", "pod", pod, "--grace-period=0", "--force")
    until(lambda: documented.outcome("killed"), PATIENCE, "it does not end", pause=2)
    log = namespace.kubectl("logs", "job/killed", "-c", "restore", check=False).stdout
    assert documented.outcome("killed") == "Complete", log
    assert documented.replicas() == {1}
    documented.goes_on(*fleet)


def test_a_restore_that_refuses_changes_nothing(documented: Documented) -> None:
    """A wrong passphrase: the Job fails at once, and not a service has stopped."""
    namespace = documented.namespace
    before = namespace.pods()
    documented.restore("refused", "not the passphrase")
    until(lambda: documented.outcome("refused"), PATIENCE, "it does not end", pause=1)
    assert documented.outcome("refused") == "Failed"
    assert len(documented.pods_of("refused")) == 1
    log = namespace.kubectl("logs", "job/refused", "-c", "restore").stdout
    assert documented.replicas() == {1}, log
    running = {name for name in before if "restore" not in name and "refused" not in name}
    assert running <= set(namespace.pods())


def test_no_other_master_key_gets_in(documented: Documented, fleet: tuple[Agent, str]) -> None:
    """Not by an empty file, not by another key, not by Helm; the services refuse a wrong one."""
    namespace = documented.namespace
    name = "evergreen-master-key"
    key = namespace.secret(name)["master_key"]
    other = base64.b64encode(secrets.token_bytes(32)).decode()
    for content in ("", other):
        made = namespace.kubectl(
            "create", "secret", "generic", name, f"--from-literal=master_key={content}",
            "--dry-run=client", "-o", "yaml",
        ).stdout  # fmt: skip
        for verb in ("apply", "replace"):
            done = namespace.kubectl(verb, "-f", "-", stdin=made, check=False)
            assert done.returncode != 0, verb
            assert "immutable" in done.stderr
    assert namespace.secret(name)["master_key"] == key
    # Deleted by hand: Helm makes no other one, and neither does a new installation over the volume.
    saved = namespace.kubectl("get", "secret", name, "-o", "json").stdout
    namespace.kubectl("delete", "secret", name)
    words = ("upgrade", "evergreen", "helm/evergreen", "--reuse-values")
    refused = namespace.helm(*(str(ROOT / w) if "/" in w else w for w in words), check=False)
    assert refused.returncode != 0
    assert f"the Secret {name} of this release is gone" in refused.stderr
    # Another key by hand: the migrations refuse it. A node goes on with an immutable Secret that it
    # has, for new pods, too, until none that has it is left.
    namespace.kubectl("scale", "deployment", "--all", "--replicas=0")
    served = f"--selector=app.kubernetes.io/component in ({','.join(CONTEXTS)})"
    namespace.kubectl("wait", "--for=delete", "pod", served, "--timeout=3m")
    namespace.kubectl("create", "secret", "generic", name, f"--from-literal=master_key={other}")
    refused = namespace.helm(
        *(str(ROOT / w) if "/" in w else w for w in words),
        "--set=migrations.backoffLimit=0", "--timeout=5m", check=False,
    )  # fmt: skip
    assert refused.returncode != 0
    logs = namespace.kubectl(
        "logs", "-l=app.kubernetes.io/component=migrate", "--all-containers", check=False
    ).stdout
    assert "the master key is not the one of this database" in logs
    namespace.kubectl("delete", "secret", name)
    namespace.kubectl("create", "-f", "-", stdin=saved)
    documented.release.upgrade({})
    documented.goes_on(*fleet)
