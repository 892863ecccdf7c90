"""No secret takes the place of one that is in use, whatever is gone, empty, or cannot be seen."""

from __future__ import annotations

import base64
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.kubernetes import FakeKubernetes, kubernetes
from tests.helm.chart import CHART, EVAL, GIVEN, PRODUCTION, helm, render, secrets_of, template

KEY = base64.b64encode(secrets.token_bytes(32))
OWN = (
    "ev-admin",
    "ev-master-key",
    "ev-inside",
    "ev-gateway-tls",
    "ev-database-admin",
    "ev-database-migrator",
    "ev-database-services",
    "ev-nats",
)
"""The Secrets that the chart makes."""
RENEWED = {"ev-ca", "ev-inside", "ev-gateway-tls"}
"""Those that a job of the cluster renews: Helm makes what is missing, and leaves them alone."""


@pytest.fixture
def cluster() -> Iterator[FakeKubernetes]:
    with kubernetes() as fake:
        yield fake


@pytest.fixture
def installed(cluster: FakeKubernetes) -> FakeKubernetes:
    """A cluster with a release's Secrets."""
    for name, data in secrets_of(render(EVAL)).items():
        cluster.secret(name, **data)
    cluster.secret("ev-master-key", master_key=KEY)
    return cluster


def seen(
    cluster: FakeKubernetes, directory: Path, *words: str, **values: str
) -> subprocess.CompletedProcess[str]:
    """Renders the chart as `helm install` does (`upgrade` with `--is-upgrade`), with a cluster."""
    given = {"generateSecrets": "null"} | EVAL | values
    words = (*words, "--dry-run=server", "--kubeconfig", str(cluster.kubeconfig(directory)))
    return template(given, *words)


