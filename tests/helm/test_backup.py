"""The chart's backups on a schedule, and the template of its restores."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.doctor import files, installation
from contract.contexts import CONTEXTS
from tests.fakes.kubernetes import FakeKubernetes, kubernetes
from tests.helm.chart import (
    EVAL,
    GIVEN,
    PRODUCTION,
    Object,
    containers,
    render,
    secrets_of,
    template,
)
from tests.support.mounted import Mounted
from tests.support.paths import ROOT

ON = {**EVAL, "backup.enabled": "true", "backup.existingSecret": "backup-keys"}


def named(objects: list[Object], kind: str) -> dict[str, Object]:
    return {found["metadata"]["name"]: found for found in objects if found["kind"] == kind}


def pod(cronjob: Object) -> Object:
    found: Object = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return found


def plain(container: Object) -> dict[str, str]:
    """The environment as far as the chart says it."""
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}


def mounts(container: Object) -> set[str]:
    return {mount["mountPath"] for mount in container["volumeMounts"]}


def test_a_new_volume_has_a_pod_that_uses_it_at_once() -> None:
    """Storage classes that wait for a pod make it then, and `helm --wait` ends."""
    job = named(render(ON), "Job")["ev-backup-volume-1"]
    spec = job["spec"]["template"]["spec"]
    assert spec["volumes"] == [
        {"name": "backups", "persistentVolumeClaim": {"claimName": "ev-backups"}}
    ]
    assert mounts(spec["containers"][0]) == {"/backups"}
    given = {**ON, "backup.volume.existingClaim": "nfs"}
    assert "ev-backup-volume-1" not in named(render(given), "Job")
    assert "ev-backup-volume-1" not in named(render(EVAL), "Job")


def test_backups_are_made_when_they_are_wanted() -> None:
    """One at a time, into a volume that outlives the release; nothing of it without a word."""
    assert "ev-backup" not in named(render(EVAL), "CronJob")
    objects = render(ON)
    cronjob = named(objects, "CronJob")["ev-backup"]
    assert cronjob["spec"]["concurrencyPolicy"] == "Forbid"
    assert cronjob["spec"]["schedule"] == "30 2 * * *"
    (container,) = containers(pod(cronjob))
    assert container["args"] == ["backup", "run"]
    assert plain(container) | {
        "EVERGREEN_BACKUP_TARGET": "/backups",
        "EVERGREEN_BACKUP_KEEP": "14",
        "EVERGREEN_BACKUP_SCHEDULE": "24h",
        "EVERGREEN_BACKUP_SECRETS": "/etc/evergreen/backup",
    } == plain(container)
    assert {"/backups", "/work", "/etc/evergreen/backup"} <= mounts(container)
    claim = named(objects, "PersistentVolumeClaim")["ev-backups"]
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    # Where they are listed, looked at and fetched from.
    operators = named(objects, "Deployment")["ev-operator"]["spec"]["template"]["spec"]
    (operator,) = containers(operators)
    (restore,) = pod(named(objects, "CronJob")["ev-restore"])["containers"]
    for other in (operator, restore):
        assert plain(other)["EVERGREEN_BACKUP_TARGET"] == "/backups"
        assert "/backups" in mounts(other)


@pytest.mark.parametrize("target", ["s3://school/evergreen", "sftp://backup@nas/evergreen"])
def test_backups_elsewhere_need_no_volume(target: str) -> None:
    more = {"backup.target": target, "backup.s3.endpoint": "https://minio.example.org"}
    objects = render({**ON, **more, "backup.keep": "daily=7\\,weekly=4"})
    assert named(objects, "PersistentVolumeClaim") == {}
    (container,) = containers(pod(named(objects, "CronJob")["ev-backup"]))
    assert plain(container)["EVERGREEN_BACKUP_TARGET"] == target
    assert plain(container)["EVERGREEN_BACKUP_KEEP"] == "daily=7,weekly=4"
    assert plain(container)["EVERGREEN_BACKUP_S3_ENDPOINT"] == "https://minio.example.org"
    assert "/backups" not in mounts(container)


def test_a_command_of_the_operators_takes_them_elsewhere() -> None:
    """After each good backup, in an image of its own, with the archives and no key of ours."""
    more = {
        "backup.command[0]": "rclone",
        "backup.command[1]": "copy",
        "backup.commandImage.repository": "rclone/rclone",
        "backup.commandImage.tag": "1.70",
        "backup.volume.existingClaim": "archives",
    }
    objects = render({**ON, **more})
    found = pod(named(objects, "CronJob")["ev-backup"])
    (backup,), (copy,) = found["initContainers"], found["containers"]
    assert backup["args"] == ["backup", "run"]
    assert copy["command"] == ["rclone", "copy"]
    assert copy["image"] == "rclone/rclone:1.70"
    assert mounts(copy) == {"/backups", "/etc/evergreen/backup", "/tmp"}
    assert named(objects, "PersistentVolumeClaim") == {}
    claims = [v["persistentVolumeClaim"] for v in found["volumes"] if "persistentVolumeClaim" in v]
    assert claims == [{"claimName": "archives"}]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({**EVAL, "backup.enabled": "true"}, "backup.existingSecret"),
        ({**ON, "backup.target": "/var/backups"}, "give /backups"),
        ({**ON, "backup.target": "ftp://nas/x"}, "give /backups"),
        ({**ON, "backup.target": "s3://b/p", "backup.command[0]": "x"}, "backup.command"),
        ({**ON, "backup.every": "soon"}, "every"),
        ({**ON, "backup.concurrency": "2"}, "concurrency"),
    ],
)
def test_what_cannot_work_is_refused(values: dict[str, str], why: str) -> None:
    done = template(values)
    assert done.returncode != 0
    assert why in done.stderr


@pytest.fixture
def cluster() -> Iterator[FakeKubernetes]:
    with kubernetes() as fake:
        yield fake


@pytest.mark.parametrize(
    ("data", "taken"),
    [
        ({"recipients": b"age1example"}, True),
        ({"passphrase": b"correct horse battery"}, True),
        ({"passphrase": b"\n"}, False),
        ({"password": b"correct horse battery"}, False),
        ({}, False),
    ],
)
def test_a_backup_nobody_can_open_is_refused(
    cluster: FakeKubernetes, tmp_path: Path, data: dict[str, bytes], taken: bool
) -> None:
    cluster.secret("backup-keys", **data)
    words = ("--dry-run=server", "--kubeconfig", str(cluster.kubeconfig(tmp_path)))
    done = template({**ON, "generateSecrets": "null"}, *words)
    assert (done.returncode == 0) is taken, done.stderr


def test_a_restore_never_runs_by_itself() -> None:
    """It is a template; its Job goes on when a pod is lost, and ends when it refuses."""
    restore = named(render(EVAL), "CronJob")["ev-restore"]
    assert restore["spec"]["suspend"] is True
    job = restore["spec"]["jobTemplate"]["spec"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    rules = job["podFailurePolicy"]["rules"]
    assert {"action": "FailJob", "onExitCodes": rules[1].get("onExitCodes")} == rules[1]
    assert rules[1]["onExitCodes"]["values"] == [2]
    found = pod(restore)
    (roles,), (container,) = found["initContainers"], found["containers"]
    # A database whose key is lost is restored, too.
    assert "EVERGREEN_MASTER_KEY_FILE" not in plain(roles)
    command, verb, *_ = container["args"]
    shown = subprocess.run(
        [sys.executable, "-m", "cli.entry", command, verb, "--help"],
        cwd=ROOT,
        env={"COLUMNS": "300", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    wanted = set(re.findall(r"EVERGREEN_RE(?:LEASE|STORE)_?\w*", shown))
    given = {entry["name"] for entry in container["env"]}
    assert wanted <= given, "what the command reads comes from the pod"
    # The account's token is in the one container that needs it.
    assert "/var/run/secrets/kubernetes.io/serviceaccount" in mounts(container)
    assert "/var/run/secrets/kubernetes.io/serviceaccount" not in mounts(roles)


@pytest.mark.parametrize("values", [EVAL, {**EVAL, **GIVEN}], ids=["own", "given"])
def test_a_restore_may_do_no_more_than_it_has_to(values: dict[str, str]) -> None:
    """Never the master key's Secret, and none that the operator gives."""
    objects = render(values)
    role = named(objects, "Role")["ev-restore"]
    deployments, pods, *secrets = role["rules"]
    parts = {f"ev-{name}" for name in (*CONTEXTS, "gateway")}
    assert set(deployments["resourceNames"]) == parts
    assert deployments["verbs"] == ["get", "patch"]
    assert pods["verbs"] == ["list"]
    own = [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "patch"]}]
    names = [rule.pop("resourceNames") for rule in secrets]
    if values is EVAL:
        assert (secrets, names) == (own, [["ev-admin", "ev-gateway-tls", "ev-ca"]])
    else:
        assert (secrets, names) == ([], [])
    accounts = {found["spec"]["serviceAccountName"] for found in map(_spec, _pods(objects))}
    assert "ev-restore" not in accounts
    assert "ev-restore" not in named(render({**values, "restore.enabled": "false"}), "Role")


