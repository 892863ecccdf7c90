"""All the SQL of backups' runs."""

from __future__ import annotations

from typing import Final

import asyncpg

from services.audit.backups.domain import KEPT, Newest, Run

_COLUMNS: Final = (
    "id, kind, succeeded, started_at, ended_at, target, name, bytes, max_age_seconds, detail"
)


async def note(connection: asyncpg.Connection[asyncpg.Record], run: Run) -> None:
    """Notes a run, and forgets those that are long past."""
    await connection.execute(
        f"INSERT INTO audit.backup_run ({_COLUMNS})"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        run.id,
        run.kind,
        run.succeeded,
        run.started_at,
        run.ended_at,
        run.target,
        run.name,
        run.bytes,
        run.max_age_seconds,
        run.detail,
    )
    # The newest good one stays, however many failed since.
    await connection.execute(
        "DELETE FROM audit.backup_run WHERE kind = $1 AND id NOT IN"
        " (SELECT id FROM audit.backup_run WHERE kind = $1 ORDER BY started_at DESC LIMIT $2)"
        " AND id NOT IN (SELECT id FROM audit.backup_run WHERE kind = $1 AND succeeded"
        " ORDER BY started_at DESC LIMIT 1)",
        run.kind,
        KEPT,
    )


async def newest(connection: asyncpg.Connection[asyncpg.Record]) -> Newest:
    """The newest run of each kind and outcome."""
    rows = await connection.fetch(
        f"SELECT DISTINCT ON (kind, succeeded) {_COLUMNS} FROM audit.backup_run"
        " ORDER BY kind, succeeded, started_at DESC"
    )
    found = {(row["kind"], row["succeeded"]): _run(row) for row in rows}
    return Newest(
        backup=found.get(("backup", True)),
        failed_backup=found.get(("backup", False)),
        rehearsal=found.get(("rehearsal", True)),
        failed_rehearsal=found.get(("rehearsal", False)),
    )


def _run(row: asyncpg.Record) -> Run:
    return Run(
        id=row["id"],
        kind=row["kind"],
        succeeded=row["succeeded"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        target=row["target"],
        name=row["name"],
        bytes=row["bytes"],
        max_age_seconds=row["max_age_seconds"],
        detail=row["detail"],
    )
