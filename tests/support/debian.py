"""Programs out of Debian's packages, installed when they are missing and this is possible.

`python3 -m tests.support.debian` installs all of them at once, and takes no packages of Python.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

OLDER_POSTGRES: Final = Path("/usr/lib/postgresql")
"""Where the packages of PostgreSQL have a folder for each major version."""
_PACKAGES: Final = {
    "certbot": "certbot",
    "chromedriver": "chromium-driver",
    "chromium": "chromium",
    "nsenter": "util-linux",
    "pebble": "pebble",
    "pebble-challtestsrv": "pebble",
    "pgbouncer": "pgbouncer",
    f"{OLDER_POSTGRES}/15/bin/postgres": "postgresql-15",
    "sftp": "openssh-client",
    "soffice": "libreoffice-calc-nogui",
    "sshd": "openssh-server",
    "swtpm": "swtpm",
    "swtpm_setup": "swtpm-tools",
    "systemctl": "systemd",
    "systemd-analyze": "systemd",
    "tinyproxy": "tinyproxy",
    "tpm2_createek": "tpm2-tools",
    "unshare": "util-linux",
}
"""The package of each program that `make test-servers` takes."""
_FRESH_SECONDS: Final = 3600
"""So long the list of packages is not asked for again."""
_SECONDS: Final = 300


class NotInstalledError(Exception):
    """What could not be installed, and why."""


def require(*programs: str, **others: str) -> None:
    """Makes programs available; the test is skipped, with the reason, where that is not possible.

    Args:
        programs: their names.
        others: the packages of those that `make test-servers` does not take, by their names.
    """
    import pytest  # noqa: PLC0415 - this module runs while pytest is being installed

    packages = {name: _PACKAGES[name] for name in programs} | others
    try:
        _install(packages)
    except NotInstalledError as error:
        pytest.skip(str(error))


def download(packages: Sequence[str], directory: Path) -> None:
    """Downloads packages into a directory, all or none; root is not needed.

    Raises:
        NotInstalledError: there is one that cannot be had.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise NotInstalledError(f"needs {', '.join(packages)} of Debian")
    with _alone() as lock:
        if os.geteuid() == 0:
            _update(lock)
        _run(["apt-get", "download", "-q", *packages], directory)


def _install(packages: dict[str, str]) -> None:
    with _alone() as lock:
        missing = {package for program, package in packages.items() if not shutil.which(program)}
        if not missing:
            return
        if shutil.which("apt-get") is None or os.geteuid() != 0:
            needed = ", ".join(sorted(missing))
            raise NotInstalledError(f"needs {needed}; install them, or run this as root on Debian")
        _update(lock)
        _run(["apt-get", "install", "-y", "-q", "--no-install-recommends", *sorted(missing)])


@contextmanager
def _alone() -> Iterator[Path]:
    """Waits until no other worker installs; the file tells when the list of packages was new."""
    path = Path(tempfile.gettempdir()) / "evergreen-tests-debian.lock"
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path


def _update(lock: Path) -> None:
    if lock.stat().st_size and time.time() - lock.stat().st_mtime < _FRESH_SECONDS:
        return
    _run(["apt-get", "update", "-q"])
    lock.write_text("updated\n")


def _run(command: Sequence[str], directory: Path | None = None) -> None:
    done = subprocess.run(
        command,
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise NotInstalledError(f"{' '.join(command)} failed: {''.join(last)}")


def main() -> None:
    """Installs all of them; those that cannot be had are asked for again by their tests."""
    try:
        _install(_PACKAGES)
    except NotInstalledError as error:
        print(error, file=sys.stderr)


if __name__ == "__main__":
    main()
