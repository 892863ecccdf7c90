"""Three NATS servers of one cluster, configured by the chart's production profile.

The pods' names become addresses of this machine's loopback, so that each server has the ports of
the chart. What is not the chart's are these addresses, the directories, and certificates for them.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contract.subjects import STREAMS
from deploy.certificates import Authority
from deploy.containers.layout import NATS_MONITOR_PORT, NATS_PORT
from deploy.launcher import nats as nats_process
from deploy.nats import CLUSTER_PORT
from tests.helm.chart import PRODUCTION, Object, containers, pods, render
from tests.support.paths import ROOT
from tests.support.stack import PATIENCE

_POD = "StatefulSet/ev-nats"


@dataclass
class Server:
    """One server, which can be killed and started again."""

    address: str
    directory: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"tls://{self.address}:{NATS_PORT}"

    @property
    def name(self) -> str:
        """Its name in the cluster."""
        return self.directory.name

    def start(self) -> None:
        """Starts it with what it had."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(nats_process.binary()), "--config", str(self.directory / "nats.conf")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """Ends it as `kill -9` does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def hang(self) -> None:
        """Keeps it from doing anything, until it is killed."""
        if self.process is not None:
            self.process.send_signal(signal.SIGSTOP)

    def told(self, path: str) -> dict[str, Any]:
        """What its monitoring address answers; nothing while it does not."""
        try:
            url = f"http://{self.address}:{NATS_MONITOR_PORT}{path}"
            with urllib.request.urlopen(url, timeout=1) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except (OSError, ValueError):
            return {}


@dataclass
class NatsCluster:
    """The servers, and how services, integrators and tests reach them."""

    servers: list[Server]
    secrets: Path
    ca_file: Path
    settings: dict[str, object] = field(default_factory=dict)
    """What the chart tells the services about NATS."""

    @property
    def urls(self) -> list[str]:
        """The list of servers, as a client library takes it."""
        return [server.url for server in self.servers]

    def tls(self) -> ssl.SSLContext:
        """Trusts the servers' certificates."""
        return ssl.create_default_context(cafile=self.ca_file)

    def rebuild(self, stream: str, home: Path) -> None:
        """Throws a stream away, as the operator's pod does."""
        (home / "secrets").mkdir()
        shutil.copy(self.secrets / "operator", home / "secrets" / "nats_operator")
        subprocess.run(
            [sys.executable, "-m", "cli.entry", "events", "rebuild", stream, "--yes"],
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "EVERGREEN_HOME": str(home),
                "EVERGREEN_NATS_URL": str(self.settings["nats_url"]),
                "EVERGREEN_NATS_CA_FILE": str(self.ca_file),
            },
            check=True,
        )

    def leader(self, stream: str) -> Server | None:
        """The server that leads a stream, if there is one."""
        for server in self.servers:
            for found in _streams(server):
                if found["name"] == stream and found["cluster"].get("leader"):
                    (leader,) = (s for s in self.servers if s.name == found["cluster"]["leader"])
                    return leader
        return None

    async def until_whole(self) -> None:
        """Waits until each server has all that the others have."""

        def whole() -> bool:
            return all(server.told("/healthz").get("status") == "ok" for server in self.servers)

        await until(whole, "the servers do not become one cluster")

    async def until_streams_whole(self) -> None:
        """Waits until each stream is on all servers, and up to date there."""

        def whole() -> bool:
            leaders = [self.leader(stream.name) for stream in STREAMS]
            return all(
                leader is not None and self._is_current(leader, stream.name)
                for leader, stream in zip(leaders, STREAMS, strict=True)
            )

        await self.until_whole()
        await until(whole, "the streams are not on all servers")

    def _is_current(self, leader: Server, stream: str) -> bool:
        return any(
            found["name"] == stream
            and len(found["cluster"].get("replicas", ())) == len(self.servers) - 1
            and all(copy.get("current") for copy in found["cluster"]["replicas"])
            for found in _streams(leader)
        )


def _streams(server: Server) -> list[dict[str, Any]]:
    accounts = server.told("/jsz?accounts=true&streams=true").get("account_details", ())
    return [stream for account in accounts for stream in account.get("stream_detail", ())]