def _pods(objects: list[Object]) -> list[Object]:
    return [o for o in objects if o["kind"] in {"Deployment", "StatefulSet", "Job"}]


def _spec(found: Object) -> Object:
    return {"spec": found["spec"]["template"]["spec"]}


def test_the_database_lets_them_in() -> None:
    """Network policies know backups and restores; nobody reaches their pods."""
    policies = named(render({**PRODUCTION, **ON, "profile": "production"}), "NetworkPolicy")
    assert "ev-postgres" not in policies
    policies = named(render({**ON, "networkPolicy.enabled": "true"}), "NetworkPolicy")
    (rule,) = policies["ev-postgres"]["spec"]["ingress"]
    (among,) = rule["from"][0]["podSelector"]["matchExpressions"]
    assert {"backup", "restore", "operator", "migrate"} <= set(among["values"])
    commands = policies["ev-commands"]["spec"]
    (mine,) = commands["podSelector"]["matchExpressions"]
    assert set(mine["values"]) == {"backup", "restore", "operator", "migrate", "certificates"}
    assert commands["ingress"] == []


def _mounted(objects: list[Object], found: Object, root: Path) -> dict[str, str]:
    """Mounts the Secrets of a pod's container under a directory, and answers its environment."""
    secrets = secrets_of(objects)
    (container,) = found["containers"]
    paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    for volume in found["volumes"]:
        sources = [
            s["secret"] for s in volume.get("projected", {}).get("sources", []) if "secret" in s
        ]
        if "secret" in volume:
            sources.append(volume["secret"] | {"name": volume["secret"]["secretName"]})
        content: dict[str, bytes] = {}
        for source in sources:
            data = secrets.get(source["name"], {})
            items = source.get("items") or [{"key": key, "path": key} for key in data]
            content |= {i["path"]: data[i["key"]] for i in items if i["key"] in data}
        if volume["name"] in paths and content:
            path = root / paths[volume["name"]].lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            Mounted(path).put(content)
    return {
        name: re.sub(r"^/(etc|run)/", rf"{root}/\1/", value)
        for name, value in plain(container).items()
    }


@pytest.mark.parametrize("part", ["operator", "restore"])
def test_doctor_looks_for_no_ca_that_a_pod_does_not_have(tmp_path: Path, part: str) -> None:
    """A job alone has the CAs, and renews what they sign; what is mounted is looked at."""
    objects = render(EVAL)
    found = (
        named(objects, "Deployment")["ev-operator"]["spec"]["template"]["spec"]
        if part == "operator"
        else pod(named(objects, "CronJob")["ev-restore"])
    )
    place = installation.given(_mounted(objects, found, tmp_path), None)
    assert place.public.ca_file == tmp_path / "etc/evergreen/tls/ca.crt"
    assert place.nats is not None
    assert place.nats.ca_file is not None
    assert place.nats.ca_file.exists()
    checks = [files.master_key(place.master_key), files.authorities(place.authorities)]
    assert [check.status for check in checks] == ["ok", "skipped"]
