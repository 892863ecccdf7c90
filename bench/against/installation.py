"""An installation as a black box: `make run` in its directory, and what its bootstrap.json says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from bench.cpu import Process, below, precise, processes, read_process
from bench.traffic import POLL, Call, Device, Traffic
from cli.sim import Client, EnrollError, Target, enroll, serials
from cli.sim.bodies import events_body
from tests.support.stack import free_port

_START_SECONDS: Final = 300.0
_STOP_SECONDS: Final = 60.0
UNLIMITED: Final = {
    f"EVERGREEN_GATEWAY_{name}": "1000000000:1000000000"
    for name in ("DEVICE", "TENANT", "USER", "ENROLL", "LOGIN", "OPEN")
}
"""All load comes from one address and one organisation: its calls are counted as ever, on both
sides, but never too many."""


class InstallationError(Exception):
    """An installation does not start, or does not do what a bench needs."""


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

    async def traffic(self, devices: int) -> Traffic:
        """What devices send that it has enrolled, with a policy in force.

        Raises:
            InstallationError: it does not do what a first administrator and devices ask.
        """
        version = await asyncio.to_thread(self._publish)
        prefix = f"BENCH-{time.time_ns()}"
        key = str(self.bootstrap["pre_shared_key"])
        async with Client(Target.of(self.bootstrap["url"], self.ca_file), connections=8) as client:
            try:
                enrolled = await enroll(client, key, serials(prefix, devices))
            except EnrollError as error:
                raise InstallationError(f"{self.name}: {error}") from None
            first = enrolled[0]
            body = events_body(first.id, [time.time_ns()])
            answer = await client.call("/api/v1/devices/events", body, first.token)
        if answer.status != 200:
            raise InstallationError(f"{self.name}: an event was answered {answer.status}")
        login = {"email": self.bootstrap["email"], "password": self.bootstrap["password"]}
        return Traffic(
            [Device(one.id, one.token) for one in enrolled],
            version,
            key,
            login=json.dumps(login).encode(),
        )

    def _publish(self) -> int:
        """Puts a policy into force, as a first administrator does; answers its version."""
        facts = self.bootstrap
        login = {"email": facts["email"], "password": facts["password"]}
        document = {"updates": {"channel": "stable"}, "browser": {"homepage": "https://x.example"}}
        policy = {"name": "Bench", "orgId": facts["tenant_id"], "bundle": document}
        tls = Target.of(facts["url"], facts["ca_file"]).tls
        assert tls is not None
        with httpx.Client(base_url=facts["url"], verify=tls, timeout=30) as client:

            def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
                answer = client.post(path, json=body)
                if answer.status_code != 200:
                    raise InstallationError(f"{self.name}: POST {path}: {answer.text[:500]}")
                found: dict[str, Any] = answer.json()
                return found

            client.headers["authorization"] = f"Bearer {post('/auth/login', login)['token']}"
            made = post("/api/policies", policy)
            return int(post(f"/api/policies/{made['id']}/publish", {})["version"])


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
