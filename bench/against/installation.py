"""An installation as a black box: `make run` in its directory, and what its bootstrap.json says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx

from bench import organisations, product
from bench.cpu import Process, below, precise, processes, read_process
from bench.fleet import device_id
from bench.traffic import POLL, Call, Device, Traffic
from cli.sim import Client, EnrollError, Target, enroll, serials
from cli.sim.bodies import events_body, poll_body
from tests.support.stack import free_port

_START_SECONDS: Final = 300.0
_STOP_SECONDS: Final = 60.0
_HEARD_SECONDS: Final = 60.0
_POLL: Final = "/api/v1/devices/policy"
UNLIMITED: Final = {
    f"EVERGREEN_GATEWAY_{name}": "1000000000:1000000000"
    for name in ("DEVICE", "TENANT", "USER", "ENROLL", "LOGIN", "OPEN")
}
"""All load comes from one address and one organisation: its calls are counted as ever, on both
sides, but never too many."""


class InstallationError(Exception):
    """An installation does not start, or does not do what a bench needs."""


@dataclass(frozen=True, slots=True)
class Size:
    """What an installation has before it is measured."""

    devices: int
    organisations: int
    groups: int
    """Of each organisation; every one has a policy where the product knows policies of groups."""

    @classmethod
    def parse(cls, text: str) -> Size:
        """Reads devices, organisations and groups, as in `100000,1000,5`.

        Raises:
            ValueError: it is something else.
        """
        size = cls(*map(int, text.split(",")))
        if not 0 < size.organisations <= size.devices or size.groups < 0:
            raise ValueError(text)
        return size


@dataclass(slots=True)
class Installation:
    """A running installation. It is one side of a measurement."""

    name: str
    home: Path
    process: subprocess.Popen[bytes]
    bootstrap: dict[str, Any]
    rest_cpus: float = 0.0
    """Not taken off: what it uses at rest is in its calls' cost."""

    @property
    def port(self) -> int:
        return httpx.URL(self.bootstrap["url"]).port or 443

    @property
    def ca_file(self) -> str:
        return str(self.bootstrap["ca_file"])

    def processes(self) -> list[Process]:
        """All of its processes, the launcher among them."""
        return [precise(process) for process in below(self.process.pid, processes())]

    async def settled(self) -> None:
        """Nothing: who measures counts for a while longer."""

    def is_success(self, call: Call, status: int) -> bool:
        """A poll has to be answered "not modified", for it is cheap only then."""
        return status == (304 if call.kind == POLL else 200)

    async def traffic(self, devices: int, size: Size | None = None) -> Traffic:
        """What devices send that it has enrolled, with a policy in force.

        Args:
            devices: how many send.
            size: with which it is filled before; of those devices they are then.

        Raises:
            InstallationError: it does not do what a first administrator and devices ask.
        """
        version = await asyncio.to_thread(self._publish)
        prefix = f"BENCH-{time.time_ns()}"
        key = str(self.bootstrap["pre_shared_key"])
        async with Client(Target.of(self.bootstrap["url"], self.ca_file), connections=8) as client:
            try:
                enrolled = await enroll(
                    client, key, serials(prefix, devices if size is None else 1)
                )
            except EnrollError as error:
                raise InstallationError(f"{self.name}: {error}") from None
            first = enrolled[0]
            body = events_body(first.id, [time.time_ns()])
            answer = await client.call("/api/v1/devices/events", body, first.token)
        if answer.status != 200:
            raise InstallationError(f"{self.name}: an event was answered {answer.status}")
        login = {"email": self.bootstrap["email"], "password": self.bootstrap["password"]}
        callers = [Device(one.id, one.token) for one in enrolled]
        if size is not None:
            callers = await self.filled(size, devices)
        return Traffic(
            callers,
            version,
            key,
            login=json.dumps(login).encode(),
        )

    async def filled(self, size: Size, callers: int) -> list[Device]:
        """Fills the database; answers some of the devices, with what they have applied.

        Raises:
            InstallationError: a device is not answered as it should.
        """
        database = await product.superuser(self.home)
        try:
            with self._owner() as client:
                made = await organisations.make(client, database, size.organisations, size.groups)
            await organisations.register(database, made, size.devices)
            await organisations.until_put_together(database, size.organisations * size.groups)
        finally:
            await database.close()
        signer = await product.signer(self.home)
        issued = datetime.now(UTC) - timedelta(minutes=1)
        chosen = random.Random(5).sample(range(1, size.devices + 1), min(callers, size.devices))
        tokens = {
            n: signer.device_token(device_id(n), made.owner_of(n), 1, issued)[0] for n in chosen
        }
        async with Client(Target.of(self.bootstrap["url"], self.ca_file), connections=8) as client:
            return [
                Device(device_id(number), token, await self._applied(client, token))
                for number, token in tokens.items()
            ]

    async def _applied(self, client: Client, token: str) -> int:
        """The version that a device gets, as soon as the service has heard of its organisation."""
        end = time.monotonic() + _HEARD_SECONDS
        while time.monotonic() < end:
            answer = await client.call(_POLL, poll_body("0"), token)
            if answer.status == 200:
                return int(json.loads(answer.body)["version"])
            await asyncio.sleep(0.1)
        raise InstallationError(f"{self.name}: a first poll was answered {answer.status}")

    def _publish(self) -> int:
        """Puts a policy into force, as a first administrator does; answers its version."""
        document = {"updates": {"channel": "stable"}, "browser": {"homepage": "https://x.example"}}
        policy = {"name": "Bench", "orgId": self.bootstrap["tenant_id"], "bundle": document}
        with self._owner() as client:
            made = self._post(client, "/api/policies", policy)
            return int(self._post(client, f"/api/policies/{made['id']}/publish", {})["version"])

    @contextmanager
    def _owner(self) -> Iterator[httpx.Client]:
        """The first administrator."""
        facts = self.bootstrap
        login = {"email": facts["email"], "password": facts["password"]}
        tls = Target.of(facts["url"], facts["ca_file"]).tls
        assert tls is not None
        with httpx.Client(base_url=facts["url"], verify=tls, timeout=30) as client:
            token = self._post(client, "/auth/login", login)["token"]
            client.headers["authorization"] = f"Bearer {token}"
            yield client

    def _post(self, client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = client.post(path, json=body)
        if answer.status_code != 200:
            raise InstallationError(f"{self.name}: POST {path}: {answer.text[:500]}")
        found: dict[str, Any] = answer.json()
        return found


@dataclass(frozen=True, slots=True)
class Place:
    """A program's files, from which installations are made."""

    name: str
    directory: Path


@contextmanager
def running(where: Place) -> Iterator[Installation]:
    """Runs `make run`, with a home that lives as long. Whatever happens, no process is left.

    Raises:
        InstallationError: it does not start.
    """
    # On a disk, as in real life: /tmp may be in memory.
    prefix = f"evergreen-bench-{where.name}-"
    with tempfile.TemporaryDirectory(
        prefix=prefix, dir="/var/tmp", ignore_cleanup_errors=True
    ) as temporary:
        process = _start(where, Path(temporary))
        try:
            yield _started(where, process, Path(temporary))
        finally:
            _stop(process)


def _start(where: Place, temporary: Path) -> subprocess.Popen[bytes]:
    # What make tells its own children is not for this one.
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MAKE", "MFLAGS")) and key not in ("VIRTUAL_ENV", "PYTHONPATH")
    }
    with (temporary / "output").open("wb") as out:
        return subprocess.Popen(
            ["make", "--no-print-directory", "run"],
            cwd=where.directory,
            env={
                **environment,
                **UNLIMITED,
                "EVERGREEN_HOME": str(temporary / "home"),
                "EVERGREEN_PORT": str(free_port()),
                "EVERGREEN_EVENTS_LISTEN": f"127.0.0.1:{free_port()}",
            },
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            # Ctrl-C reaches this program, which stops the installation.
            start_new_session=True,
        )


def _started(where: Place, process: subprocess.Popen[bytes], temporary: Path) -> Installation:
    """The installation, once its gateway says that all is ready."""
    home = temporary / "home"
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            facts: dict[str, Any] = json.loads((home / "bootstrap.json").read_text())
            tls = Target.of(facts["url"], facts["ca_file"]).tls
            assert tls is not None
            if httpx.get(f"{facts['url']}/readyz", verify=tls).status_code == 200:
                return Installation(where.name, home, process, facts)
        except (OSError, ValueError, httpx.HTTPError):
            pass
        time.sleep(0.2)
    said = (temporary / "output").read_text(errors="replace")[-4000:]
    raise InstallationError(f"{where.name} did not start:\n{said}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stops it as Ctrl-C does; what is left after a minute is killed."""
    mine = below(process.pid, processes())
    try:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # Also when this is interrupted: the impatient press Ctrl-C again.
        if process.poll() is None:
            process.kill()
            process.wait()
        for one in mine:
            _kill(one)


def _kill(process: Process) -> None:
    """Kills a process, unless it is gone and its number is another's."""
    now = read_process(process.pid)
    if now is not None and now.command == process.command and now.command:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
