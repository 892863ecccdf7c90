"""Whether there is a good backup that is young enough."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Final

import asyncpg

from cli.backup.runs import newest_runs
from cli.doctor.database import Login
from cli.doctor.finding import Finding, Severity, warning
from servicekit.ids import now

LAST: Final = "backups.last"


async def of(login: Login) -> AsyncIterator[Finding]:
    """What is known in a database that the other checks could reach."""
    try:
        connection = await asyncpg.connect(login.dsn, password=login.password, timeout=10)
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError):
        # They have told it.
        return
    try:
        async for finding in check(connection, now()):
            yield finding
    except asyncpg.InsufficientPrivilegeError:
        # Not the owner of the schemas.
        return
    finally:
        await connection.close()


async def check(
    connection: asyncpg.Connection[asyncpg.Record], at: datetime
) -> AsyncIterator[Finding]:
    """What `evergreen backup` noted; the connection is of the role that owns the schemas."""
    known = await newest_runs(connection)
    good, failed = known.backup, known.failed_backup
    if good is None:
        yield warning(
            "BACKUP_NONE",
            "no backup was ever made of this installation",
            "Set EVERGREEN_BACKUP_TARGET and a schedule: docs/backup.md.",
        )
    elif (age := (at - good.started_at).total_seconds()) > good.max_age_seconds:
        yield Finding(
            "BACKUP_TOO_OLD",
            f"the last good backup is {age / 3600:.0f} hours old, of"
            f" {good.started_at:%Y-%m-%d %H:%M} UTC, and the next one should have followed"
            f" {good.max_age_seconds / 3600:.0f} hours after it",
            "Run `evergreen backup run` and see why it fails, or why it is not run at all.",
            Severity.ERROR,
        )
    if failed is not None and (good is None or failed.started_at > good.started_at):
        yield warning(
            "BACKUP_FAILED",
            f"the last backup ({failed.started_at:%Y-%m-%d %H:%M} UTC) failed: {failed.detail}",
            "Mend that, then run `evergreen backup run`.",
        )
    elif good is not None and good.detail:
        yield warning(
            "BACKUP_NOT_PRUNED",
            f"old backups could not be removed: {good.detail}",
            f"Let the login remove files in {good.target}, before it is full.",
        )
    last, unwell = known.rehearsal, known.failed_rehearsal
    if unwell is not None and (last is None or unwell.started_at > last.started_at):
        yield warning(
            "BACKUP_REHEARSAL_FAILED",
            f"the last rehearsal of a restore failed: {unwell.detail}",
            "Run `evergreen backup rehearse` and repair what it says: a backup that cannot be"
            " restored is none.",
        )
