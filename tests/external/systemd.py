"""A real systemd, as the first process of name spaces of its own, on this machine's files."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.support import debian
from tests.support.stack import PATIENCE, children, until

_UNITS: Final = Path("/usr/lib/systemd/system")
_KEPT: Final = (
    "sysinit.target",
    "basic.target",
    "shutdown.target",
    "umount.target",
    "multi-user.target",
    "network.target",
    "network-online.target",
    "sockets.target",
    "timers.target",
    "paths.target",
    "slices.target",
    "local-fs.target",
    "systemd-journald.service",
    "systemd-journald.socket",
    "systemd-journald-dev-log.socket",
)
"""Nothing else of this machine is started a second time."""
_SCRIPT: Final = """
set -e
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p /run/lock /run/log/journal
mount --bind {units} {kept}
mount -t tmpfs tmpfs /etc/systemd/system
export container=docker
exec /usr/lib/systemd/systemd --system --unit=multi-user.target --show-status=0
"""


@dataclass(frozen=True)
class Machine:
    """The name spaces; commands run in them as on a machine that was started by systemd."""

    pid: int

    def run(self, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        enter = [
            "nsenter",
            f"--target={self.pid}",
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
            "--cgroup",
        ]
        kept = {k: v for k, v in os.environ.items() if not k.startswith("EVERGREEN_")}
        return subprocess.run(
            [*enter, *map(str, words)],
            env=kept | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=4 * PATIENCE,
        )


@contextmanager
def machine(directory: Path) -> Iterator[Machine]:
    """Starts it; skips the test where that cannot be."""
    debian.require("systemctl", "unshare", "nsenter")
    if os.geteuid() != 0:
        pytest.skip("needs root, for name spaces")
    units = directory / "units"
    units.mkdir()
    for name in _KEPT:
        shutil.copy(_UNITS / name, units / name)
    script = _SCRIPT.format(units=units, kept=_UNITS)
    output = (directory / "systemd.out").open("wb")
    process = subprocess.Popen(
        [
            *("unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup"),
            *("--kill-child", "/bin/sh", "-c", script),
        ],
        stdout=output,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )
    try:
        first = until(lambda: list(children(process.pid)), PATIENCE, "nothing was started")
        found = Machine(first[0])

        def started() -> bool:
            if process.poll() is not None:
                said = (directory / "systemd.out").read_text(errors="replace")
                pytest.skip(f"systemd does not start here: {said[-300:]}")
            answer = found.run("systemctl", "is-system-running").stdout.strip()
            return answer in {"running", "degraded"}

        until(started, PATIENCE, "systemd does not start", pause=0.3)
        journal = found.run("systemctl", "start", "systemd-journald.service")
        assert journal.returncode == 0, journal.stderr
        yield found
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
        output.close()
