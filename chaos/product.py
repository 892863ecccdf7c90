"""The product as the launcher runs it, with every connection through a link that can break."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import libfaketime
import psutil

from chaos.link import Link
from contract.contexts import CONTEXTS, HTTP_CONTEXTS
from deploy.launcher import bootstrap, gateway, ports, probe, services, tls
from deploy.launcher.home import Home, password
from deploy.launcher.process import ProcessSpec
from tests.support.servers import Servers
from tests.support.stack import PATIENCE, Stack, free_port

PROCESSES = (*CONTEXTS, "gateway", "nats", "postgres")
DISK_MIB = 1536
"""What PostgreSQL and NATS have together, when their disk is to fill up."""

_FAKETIME = Path(libfaketime.__file__).parent / "vendor/libfaketime/src/libfaketime.so.1"
_POSTGRES_SOCKET = ".s.PGSQL.5432"


class Product:
    """All processes, the links between them, their clocks and their disk."""

    def __init__(self, home: Home, *, small_disk: bool) -> None:
        self.home = home
        self.servers = Servers(home)
        self.links: dict[str, Link] = {}
        """By name: `postgres` and `nats` as the services see them, and `<context>` for calls."""
        self._small_disk = small_disk
        self._directory = self.servers.run / "l"
        self._stopped: set[str] = set()
        self.port = free_port()
        self.stack: Stack
        self._tls: ssl.SSLContext

    async def start(self) -> None:
        """Starts everything; returns when it is ready."""
        await self.servers.start()
        self._directory.mkdir(mode=0o755)
        await self._connect()
        for name in (bootstrap.ADMIN_PASSWORD, bootstrap.ENROLLMENT_SECRET):
            self.home.secret(name, password)
        found = ports.pick(CONTEXTS, {}, random.SystemRandom())
        for context in CONTEXTS:
            self.servers.supervisor.start(self._service(context, found))
        files = tls.ensure(self.home.tls, tls.host_names(), datetime.now(UTC))
        self._tls = ssl.create_default_context(cafile=str(files.ca_certificate))
        self.servers.supervisor.start(
            await gateway.process(
                self.home,
                # The services' sockets as the gateway sees them are the links'.
                self._directory,
                port=self.port,
                addresses=("127.0.0.1",),
                files=files,
            )
        )
        async with asyncio.timeout(2 * PATIENCE):
            while not await self.is_ready():
                await asyncio.sleep(0.1)
        api = bootstrap.Api(f"https://localhost:{self.port}", files.ca_certificate)
        facts = await bootstrap.write(self.home, api, "owner@localhost")
        self.stack = Stack(self.home.root, self.port, None, facts)  # type: ignore[arg-type]

    async def is_ready(self) -> bool:
        """Whether `/readyz` answers 200."""
        status, _ = await probe.http(self.port, "/readyz", tls=self._tls)
        return status == 200

    async def stop(self) -> None:
        """Stops everything, whatever state it is in."""
        for name in list(self._stopped):
            self.go_on(name)
        for link in self.links.values():
            link.mend()
        await self.servers.supervisor.stop((("gateway",), CONTEXTS))
        for link in self.links.values():
            await link.close()
        await self.servers.stop()

    def pids(self, name: str) -> list[int]:
        """A process and its children; none while it is down."""
        pid = self.servers.supervisor[name].pid
        if pid is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
        return []

    def kill(self, name: str) -> None:
        """kill -9; the supervisor starts it again."""
        for pid in self.pids(name)[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def hold(self, name: str) -> None:
        """SIGSTOP: it is there, and does nothing."""
        self._stopped.add(name)
        for pid in self.pids(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        """SIGCONT."""
        self._stopped.discard(name)
        for pid in self.pids(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def step_clock(self, context: str, seconds: int) -> None:
        """Sets the clock that a service sees, this far from the real one."""
        (self._directory / f"{context}.clock").write_text(f"{seconds:+d}")

    @property
    def can_fill_disk(self) -> bool:
        """Whether PostgreSQL and NATS have a disk of their own."""
        return self._small_disk

    def fill_disk(self) -> None:
        """Takes all the room that there is."""
        with contextlib.suppress(OSError), self._ballast.open("wb") as file:
            while True:
                os.posix_fallocate(file.fileno(), file.tell(), 1 << 20)
                file.seek(0, os.SEEK_END)
        with contextlib.suppress(OSError), self._ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def empty_disk(self) -> None:
        """Gives it back."""
        self._ballast.unlink(missing_ok=True)

    @property
    def _ballast(self) -> Path:
        return self.home.nats / "ballast"

    async def _connect(self) -> None:
        real = self.servers.postgres.socket_directory / _POSTGRES_SOCKET
        nats = ports.pick(("nats",), {}, random.SystemRandom())["nats"]
        self._nats_port = nats
        self.links["postgres"] = Link(f"unix:{self._directory / _POSTGRES_SOCKET}", f"unix:{real}")
        self.links["nats"] = Link(f"127.0.0.1:{nats}", f"127.0.0.1:{self.servers.ports['nats']}")
        for context in CONTEXTS:
            for kind in ("gw", "int", "http"):
                if kind == "http" and context not in HTTP_CONTEXTS:
                    continue
                seen = services.socket(self._directory, context, kind)
                behind = services.socket(self.servers.run, context, kind)
                self.links[f"{context}.{kind}"] = Link(f"unix:{seen}", f"unix:{behind}")
        for link in self.links.values():
            await link.start()

    def links_of(self, name: str) -> list[Link]:
        """The links that lead to a part."""
        return [link for key, link in self.links.items() if key.partition(".")[0] == name]

    def _service(self, context: str, found: dict[str, int]) -> ProcessSpec:
        spec = services.process(
            context,
            home=self.home,
            run=self.servers.run,
            postgres=self.servers.postgres,
            ports={**self.servers.ports, **found},
            admin_email="owner@localhost",
            log_level="info",
        )
        run, nats = str(self.servers.run), str(self.servers.ports["nats"])
        environment = {
            name: _through(name, value, run, str(self._directory), nats, str(self._nats_port))
            for name, value in spec.env.items()
        }
        clock = self._directory / f"{context}.clock"
        clock.write_text("+0")
        environment |= {
            "LD_PRELOAD": str(_FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_CACHE_DURATION": "1",
            # Only the date steps; what measures how long things take does not.
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        return replace(spec, env=environment)


def _through(name: str, value: str, run: str, links: str, nats: str, linked_nats: str) -> str:
    """A service's setting that leads it to the links; where it listens itself stays."""
    if name.endswith("_LISTEN"):
        return value
    if name == "EVERGREEN_DATABASE_URL":
        return value.replace(f"{run}/postgres", links)
    if name.endswith("_TARGET"):
        return value.replace(f"unix:{run}/", f"unix:{links}/")
    if name == "EVERGREEN_NATS_URL":
        return value.replace(f":{nats}", f":{linked_nats}")
    return value


@contextmanager
def _disk(home: Path, mib: int) -> Iterator[bool]:
    """A disk of its own for what PostgreSQL and NATS write, where the machine allows that."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    mount = shutil.which("mount")
    done = mount and os.geteuid() == 0 and subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={mib}m,mode=700", "evergreen-chaos", str(home)],
        capture_output=True,
        check=False,
    ).returncode == 0  # fmt: skip
    try:
        yield bool(done)
    finally:
        if done:
            subprocess.run(["umount", "--lazy", str(home)], check=False)


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Product]:
    """The product on a small disk (as root; otherwise the disk is not filled)."""
    with _disk(directory, DISK_MIB) as small:
        home = Home(directory)
        home.prepare()
        product = Product(home, small_disk=small)
        try:
            await product.start()
            yield product
        finally:
            product.empty_disk()
            await product.stop()
