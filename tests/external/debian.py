"""Programs out of Debian's packages, installed when they are missing and this is possible."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


def require(programs: dict[str, str]) -> None:
    """Makes programs available; the package of each by the program's name.

    Skips the test, with the reason, where they are missing and cannot be installed.
    """
    # Another worker may be installing just now.
    with (Path(tempfile.gettempdir()) / "evergreen-tests-debian.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _install([package for program, package in programs.items() if not shutil.which(program)])


def _install(missing: list[str]) -> None:
    if not missing:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        pytest.skip(f"needs {', '.join(missing)}; install them, or run this as root on Debian")
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing]
    for command in (["apt-get", "update", "-q"], install):
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )
        if done.returncode != 0:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            pytest.skip(f"{' '.join(missing)} could not be installed: {''.join(last)}")
