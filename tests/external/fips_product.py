"""The whole product in FIPS mode, in the Debian of `fips_root`; its callers are outside."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.cpu import Process, below, processes
from tests.external import fips_root
from tests.support import stack as test_stack
from tests.support.stack import Stack, free_port, until

_START_SECONDS: Final = 300


@dataclass(frozen=True, slots=True)
class Product:
    """It, and its processes."""

    stack: Stack
    home: str
    """Its directory, as it knows it."""
    nats_port: int

    def processes(self) -> list[Process]:
        """All of them, with the launcher."""
        return below(self.stack.process.pid, processes())


def is_python(process: Process) -> bool:
    """Whether a process is an interpreter of Python."""
    try:
        return Path(f"/proc/{process.pid}/exe").readlink().name.startswith("python")
    except OSError:
        return False


def mapped(process: Process) -> set[str]:
    """The names of the files that it has in its memory."""
    lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    return {Path(line.split(None, 5)[5]).name for line in lines if len(line.split(None, 5)) == 6}


def libcryptos(process: Process) -> set[str]:
    """Those of them that are a libcrypto, of a system or of a wheel."""
    return {name for name in mapped(process) if "libcrypto" in name}


@contextmanager
def running(
    debian: fips_root.Debian, home: str, output: Path, **environment: str
) -> Iterator[Product]:
    """Starts it in a directory; stops it as Ctrl-C does."""
    inside = debian.root / home.lstrip("/")
    port, nats_port = int(environment.get("EVERGREEN_PORT") or free_port()), free_port()
    told = {
        "EVERGREEN_HOME": home,
        "EVERGREEN_PORT": str(port),
        "EVERGREEN_EVENTS_LISTEN": f"127.0.0.1:{nats_port}",
        **environment,
    }
    with output.open("wb") as out:
        process = subprocess.Popen(
            debian.command(fips_root.PYTHON, "-m", "cli.main", "up", **told),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:

        def started() -> bool:
            assert process.poll() is None, output.read_text(errors="replace")
            return b"curl" in output.read_bytes()

        until(started, _START_SECONDS, "the product did not start", 0.2)
        text = (inside / "bootstrap.json").read_text()
        # Its files, as this machine sees them.
        facts = json.loads(re.sub(rf'"{re.escape(home)}/', f'"{inside}/', text))
        yield Product(Stack(inside, port, process, facts), home, nats_port)
    finally:
        for one in below(process.pid, processes()):
            if one.command.rstrip("\0").endswith("cli.main\0up"):
                os.kill(one.pid, signal.SIGINT)
        try:
            process.wait(test_stack.PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
