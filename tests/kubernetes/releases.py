"""Releases of the chart in a cluster, and what stands outside of them."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from contract.contexts import CONTEXTS
from deploy import nats
from deploy.certificates import Authority
from deploy.launcher import bootstrap
from deploy.launcher.errors import LauncherError
from deploy.launcher.home import Home
from deploy.private_files import private_directory, write_private
from servicekit.security import nkey
from servicekit.security.tls import Tls
from tests.helm.chart import CHART
from tests.kubernetes.cluster import PATIENCE, Cluster, Namespace
from tests.kubernetes.images import TREE
from tests.support.stack import Stack, attached, free_port, until

HERE = {"gateway.service.type": "ClusterIP", "image.pullPolicy": "Never"}
"""For a cluster without a load balancer and a registry."""
SMALL = {f"{part}.resources.requests.cpu": "10m" for part in ("serviceDefaults", "gateway")}
"""The production profile on one small machine."""
ADMIN = "evergreen_admin"


def image(name: str) -> dict[str, str]:
    """Values for one of our images."""
    repository, _, tag = name.partition(":")
    return {"image.repository": repository, "image.tag": tag}


@dataclass
class Release:
    """A release of the chart, and the way to its gateway from here."""

    namespace: Namespace
    name: str
    values: dict[str, str]
    port: int = field(default_factory=free_port)

    def _given(self) -> list[str]:
        told = {"publicUrl": f"https://localhost:{self.port}", **HERE, **self.values}
        return [word for key, value in told.items() for word in ("--set", f"{key}={value}")]

    def install(self, chart: Path = CHART) -> None:
        """`helm install`, and waits until all is ready."""
        words = ("install", self.name, chart, *self._given(), "--wait", "--timeout=15m")
        self.namespace.helm(*map(str, words), seconds=2 * PATIENCE)

    def upgrade(self, values: Mapping[str, str] | None = None, chart: Path = CHART) -> None:
        """`helm upgrade`, likewise; the values stay for later ones."""
        self.values |= values or {}
        words = ("upgrade", self.name, chart, *self._given(), "--wait", "--timeout=15m")
        self.namespace.helm(*map(str, words), seconds=2 * PATIENCE)

    def rollback(self, revision: int) -> None:
        """`helm rollback`, likewise."""
        words = ("rollback", self.name, str(revision), "--wait", "--timeout=15m")
        self.namespace.helm(*words, seconds=2 * PATIENCE)

    def test(self, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`helm test`."""
        return self.namespace.helm("test", self.name, "--timeout=5m", check=check)

    @contextmanager
    def reached(self, directory: Path) -> Iterator[Stack]:
        """The product behind a port of this machine, with what end-to-end tests have to know."""
        with self.namespace.forwarded(f"{self.name}-gateway", 443, self.port):
            home = Home(directory / f"facts-{secrets.token_hex(3)}")
            home.root.mkdir()
            private_directory(home.secrets)
            first = self.namespace.secret(f"{self.name}-admin")
            write_private(home.secrets / bootstrap.ADMIN_PASSWORD, first["password"])
            write_private(home.secrets / bootstrap.ENROLLMENT_SECRET, first["enrollment-secret"])
            ca = home.root / "ca.crt"
            ca.write_text(self.namespace.secret(f"{self.name}-gateway-tls")["ca.crt"])
            api = bootstrap.Api(f"https://localhost:{self.port}", ca)

            def written() -> bool:
                try:
                    asyncio.run(bootstrap.write(home, api, "owner@localhost"))
                except LauncherError:
                    return False
                return True

            until(written, 120, "the gateway is not reached", pause=1)
            stack = attached(home.bootstrap_file)

            def ready() -> bool:
                # Each pod, whichever answers: one that can serve is ready for Kubernetes before it
                # knows all that it needs.
                return all(stack.ready() for _ in range(12))

            until(ready, PATIENCE, "it is not ready", pause=1)
            yield stack


@contextmanager
def evaluation(cluster: Cluster, name: str = "ev", **values: str) -> Iterator[Release]:
    """Everything in the cluster, secrets made by the chart; installed."""
    with cluster.namespace() as namespace:
        release = Release(namespace, name, {**image(TREE), **values})
        release.install()
        yield release


