"""The last release's own tests, on the schema of this tree: services of both run on it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from contract.contexts import CONTEXTS
from servicekit.data.migrate import SHARED
from tests.upgrade.released import ROOT, unpack

pytestmark = pytest.mark.servers

WORK_DAYS = (
    "tests/e2e/test_device_day.py",
    "tests/e2e/test_admin_day.py",
)


def _migrations(tree: Path, schema: str) -> Path:
    if schema != SHARED:
        return tree / "services" / schema / "migrations"
    here = tree / "libs/servicekit/data/migrations"
    # Where 0.1.0 has them.
    return here if here.exists() else tree / "libs/servicekit/migrations"


def _serve_itself(tree: Path) -> None:
    """Has the release's launcher start its own services, not those that are installed here.

    A launcher keeps the caller's PYTHONPATH from its services.
    """
    file = tree / "deploy/launcher/process.py"
    text = file.read_text(encoding="utf-8")
    changed, found = re.subn(r'"PATH"(?=[,)])', '"PATH", "PYTHONPATH"', text)
    assert found == 1, "the launcher passes on other variables now"
    file.write_text(changed, encoding="utf-8")


@pytest.mark.timeout(600)
def test_its_work_days_pass_on_the_new_schema(tmp_path: Path) -> None:
    """A rollback of the code needs no rollback of the schema."""
    tree = unpack(tmp_path / "last")
    _serve_itself(tree)
    for schema in (SHARED, *CONTEXTS):
        there = _migrations(tree, schema)
        shutil.rmtree(there)
        shutil.copytree(_migrations(ROOT, schema), there)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *WORK_DAYS],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": f"{tree / 'libs'}:{tree}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
