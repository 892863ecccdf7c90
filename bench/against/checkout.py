"""A commit's files in a directory of their own, with the environment that its installer makes."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
_KEPT: Final = 3
"""Commits whose files stay for the next run; each takes about a gigabyte."""
_WHOLE: Final = ".whole"


class CheckoutError(Exception):
    """A commit's files cannot be made."""


def commit_of(name: str, repository: Path = ROOT) -> str:
    """The full id of a commit, by whatever git calls it.

    Raises:
        CheckoutError: there is none.
    """
    try:
        return _git(repository, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
    except subprocess.CalledProcessError:
        raise CheckoutError(f"BASE={name}: git knows no such commit") from None


def cache_directory() -> Path:
    """Where commits' files are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evergreen-bench"


@contextmanager
def checkout(commit: str, repository: Path = ROOT, cache: Path | None = None) -> Iterator[Path]:
    """The files of a commit, installed by its own script; a second run finds them as they are.

    Nobody else removes them meanwhile. The environment has the Python that this one has.

    Raises:
        CheckoutError: they cannot be installed.
    """
    cache = cache or cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    python = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    directory = cache / f"{commit[:12]}-python{python}"
    with (cache / f"{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / _WHOLE).exists():
            shutil.rmtree(directory, ignore_errors=True)
            _unpack(repository, commit, directory)
            _install(directory)
            (directory / _WHOLE).touch()
        os.utime(directory / _WHOLE)
        fcntl.flock(lock, fcntl.LOCK_SH)
        _prune(cache)
        yield directory


def _unpack(repository: Path, commit: str, directory: Path) -> None:
    directory.mkdir()
    with subprocess.Popen(
        ["git", "-C", str(repository), "archive", "--format=tar", commit], stdout=subprocess.PIPE
    ) as git:
        assert git.stdout is not None
        with tarfile.open(fileobj=git.stdout, mode="r|") as archive:
            archive.extractall(directory, filter="tar")
    if git.returncode:
        raise CheckoutError(f"git archive {commit} ended with {git.returncode}")


def _install(directory: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    python = str(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}")
    if Path(python).exists():
        environment["PYTHON"] = python
    done = subprocess.run(
        ["deploy/launcher/install.sh"],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        raise CheckoutError(f"{directory}/deploy/launcher/install.sh failed (see above)")


def _prune(cache: Path) -> None:
    """Removes what was used least recently; what another run uses stays."""
    known = sorted(cache.glob(f"*/{_WHOLE}"), key=lambda mark: mark.stat().st_mtime, reverse=True)
    for mark in known[_KEPT:]:
        with (cache / f"{mark.parent.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            mark.unlink()
            shutil.rmtree(mark.parent, ignore_errors=True)


def _git(repository: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(repository), *words], capture_output=True, text=True, check=True
    ).stdout
