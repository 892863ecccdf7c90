"""Releases of the chart to run as local containers, with what stands outside of the cluster."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from deploy.certificates import Authority
from deploy.launcher import bootstrap
from deploy.launcher.home import Home
from deploy.private_files import private_directory, write_private
from tests.compose import images
from tests.compose.cluster import Cluster, Files, secret_of
from tests.compose.docker import Docker
from tests.compose.pod import Pod
from tests.helm.chart import CHART, EVAL, GIVEN, PRODUCTION, Object, render
from tests.support.stack import PATIENCE, until

DATABASE = "postgres.example.org"
NATS = "nats.example.org"
ADMIN = "evergreen_admin"
PUBLIC = "evergreen.example.org"
"""The host of tests/helm's public address."""
EXTERNAL_DATABASE = {
    **PRODUCTION,
    "database.host": DATABASE,
    "database.caSecret": "outside-ca",
    "database.admin.user": ADMIN,
}
EXTERNAL_NATS = {
    "nats.bundled": "false",
    "nats.url": f"tls://{NATS}:4222",
    "nats.caSecret": "outside-ca",
    "nats.replicas": "1",
}
_MADE = {
    "admin": "admin",
    "masterKey": "master-key",
    "insideTls": "inside",
    "gateway.tls": "gateway-tls",
    "database.admin": "database-admin",
    "database.migrator": "database-migrator",
    "database.services": "database-services",
    "nats": "nats",
}
"""What the chart calls the secrets that are not given."""
_FIRST = {
    bootstrap.ADMIN_PASSWORD: "password",
    bootstrap.ENROLLMENT_SECRET: "enrollment-secret",
}
_POSTGRES = 999


@dataclass
class Release:
    """A release of the chart."""

    cluster: Cluster
    values: dict[str, str]

    def start_all(self) -> None:
        """Starts all pods at once, as many of each as are rendered; none waits for another."""
        for kind in ("StatefulSet", "Deployment"):
            for found in self.cluster.of_kind(kind):
                for number in range(self._replicas(found)):
                    self.cluster.start(f"{kind}/{found['metadata']['name']}", number)

    def _replicas(self, found: Object) -> int:
        for scaler in self.cluster.of_kind("HorizontalPodAutoscaler"):
            if scaler["spec"]["scaleTargetRef"]["name"] == found["metadata"]["name"]:
                return int(scaler["spec"]["minReplicas"])
        return int(found["spec"]["replicas"])

    def pods(self, component: str) -> list[Pod]:
        """The pods that run of a part of the product."""
        return [
            pod for name, pod in self.cluster.pods.items() if name.startswith(f"ev-{component}-")
        ]

    def migrate(self, *, is_upgrade: bool = False) -> str:
        """Runs the Job of an installation or of an upgrade; answers what its last step says."""
        objects = render(self.values, "--is-upgrade") if is_upgrade else self.cluster.objects
        (job,) = (
            found
            for found in objects
            if found["kind"] == "Job" and found["metadata"]["name"].startswith("ev-migrate-")
        )
        return self.cluster.run(job)

    def test(self, *options: str) -> str:
        """`helm test`."""
        (pod,) = self.cluster.of_kind("Pod")
        return self.cluster.run(pod, *options)

    def until_ready(self) -> None:
        """Waits until every pod is that was not stopped."""
        for pod in self.cluster.pods.values():
            if not pod.is_stopped:
                pod.until_ready()

    def facts(self, home: Home, url: str) -> Path:
        """What end-to-end tests have to know, from the secrets as NOTES.txt says."""
        secret = self.cluster.secret
        private_directory(home.secrets)
        for name, key in _FIRST.items():
            write_private(home.secrets / name, secret("ev-admin", key))
        ca = home.root / "ca.crt"
        ca.write_text(secret("ev-gateway-tls", "ca.crt"))
        asyncio.run(bootstrap.write(home, bootstrap.Api(url, ca), "owner@localhost"))
        # Integrators connect to NATS, whose certificate is of the other CA.
        ca.write_text(ca.read_text() + secret("ev-inside", "ca.crt"))
        return home.bootstrap_file