def made(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The Secrets in what was rendered."""
    assert done.returncode == 0, done.stderr
    found = [
        one
        for one in yaml.load_all(done.stdout, yaml.CSafeLoader)
        if one and one["kind"] == "Secret"
    ]
    return {one["metadata"]["name"]: one for one in found}


def test_the_first_installation_makes_them(cluster: FakeKubernetes, tmp_path: Path) -> None:
    """And locks the master key: no other one can be applied over it."""
    found = made(seen(cluster, tmp_path))
    assert set(found) == {*OWN, "ev-ca"}
    master = found["ev-master-key"]
    assert len(base64.b64decode(master["stringData"]["master_key"], validate=True)) == 32
    assert master["immutable"] is True
    assert not any("immutable" in one for name, one in found.items() if name != "ev-master-key")


def test_an_upgrade_keeps_them(installed: FakeKubernetes, tmp_path: Path) -> None:
    """Each value as it is, and a master key of an older chart stays one that can be rolled back."""
    found = secrets_of(made(seen(installed, tmp_path, "--is-upgrade")).values())
    assert found == {name: installed.data(name) for name in OWN if name not in RENEWED}
    assert "immutable" not in made(seen(installed, tmp_path, "--is-upgrade"))["ev-master-key"]
    installed.secret("ev-master-key", immutable=True, master_key=KEY)
    assert made(seen(installed, tmp_path, "--is-upgrade"))["ev-master-key"]["immutable"] is True


def test_certificates_of_older_charts_stay_in_the_release(
    installed: FakeKubernetes, tmp_path: Path
) -> None:
    """Helm refuses a rollback to a release with an object that is there and not in this one."""
    for name in ("ev-inside", "ev-gateway-tls"):
        notes = {"meta.helm.sh/release-name": "ev", "meta.helm.sh/release-namespace": "fleet"}
        one = installed.objects["secrets", name]
        one["metadata"]["annotations"] = notes
    found = made(seen(installed, tmp_path, "--is-upgrade"))
    for name in ("ev-inside", "ev-gateway-tls"):
        assert secrets_of([found[name]])[name] == installed.data(name)
        assert "helm.sh/hook" not in found[name]["metadata"]["annotations"]
    # Their CAs: the one whose key is known goes on, and the other one is told beside it.
    del installed.objects["secrets", "ev-ca"]
    old = {"ca.crt": b"old CA", "ca.key": b"its key"}
    installed.secret("ev-inside", **old)
    kept = secrets_of([made(seen(installed, tmp_path, "--is-upgrade"))["ev-ca"]])["ev-ca"]
    assert (kept["inside.crt"], kept["inside.key"]) == (b"old CA", b"its key")
    assert b"BEGIN CERTIFICATE" in kept["gateway.crt"]


def test_a_new_services_password_is_made(installed: FakeKubernetes, tmp_path: Path) -> None:
    """A Secret with one entry for each service gets those that a release adds."""
    data = installed.data("ev-database-services")
    del data["audit"]
    installed.secret("ev-database-services", **data)
    found = secrets_of(made(seen(installed, tmp_path, "--is-upgrade")).values())
    assert found["ev-database-services"] | data == found["ev-database-services"]
    assert len(found["ev-database-services"]["audit"]) == 40


@pytest.mark.parametrize("name", OWN)
def test_one_that_is_gone_is_not_made_anew(
    installed: FakeKubernetes, tmp_path: Path, name: str
) -> None:
    """Unless that is said; never the master key, for the database's keys open with no other."""
    del installed.objects["secrets", name]
    done = seen(installed, tmp_path, "--is-upgrade")
    assert done.returncode != 0
    assert f"the Secret {name} of this release is gone" in done.stderr
    done = seen(installed, tmp_path, "--is-upgrade", generateSecrets="true")
    assert (done.returncode == 0) is (name != "ev-master-key"), done.stderr


@pytest.mark.parametrize(
    "key",
    [None, b"", b" \n", KEY[:-5], b"not base64" * 5],
    ids=["missing", "empty", "blank", "short", "not base64"],
)
@pytest.mark.parametrize("words", [(), ("--is-upgrade",)])
def test_a_master_key_that_is_none_is_refused(
    installed: FakeKubernetes, tmp_path: Path, key: bytes | None, words: tuple[str, ...]
) -> None:
    """As `kubectl apply` of an empty file leaves it: no new one takes its place."""
    installed.secret("ev-master-key", **({} if key is None else {"master_key": key}))
    done = seen(installed, tmp_path, *words)
    assert done.returncode != 0
    assert "ev-master-key" in done.stderr
    assert "put it back" in done.stderr or "Put the value back" in done.stderr
    # The same where the operator gives it.
    installed.secret("given", **({} if key is None else {"master_key": key}))
    values = {"masterKey.existingSecret": "given"}
    done = seen(installed, tmp_path, *words, **values)
    assert done.returncode != 0
    assert "the Secret given holds no master key" in done.stderr


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("ev-admin", "password"),
        ("ev-database-admin", "password"),
        ("ev-database-services", "policy"),
        ("ev-nats", "issuer"),
    ],
)
def test_an_empty_value_is_refused(
    installed: FakeKubernetes, tmp_path: Path, name: str, key: str
) -> None:
    installed.secret(name, **installed.data(name) | {key: b""})
    done = seen(installed, tmp_path, "--is-upgrade")
    assert done.returncode != 0
    assert f"the Secret {name} has nothing in {key}" in done.stderr


def test_a_volume_with_a_database_wants_its_own_key(
    cluster: FakeKubernetes, tmp_path: Path
) -> None:
    """`helm uninstall` leaves it; a new installation over it with another key would be none."""
    cluster.put("persistentvolumeclaims", "data-ev-postgres-0")
    done = seen(cluster, tmp_path)
    assert done.returncode != 0
    assert "data-ev-postgres-0 holds a database" in done.stderr
    cluster.secret("ev-master-key", master_key=KEY)
    assert secrets_of(made(seen(cluster, tmp_path)).values())["ev-master-key"] == {
        "master_key": KEY
    }


def test_without_a_cluster_none_is_made() -> None:
    """`helm template | kubectl apply` and Argo CD would replace all of them, each time."""
    given = [word for key, value in PRODUCTION.items() for word in ("--set", f"{key}={value}")]
    words = ["template", "ev", str(CHART), *given]
    done = helm(*words)
    assert done.returncode != 0
    for value in ("admin", "masterKey", "gateway.tls", "nats"):
        assert value in done.stderr
    assert "existingSecret" in done.stderr
    names = [word for key, value in GIVEN.items() for word in ("--set", f"{key}={value}")]
    done = helm(*words, *names)
    assert done.returncode == 0, done.stderr
    assert "kind: Secret" not in done.stdout


def test_none_are_made_where_that_is_not_wanted(cluster: FakeKubernetes, tmp_path: Path) -> None:
    done = seen(cluster, tmp_path, generateSecrets="false")
    assert done.returncode != 0
    assert "generateSecrets is false" in done.stderr
