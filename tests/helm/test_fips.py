"""FIPS mode in the chart: everywhere or nowhere, and a refusal is final."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest

from deploy.postgres import settings
from servicekit.security import mode
from tests.helm.chart import (
    EVAL,
    EVERYTHING,
    PRODUCTION,
    VERSIONS,
    Object,
    containers,
    pods,
    render,
    template,
)

REQUIRED = {"fips.required": "true", "fips.module.hostPath.path": "/opt/openssl-fips"}
PROFILES = {"eval": EVAL, "production": PRODUCTION, "everything": EVERYTHING}
OURS = "evergreen-backend"
NO_COMMAND_OF_OURS = {"writable", "copy"}
"""Containers of our image that run another program."""


def environment(container: Object, objects: list[Object]) -> dict[str, Any]:
    """All that a container is told."""
    found = {one["name"]: one.get("value") for one in container.get("env", [])}
    for source in container.get("envFrom", []):
        name = source["configMapRef"]["name"]
        (data,) = (
            one["data"]
            for one in objects
            if one["kind"] == "ConfigMap" and one["metadata"]["name"] == name
        )
        found = {**data, **found}
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("profile", PROFILES)
def test_every_object_keeps_the_schema_of_kubernetes(profile: str, version: str) -> None:
    for found in render({**PROFILES[profile], **REQUIRED}, "--kube-version", f"{version}.0"):
        if found["apiVersion"].split("/")[0] in {"v1", "apps", "batch"}:
            kubernetes_validate.validate(found, version, strict=True)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("upgrade", [(), ("--is-upgrade",)], ids=["install", "upgrade"])
def test_each_container_of_ours_is_told(profile: str, upgrade: tuple[str, ...]) -> None:
    """Of the mode, the algorithms and the module, whose volume is there."""
    wanted = {"fips.suites": "approved", "fips.sha256": "ab" * 32}
    objects = render({**PROFILES[profile], **REQUIRED, **wanted}, *upgrade)
    told = 0
    for name, pod in pods(objects):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in containers(pod):
            if not container["image"].startswith(OURS) or container["name"] in NO_COMMAND_OF_OURS:
                continue
            said = environment(container, objects)
            assert said[mode.FIPS] == mode.REQUIRED, (name, container["name"])
            assert said.get(mode.SUITES, mode.APPROVED) == mode.APPROVED
            assert said[mode.SHA256] == "ab" * 32
            assert said["EVERGREEN_FIPS_MODULES"] == "/opt/fips"
            mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            assert mounts["/opt/fips"] == {
                "name": "fips-module",
                "mountPath": "/opt/fips",
                "readOnly": True,
            }
            assert volumes["fips-module"]["hostPath"] == {"path": "/opt/openssl-fips"}
            # The module's own tests write there.
            assert "/tmp" in mounts
            told += 1
    assert told >= 12


def test_nobody_is_bothered_without_it() -> None:
    """Both settings have their usual words, and nothing is mounted or checked."""
    objects = render(EVAL)
    for _, pod in pods(objects):
        assert not [volume for volume in pod["volumes"] if volume["name"] == "fips-module"]
        for container in containers(pod):
            said = environment(container, objects)
            assert said.get(mode.FIPS, mode.OFF) == mode.OFF
            assert said.get(mode.SUITES, mode.STANDARD) == mode.STANDARD
            assert not said.get("EVERGREEN_FIPS_MODULES")
            assert "ssl_groups" not in str(container.get("args"))
    assert "ev-fips" not in {one["metadata"]["name"] for one in objects}


def test_an_install_that_is_refused_changes_nothing() -> None:
    """The check runs before all else; its refusal, exit status 78, is not tried again."""
    objects = {one["metadata"]["name"]: one for one in render({**EVAL, **REQUIRED})}
    job = objects["ev-fips"]
    notes = job["metadata"]["annotations"]
    assert notes["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert int(notes["helm.sh/hook-weight"]) < 0
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [mode.REFUSED])
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    # Neither an account nor a Secret is there before an installation.
    assert "serviceAccountName" not in pod
    assert not [volume for volume in pod["volumes"] if "secret" in volume or "projected" in volume]
    (check,) = pod["containers"]
    assert check["args"] == ["fips", "check", "--tls"]
    backup = render({**EVERYTHING, **REQUIRED, "backup.target": "/backups"})
    for found in backup:
        if found["kind"] == "CronJob" and found["metadata"]["name"] in {"ev-backup", "ev-restore"}:
            rules = found["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
            assert [rule for rule in rules if rule.get("onExitCodes", {}).get("values") == [78]]
    for name, found in objects.items():
        if found["kind"] == "Deployment" and name != "ev-operator":
            # The pods before go on until a new one is ready.
            assert found["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_servers_of_others_keep_to_approved_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the chart brings; another mode makes the gateway's configuration anew."""
    objects = {one["metadata"]["name"]: one for one in render({**EVAL, **REQUIRED})}
    usual = {one["metadata"]["name"]: one for one in render(EVAL)}
    (postgres,) = objects["ev-postgres"]["spec"]["template"]["spec"]["containers"]
    monkeypatch.setattr(mode, "_required", True)
    for name, value in settings.approved_tls().items():
        assert f"{name}={value}" in postgres["args"]

    def noted(found: Object) -> str:
        return str(found["spec"]["template"]["metadata"]["annotations"]["checksum/config"])

    assert noted(objects["ev-gateway"]) != noted(usual["ev-gateway"])
    assert noted(objects["ev-policy"]) != noted(usual["ev-policy"])


def test_other_words_are_refused() -> None:
    for values in ({"fips.suites": "fast"}, {"fips.required": "maybe"}, {"fips.sha256": "ab"}):
        done = template({**EVAL, **values})
        assert done.returncode != 0
        assert next(iter(values)).partition(".")[2] in done.stderr
