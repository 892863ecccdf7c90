"""Migrations: what was released stays, and what is new does not stop the traffic."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from servicekit.data.migrate import all_migrations
from tests.upgrade.released import name_of, released

SQUAWK = Path(sys.executable).parent / "squawk"
# The runner sets a lock timeout for every migration and tries again.
IN_THE_RUNNER = "require-lock-timeout,require-statement-timeout"
# Columns count attempts and generations, never rows.
SMALL_NUMBERS = "prefer-bigint-over-int"


def test_what_was_released_is_not_changed() -> None:
    """Installations have applied it; a change has to be a migration of its own."""
    now = {name_of(m): m.checksum for m in all_migrations()}
    promised = released().migrations
    assert {name: now.get(name) for name in promised} == promised


def check(sql: str, directory: Path, *, outside_transaction: bool = False) -> str:
    """What squawk finds in a migration; empty when it is fine."""
    file = directory / "migration.sql"
    file.write_text(sql)
    done = subprocess.run(
        [
            str(SQUAWK),
            *(() if outside_transaction else ("--assume-in-transaction",)),
            "--pg-version=14.0",
            f"--exclude={IN_THE_RUNNER},{SMALL_NUMBERS}",
            "--reporter=gcc",
            str(file),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_new_ones_do_not_stop_the_traffic(tmp_path: Path) -> None:
    """No lock that keeps the last release's services from their tables."""
    for migration in all_migrations():
        if name_of(migration) not in released().migrations:
            outside = migration.outside_transaction
            found = check(migration.sql, tmp_path, outside_transaction=outside)
            assert found == "", name_of(migration)


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE INDEX late ON telemetry.event (message);",
        "ALTER TABLE policy.policy DROP COLUMN description;",
        "ALTER TABLE policy.policy RENAME COLUMN name TO title;",
        "ALTER TABLE policy.policy ADD COLUMN owner text NOT NULL;",
        "ALTER TABLE policy.policy ALTER COLUMN name TYPE varchar(10);",
    ],
)
def test_the_check_finds_what_breaks_the_last_release(sql: str, tmp_path: Path) -> None:
    """Contracting what the last release still uses, and locks that last."""
    assert check(sql, tmp_path)