@contextmanager
def production(
    cluster: Cluster,
    directory: Path,
    *,
    chart: Path = CHART,
    rights: str = "CREATEDB CREATEROLE",
    **values: str,
) -> Iterator[Release]:
    """The production profile, with a PostgreSQL and a NATS that are somebody else's; installed.

    Args:
        chart: another release's.
        rights: of the administrator of PostgreSQL; 0.1.0 needed a superuser.
    """
    with cluster.namespace({}) as outside, cluster.namespace() as namespace:
        authority = Authority.ensure_in(directory / "outside-ca", "Outside CA")
        password = secrets.token_urlsafe(24)
        users = {
            user: secrets.token_urlsafe(24) for user in (*CONTEXTS, nats.GATEKEEPER, nats.OPERATOR)
        }
        users["issuer"] = nkey.new_seed()
        external_postgres(outside, authority, directory, password, rights)
        _nats(outside, authority, directory, users)
        namespace.make_secret("outside-ca", {"ca.crt": authority.certificate_file.read_bytes()})
        namespace.make_secret("database-admin", {"password": password})
        namespace.make_secret("nats-users", users)
        told = {
            "profile": "production",
            "database.bundled": "false",
            "database.host": f"postgres.{outside.name}.svc",
            "database.caSecret": "outside-ca",
            "database.admin.user": ADMIN,
            "database.admin.existingSecret": "database-admin",
            "nats.bundled": "false",
            "nats.url": f"tls://nats.{outside.name}.svc:4222",
            "nats.caSecret": "outside-ca",
            "nats.existingSecret": "nats-users",
            "nats.replicas": "1",
            "serviceDefaults.drainSeconds": "5",
            **SMALL,
        }
        release = Release(namespace, "ev", {**image(TREE), **told, **values})
        release.install(chart)
        yield release


def _images() -> dict[str, str]:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    return {
        name: f"{values[part]['image']['repository']}:{values[part]['image']['tag']}"
        for name, part in (("postgres", "database"), ("nats", "nats"))
    }


def _service(name: str, port: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": port}]},
    }


def _pod(name: str, user: int, **container: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "securityContext": {"runAsUser": user, "runAsGroup": user, "fsGroup": user},
            "containers": [
                {
                    "name": name,
                    "imagePullPolicy": "Never",
                    "resources": {"requests": {"cpu": "10m"}},
                    "volumeMounts": [
                        {"name": "files", "mountPath": "/files", "readOnly": True},
                        {"name": "data", "mountPath": "/data"},
                    ],
                    **container,
                }
            ],
            "volumes": [
                {"name": "files", "secret": {"secretName": name, "defaultMode": 0o440}},
                {"name": "data", "emptyDir": {}},
            ],
        },
    }


def _certified(
    outside: Namespace, authority: Authority, directory: Path, name: str, more: Mapping[str, str]
) -> None:
    where = directory / name
    where.mkdir()
    authority.ensure(where, f"{name}.{outside.name}.svc")
    files = {path.name: path.read_text() for path in where.iterdir()}
    outside.make_secret(name, {**files, **more})


def external_postgres(
    outside: Namespace,
    authority: Authority,
    directory: Path,
    password: str,
    rights: str = "CREATEDB CREATEROLE",
) -> None:
    """A server with TLS, whose administrator is no superuser unless the rights say so."""
    _certified(outside, authority, directory, "postgres", {})
    files = ("ssl_cert_file=/files/tls.crt", "ssl_key_file=/files/tls.key")
    settings = ("ssl=on", *files, "max_connections=300")
    outside.apply(
        _service("postgres", 5432),
        _pod(
            "postgres",
            999,
            image=_images()["postgres"],
            args=[
                word for setting in (*settings, "max_connections=300") for word in ("-c", setting)
            ],
            env=[
                {"name": "POSTGRES_PASSWORD", "value": "of-the-superuser"},
                {"name": "PGDATA", "value": "/data/pgdata"},
            ],
        ),
    )
    role = f"CREATE ROLE {ADMIN} LOGIN {rights} PASSWORD '{password}'"

    def made() -> bool:
        words = ("env", "PGPASSWORD=of-the-superuser", "psql", "-h", "127.0.0.1", "-U", "postgres")
        done = outside.exec("postgres", *words, "-c", role, check=False)
        return done.returncode == 0 or "already exists" in done.stderr

    until(made, PATIENCE, "the external PostgreSQL does not start", pause=2)


def _nats(
    outside: Namespace, authority: Authority, directory: Path, users: Mapping[str, str]
) -> None:
    files = Tls(Path("/files/ca.crt"), Path("/files/tls.crt"), Path("/files/tls.key"))
    text = nats.render(
        4222,
        8222,
        Path("/data"),
        {user: password for user, password in users.items() if user != "issuer"},
        host="0.0.0.0",
        tls=files,
        monitor_host="0.0.0.0",
        issuer=nkey.public_key(users["issuer"]),
    )
    _certified(outside, authority, directory, "nats", {"nats.conf": text})
    outside.apply(
        _service("nats", 4222),
        _pod("nats", 10001, image=_images()["nats"], args=["--config", "/files/nats.conf"]),
    )
