"""What is noted of backups and rehearsals, for metrics and the doctor."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Final

import asyncpg

from cli.backup import catalog
from cli.errors import CliError
from servicekit.data.backup import Connection
from servicekit.ids import new_id, now
from services.audit.restore import Kind, Newest, Run, newest_runs, note_run
from services.identity import restore as identity

__all__ = ["Newest", "Run", "installation_tag", "newest_runs", "note"]

DEFAULT_MAX_AGE: Final = timedelta(hours=26)
"""Of a daily backup."""
_SLACK: Final = timedelta(hours=2)
_LONGEST_DETAIL: Final = 1_000
_LOCK: Final = 0x65766772_6E62_6B
"""The advisory lock of the one backup that may run."""


def max_age(every: timedelta | None) -> timedelta:
    """How old the last good backup may become."""
    return DEFAULT_MAX_AGE if every is None else every + min(every, _SLACK)


async def installation_tag(connection: Connection) -> str:
    """What names the installation in its backups' names.

    Raises:
        CliError: there is none in the database.
    """
    async with connection.transaction(readonly=True):
        await catalog.see_everything(connection)
        root = (
            await identity.installation(connection) if await catalog.is_used(connection) else None
        )
    if root is None:
        raise CliError("there is no installation in this database")
    return root.hex[-12:]


@asynccontextmanager
async def alone(connection: Connection) -> AsyncIterator[None]:
    """Keeps other backups of the installation from running at the same time.

    Raises:
        CliError: one does.
    """
    if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
        raise CliError("another backup of this installation runs at the moment")
    try:
        yield
    finally:
        if not connection.is_closed():
            # Where the server went away, the lock did too.
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK)


async def note(
    connection: Connection,
    kind: Kind,
    started_at: datetime,
    *,
    succeeded: bool,
    target: str,
    name: str = "",
    size: int = 0,
    may_become: timedelta = DEFAULT_MAX_AGE,
    detail: str = "",
) -> None:
    """Notes that a backup or a rehearsal has ended."""
    run = Run(
        id=new_id(),
        kind=kind,
        succeeded=succeeded,
        started_at=started_at,
        ended_at=now(),
        target=target,
        name=name,
        bytes=size,
        max_age_seconds=round(may_become.total_seconds()),
        detail=detail[:_LONGEST_DETAIL],
    )
    await note_run(connection, run)
