"""The CronJob of backups in a cluster: a volume, a command of the operator's, a failure."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kubernetes.cluster import PATIENCE, Cluster
from tests.kubernetes.releases import Release, evaluation
from tests.support.stack import until

VALUES = {
    "backup.enabled": "true",
    "backup.existingSecret": "keys",
    "backup.volume.size": "1Gi",
    "backup.backoffLimit": "0",
    "backup.resources.requests.cpu": "10m",
    "networkPolicy.enabled": "true",
    "backup.command[0]": "sh",
    "backup.command[1]": "-c",
    "backup.command[2]": "test -f /etc/evergreen/backup/fails && exit 3; ls -s $BACKUPS",
}


@pytest.fixture(scope="module")
def backed_up(cluster: Cluster) -> Iterator[Release]:
    with evaluation(cluster) as release:
        passphrase = {"passphrase": "correct horse battery\n"}
        release.namespace.make_secret("keys", passphrase)
        release.upgrade(VALUES)
        yield release


def test_a_backup_is_made_noted_and_taken_elsewhere(backed_up: Release) -> None:
    """With network policies; the operator's pod knows of it, and the doctor has nothing to say."""
    namespace = backed_up.namespace
    said = namespace.job("now", "ev-backup")
    name = next(word for word in said.split() if word.endswith(".backup"))
    assert namespace.kubectl("logs", "job/now", "-c", "backup").stdout.count(name)
    namespace.kubectl("scale", "deployment/ev-operator", "--replicas=1")
    namespace.kubectl("rollout", "status", "deployment/ev-operator", "--timeout=5m")
    pod = namespace.pod("operator")
    assert name in namespace.exec(pod, "evergreen", "backup", "list").stdout
    verified = namespace.exec(
        pod, "evergreen", "backup", "verify", f"/backups/{name}",
        "--passphrase-file", "/etc/evergreen/backup/passphrase",
    )  # fmt: skip
    assert "The archive is whole" in verified.stdout
    status = namespace.exec(pod, "evergreen", "backup", "status")
    assert "Last good backup" in status.stdout
    namespace.kubectl("scale", "deployment/ev-operator", "--replicas=0")


def test_a_command_that_fails_fails_the_job(backed_up: Release) -> None:
    """What monitors Jobs hears of it; the archive in the volume is good all the same."""
    namespace = backed_up.namespace
    keys = {"passphrase": "correct horse battery\n", "fails": ""}
    namespace.make_secret("keys", keys)
    namespace.kubectl("create", "job", "--from=cronjob/ev-backup", "fails")

    def failed() -> bool:
        status = namespace.get("job/fails").get("status", {})
        return any(c["type"] == "Failed" for c in status.get("conditions", []))

    until(failed, PATIENCE, "the Job does not fail", pause=1)
    assert "verified" in namespace.kubectl("logs", "job/fails", "-c", "backup").stdout