async def until(condition: Callable[[], bool | Awaitable[bool]], otherwise: str) -> None:
    """Waits until a condition holds, with patience."""
    try:
        async with asyncio.timeout(2 * PATIENCE):
            while True:
                found = await asyncio.to_thread(condition)
                if found if isinstance(found, bool) else await found:
                    return
                await asyncio.sleep(0.05)
    except TimeoutError as late:
        raise AssertionError(otherwise) from late


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[NatsCluster]:
    """Starts the servers; kills them afterwards."""
    objects = render(PRODUCTION)
    (made,) = (o for o in objects if o["metadata"]["name"] == "ev-nats" and o["kind"] == "Secret")
    secrets = directory / "secrets"
    secrets.mkdir()
    for name, text in made["stringData"].items():
        (secrets / name).write_text(text)
    pod = dict(pods(objects))[_POD]
    hosts = [w.partition("=")[2] for w in _configure(pod)["args"] if w.startswith("--cluster=")]
    address_of = dict(zip(hosts, _addresses(len(hosts)), strict=True))
    authority = Authority.ensure_in(directory / "ca")
    servers = []
    for host, address in address_of.items():
        own = directory / host.partition(".")[0]
        own.mkdir()
        authority.ensure(own, "nats", *address_of.values())
        _render(pod, own, secrets, address_of)
        _listen_on(own / "nats.conf", address)
        servers.append(Server(address, own))
    cluster = NatsCluster(servers, secrets, authority.certificate_file)
    cluster.settings = _settings(objects, cluster, address_of)
    try:
        for server in servers:
            server.start()
        await cluster.until_whole()
        yield cluster
    finally:
        for server in servers:
            server.kill()


def _configure(pod: Object) -> Object:
    (found,) = (one for one in containers(pod) if one["name"] == "configure")
    return found


def _render(pod: Object, own: Path, secrets: Path, address_of: dict[str, str]) -> None:
    """Runs the pod's init container."""
    places = {
        "/etc/nats/nats.conf": str(own / "nats.conf"),
        "--passwords=/etc/evergreen/secrets": f"--passwords={secrets}",
        "--certificate=/run/evergreen": f"--certificate={own}",
        **{f"--cluster={host}": f"--cluster={address}" for host, address in address_of.items()},
    }
    words = [places.get(word, word) for word in _configure(pod)["args"]]
    subprocess.run(
        [sys.executable, "-m", "cli.entry", *words, f"--store={own / 'store'}"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "NATS_SERVER_NAME": own.name},
        stdout=subprocess.DEVNULL,
        check=True,
    )


def _listen_on(file: Path, address: str) -> None:
    """Puts one address in place of all of a pod's."""
    text = file.read_text()
    assert text.count('"0.0.0.0:') == 3
    file.write_text(text.replace('"0.0.0.0:', f'"{address}:'))


def _settings(
    objects: list[Object], cluster: NatsCluster, address_of: dict[str, str]
) -> dict[str, object]:
    (told,) = (o["data"] for o in objects if o["metadata"]["name"] == "ev-services")
    url = told["EVERGREEN_NATS_URL"]
    for host, address in address_of.items():
        url = url.replace(host, address)
    return {
        "nats_url": url,
        "nats_ca_file": cluster.ca_file,
        "stream_replicas": int(told["EVERGREEN_STREAM_REPLICAS"]),
        "events_issuer_file": cluster.secrets / "issuer",
        "nats_gatekeeper_password_file": cluster.secrets / "gatekeeper",
    }


def _addresses(count: int) -> list[str]:
    """Addresses of this machine's loopback whose ports are free."""
    chance = random.SystemRandom()
    while True:
        network = f"127.{chance.randint(1, 254)}.{chance.randint(0, 254)}"
        found = [f"{network}.{number + 1}" for number in range(count)]
        if all(
            _is_free(address, port)
            for address in found
            for port in (NATS_PORT, CLUSTER_PORT, NATS_MONITOR_PORT)
        ):
            return found


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind((address, port))
        except OSError:
            return False
    return True