@contextmanager
def evaluation(docker: Docker, **values: str) -> Iterator[Release]:
    """Everything in the cluster, secrets made by the chart."""
    told = {**EVAL, **{name.replace("__", "."): value for name, value in values.items()}}
    cluster = Cluster(docker, render(told))
    try:
        yield Release(cluster, told)
    finally:
        cluster.remove()


@contextmanager
def production(docker: Docker, **more: str) -> Iterator[Release]:
    """An external PostgreSQL, whatever more is outside, and every secret given."""
    plain = {**EXTERNAL_DATABASE, **more}
    made = {
        one["metadata"]["name"]: secret_of(one) for one in render(plain) if one["kind"] == "Secret"
    }
    told = {**plain, **GIVEN}
    secrets: dict[str, Files] = {
        GIVEN[f"{key}.existingSecret"]: made[f"ev-{name}"] for key, name in _MADE.items()
    }
    directory = Path(tempfile.mkdtemp(prefix="evergreen-outside-"))
    authority = Authority.ensure_in(directory / "ca", "Outside CA")
    secrets["outside-ca"] = {"ca.crt": authority.certificate_file.read_bytes()}
    cluster = Cluster(docker, render(told), secrets)
    try:
        _database(cluster, authority, directory / "postgres")
        if more.get("nats.bundled") == "false":
            _nats(cluster, authority, directory / "nats")
        yield Release(cluster, told)
    finally:
        cluster.remove()
        shutil.rmtree(directory)


def _database(cluster: Cluster, authority: Authority, directory: Path) -> None:
    """Somebody's PostgreSQL with TLS, whose administrator is no superuser."""
    directory.mkdir()
    authority.ensure(directory, DATABASE)
    for path in (directory, *directory.iterdir()):
        os.chown(path, _POSTGRES, _POSTGRES)
    image = yaml.safe_load((CHART / "values.yaml").read_text())["database"]["image"]
    container = cluster.container(
        f"{image['repository']}:{image['tag']}",
        f"--network-alias={DATABASE}",
        f"--user={_POSTGRES}:{_POSTGRES}",
        "--env=POSTGRES_PASSWORD=of-the-superuser",
        f"--volume={directory}:/tls:ro",
        words=(
            "-c",
            "ssl=on",
            "-c",
            "ssl_cert_file=/tls/tls.crt",
            "-c",
            "ssl_key_file=/tls/tls.key",
        ),
    )
    password = cluster.secret(GIVEN["database.admin.existingSecret"], "password")
    role = f"CREATE ROLE {ADMIN} LOGIN CREATEDB CREATEROLE PASSWORD '{password}'"

    def made() -> bool:
        words = ("psql", "--host=127.0.0.1", "--username=postgres", "--command", role)
        # By the network: the server that sets the directory up listens on its socket only.
        done = cluster.docker(
            "exec", "--env=PGPASSWORD=of-the-superuser", container, *words, check=False
        )
        return done.returncode == 0 or "already exists" in done.stderr

    until(made, PATIENCE, "the external PostgreSQL does not start", pause=0.5)


def _nats(cluster: Cluster, authority: Authority, directory: Path) -> None:
    """Somebody's NATS, with the users that `evergreen nats render` writes."""
    passwords = directory / "passwords"
    passwords.mkdir(parents=True)
    authority.ensure(directory, NATS)
    given = cluster.given[GIVEN["nats.existingSecret"]]
    for user, password in given.items():
        (passwords / user).write_bytes(password)
    cluster.docker(
        "run", "--rm", "--user=0", f"--volume={directory}:/outside", images.ours(),
        "nats", "render", "/outside/nats.conf", "--passwords=/outside/passwords",
        "--certificate=/outside",
    )  # fmt: skip
    image = yaml.safe_load((CHART / "values.yaml").read_text())["nats"]["image"]
    cluster.container(
        f"{image['repository']}:{image['tag']}",
        f"--network-alias={NATS}",
        f"--volume={directory}:/outside:ro",
        words=("--config", "/outside/nats.conf"),
    )
