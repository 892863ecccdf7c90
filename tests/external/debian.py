"""Programs out of Debian's packages, installed when they are missing and this is possible."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


def require(programs: dict[str, str]) -> None:
    """Makes programs available; the package of each by the program's name.

    Skips the test, with the reason, where they are missing and cannot be installed.
    """
    missing = [package for program, package in programs.items() if shutil.which(program) is None]
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
