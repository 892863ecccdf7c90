"""The releases that this tree upgrades from, as `tools.release` recorded them."""

from __future__ import annotations

import functools
import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from servicekit.data.migrate import Migration
from tests.support.paths import ROOT
from tools.release.record import Release, releases


@functools.cache
def all_releases() -> tuple[Release, ...]:
    """Every release, the oldest first."""
    return tuple(releases())


def released() -> Release:
    """The newest release."""
    return all_releases()[-1]


def name_of(migration: Migration) -> str:
    """How a release records a migration."""
    return f"{migration.schema}/{migration.version:04d}_{migration.name}"


def unpack(directory: Path, release: Release | None = None) -> Path:
    """A release's tree, the newest one's if none is named, from the project's history."""
    commit = (release or released()).commit
    archive = subprocess.run(
        ["git", "archive", "--format=tar", commit], cwd=ROOT, capture_output=True, check=False
    )
    if archive.returncode != 0:
        pytest.fail(
            f"this clone's history does not reach the release {commit}; fetch all of it:"
            " git fetch --unshallow",
            pytrace=False,
        )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(directory, filter="data")
    return directory
