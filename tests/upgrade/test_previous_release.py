"""The last release's own tests, on the schema of this tree: services of both run on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from servicekit.access import CONTEXTS
from servicekit.migrate import SHARED
from tests.upgrade.released import ROOT, unpack

WORK_DAYS = (
    "tests/e2e/test_device_day.py",
    "tests/e2e/test_admin_day.py",
)


def _migrations(tree: Path, schema: str) -> Path:
    package = "libs/servicekit" if schema == SHARED else f"services/{schema}"
    return tree / package / "migrations"


@pytest.mark.timeout(600)
def test_its_work_days_pass_on_the_new_schema(tmp_path: Path) -> None:
    """A rollback of the code needs no rollback of the schema."""
    tree = unpack(tmp_path / "last")
    for schema in (SHARED, *CONTEXTS):
        shutil.rmtree(_migrations(tree, schema))
        shutil.copytree(_migrations(ROOT, schema), _migrations(tree, schema))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *WORK_DAYS],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": f"{tree / 'libs'}:{tree}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
