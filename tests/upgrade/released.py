"""The release that this tree upgrades from, as `tools.release` recorded it."""

from __future__ import annotations

import functools
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from servicekit.migrate import Migration
from tools.release import RECORD

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Release:
    """A release: its version, its commit, and the digests of its migrations."""

    version: str
    commit: str
    migrations: dict[str, str]


@functools.cache
def released() -> Release:
    """The newest release."""
    record: dict[str, Any] = json.loads(RECORD.read_text())
    return Release(**record)


def name_of(migration: Migration) -> str:
    """How a release records a migration."""
    return f"{migration.schema}/{migration.version:04d}_{migration.name}"


def unpack(directory: Path) -> Path:
    """The release's tree, taken from the project's history."""
    commit = released().commit
    archive = subprocess.run(
        ["git", "archive", "--format=tar", commit], cwd=ROOT, capture_output=True, check=False
    )
    if archive.returncode != 0:
        pytest.skip(f"this clone's history does not reach the last release ({commit})")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(directory, filter="data")
    return directory
