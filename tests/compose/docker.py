"""Docker for tests: the daemon that runs, or one that is started for them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.stack import PATIENCE, until


@dataclass(frozen=True)
class Docker:
    """A daemon, and the command that talks to it."""

    program: str
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(
        self, *words: str | Path, check: bool = True, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command; answers what it printed.

        Raises:
            AssertionError: it failed, with what it said.
        """
        done = subprocess.run(
            [self.program, *map(str, words)],
            cwd=ROOT,
            env={**os.environ, **self.environment},
            input=stdin,
            capture_output=True,
            check=False,
        )
        found = subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )
        if check:
            assert found.returncode == 0, f"{found.args}:\n{found.stdout}\n{found.stderr}"
        return found


class NoDockerError(Exception):
    """There is no Docker to be had here; the message says why."""


def with_compose() -> str | None:
    """The command `docker` that has Compose: it is a plugin, and many machines lack it."""
    # The plugin belongs to Debian's command; another one may be first in PATH.
    programs = [p for p in ("/usr/bin/docker", shutil.which("docker")) if p and Path(p).exists()]
    with_it = (p for p in programs if Docker(p)("compose", "version", check=False).returncode == 0)
    return next(with_it, None)


@contextlib.contextmanager
def daemon() -> Iterator[Docker]:
    """Docker with Compose, as it is, or started for the block (by root).

    Raises:
        NoDockerError: neither is possible.
    """
    program = with_compose()
    if program is None:
        raise NoDockerError("the command `docker compose` is not installed")
    docker = Docker(program)
    if docker("info", check=False).returncode == 0:
        yield docker
        return
    dockerd = shutil.which("dockerd") or "/usr/sbin/dockerd"
    if os.geteuid() != 0 or not Path(dockerd).exists():
        raise NoDockerError("no Docker daemon runs, and it can only be started by root")
    with tempfile.TemporaryDirectory(prefix="evergreen-docker-") as name:
        directory = Path(name)
        socket = f"unix://{directory}/docker.sock"
        words = [
            dockerd,
            f"--data-root={name}/data",
            f"--exec-root={name}/exec",
            f"--host={socket}",
        ]
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [*words, f"--pidfile={name}/pid"], stdout=log, stderr=subprocess.STDOUT
            )
        started = Docker(program, {"DOCKER_HOST": socket})
        try:

            def answers() -> bool:
                if process.poll() is not None:
                    raise NoDockerError(f"dockerd ends: {(directory / 'log').read_text()[-500:]}")
                return started("info", check=False).returncode == 0

            until(answers, PATIENCE, "the Docker daemon does not answer")
            yield started
        finally:
            process.terminate()
            process.wait(PATIENCE)
            _unmount_below(directory)


def _unmount_below(directory: Path) -> None:
    """The daemon leaves a network namespace behind, as a mount."""
    places = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in reversed(places):
        if Path(place).is_relative_to(directory):
            subprocess.run(["umount", place], check=False)
