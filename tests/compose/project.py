"""One installation by the product's compose file, unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.compose.docker import Docker
from tests.support.paths import ROOT
from tests.support.stack import PATIENCE, Stack, attached, free_port, until

_DAY = ("tests/e2e/test_admin_day.py", "tests/e2e/test_device_day.py")
_NOT = "not gateways_log and not in_this_file"
"""One reads a log file, which is elsewhere in containers; one looks at the tests themselves."""


_INSIDE_CA = ("run", "--rm", "--no-TTY", "--entrypoint", "cat", "operator",
              "/var/lib/evergreen/operator/inside/ca.crt")  # fmt: skip


@dataclass
class Project:
    """A Compose project with volumes of its own."""

    docker: Docker
    directory: Path
    settings: dict[str, str]
    port: int = field(default_factory=free_port)
    prometheus: int = field(default_factory=free_port)
    name: str = field(default_factory=lambda: f"evergreen-test-{os.getpid()}-{free_port()}")
    file: Path = ROOT / "docker-compose.yaml"
    """This tree's, or another release's."""
    more: tuple[Path, ...] = ()
    """Files that are read behind it."""

    def __post_init__(self) -> None:
        events = free_port()
        lines = {
            "PUBLIC_URL": self.url,
            "HTTPS_PORT": str(self.port),
            "EVENTS_PORT": str(events),
            "EVENTS_URL": f"tls://localhost:{events}",
            "PROMETHEUS_PORT": str(self.prometheus),
            "DEMO_DEVICES": "3",
        }
        self._lines = lines
        self.set(**self.settings)

    def set(self, **settings: str) -> None:
        """Changes settings in `.env`; the next `up` takes them over."""
        self._lines |= settings
        self._env = self.directory / "env"
        self._env.write_text("".join(f"{key}={value}\n" for key, value in self._lines.items()))

    @property
    def url(self) -> str:
        return self.settings.get("PUBLIC_URL", f"https://localhost:{self.port}")

    def compose(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs `docker compose` on this project."""
        files = (word for file in (self.file, *self.more) for word in ("--file", file))
        return self.docker(
            *("compose", "--project-name", self.name, "--env-file", self._env),
            *(*files, *words),
            check=check,
        )

    def up(self) -> None:
        """Starts it, as the README says."""
        done = self.compose("up", "--wait", "--no-build", check=False)
        if done.returncode:
            logs = self.compose("logs", "--tail=40", check=False).stdout
            raise AssertionError(f"{done.stderr[-2000:]}\n{logs[-12000:]}")

    def down(self) -> None:
        """Removes all of it."""
        self.compose("down", "--volumes", "--timeout", "5", check=False)

    def operator(self, *words: str) -> str:
        """What a command of the operator prints."""
        return self.compose("run", "--rm", "--no-TTY", "operator", *words).stdout

    def stack(self, ca_file: Path | None = None) -> Stack:
        """The running product, as the end-to-end tests know one."""
        facts: dict[str, Any] = json.loads(self.operator("bootstrap"))
        ca = self.directory / "ca.crt"
        public = ca_file.read_text() if ca_file else self.operator("bootstrap", "--ca")
        # The gateway's, and that of NATS for integrators.
        ca.write_text(public + self.compose(*_INSIDE_CA).stdout)
        key = self.directory / "policy.pem"
        key.write_text(self.operator("bootstrap", "--policy-key"))
        told = self.directory / "bootstrap.json"
        told.write_text(
            json.dumps(facts | {"ca_file": str(ca), "policy_public_key_file": str(key)})
        )
        return attached(told)

    def main_job(self) -> None:
        """Runs the end-to-end tests of an administrator's and a device's day against it."""
        main_job(self.directory / "bootstrap.json")

    def restart(self, service: str) -> None:
        """`docker compose restart`."""
        self.compose("restart", service)

    def kill(self, service: str) -> None:
        """Ends a container's process as a crash does; Docker starts it again."""
        container = self.compose("ps", "--quiet", service).stdout.strip()
        pid = int(self.docker("inspect", "--format={{.State.Pid}}", container).stdout)
        os.kill(pid, 9)

    def until_healthy(self) -> None:
        """Waits until every container says that it is."""

        def healthy() -> bool:
            told = self.compose("ps", "--format=json").stdout
            found = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
            return bool(found) and all(one["Health"] in {"healthy", ""} for one in found)

        until(healthy, 5 * PATIENCE, "not all containers become healthy", pause=1)


def main_job(facts: Path) -> None:
    """Runs the end-to-end tests of an administrator's and a device's day against a product."""
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", _NOT, *_DAY],
        cwd=ROOT,
        env={**os.environ, "EVERGREEN_TEST_BOOTSTRAP": str(facts)},
        check=True,
    )


def new_directory() -> Path:
    """A directory for a project's files, outside of pytest's own (whose names are long)."""
    return Path(tempfile.mkdtemp(prefix="evergreen-compose-"))
