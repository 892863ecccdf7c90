"""All the SQL of notices."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection
from services.audit.notices.domain import MOST_WAITING, Notice, Source, Text

_COLUMNS: Final = "id, tenant_id, texts, addresses, roles, created_at, attempts"


def _notice(row: asyncpg.Record) -> Notice:
    return Notice(
        id=row["id"],
        tenant_id=row["tenant_id"],
        texts=tuple(Text(**text) for text in json.loads(row["texts"])),
        addresses=tuple(row["addresses"]),
        roles=tuple(row["roles"]),
        created_at=row["created_at"],
        attempts=row["attempts"],
    )


async def insert(connection: Connection, notice: Notice, source: Source) -> bool:
    """Adds a notice that is due at once, unless its tenant has too many; answers whether."""
    done: str = await connection.execute(
        "INSERT INTO audit.notice (id, tenant_id, texts, addresses, roles, created_at,"
        " next_attempt_at, source) SELECT $1, $2, $3, $4, $5, $6, $6, $10 WHERE"
        " ((SELECT count(*) FROM audit.notice WHERE tenant_id = $2 AND created_at > $7"
        " AND starts_with(source, $11)) < $8 OR NOT EXISTS (SELECT FROM audit.notice"
        " WHERE tenant_id = $2 AND created_at > $7 AND source = $10)) AND"
        " (SELECT count(*) FROM audit.notice WHERE tenant_id = $2"
        " AND next_attempt_at IS NOT NULL AND starts_with(source, $11)) < $9",
        notice.id,
        notice.tenant_id,
        json.dumps([text.json() for text in notice.texts]),
        list(notice.addresses),
        list(notice.roles),
        notice.created_at,
        notice.created_at - timedelta(hours=1),
        source.most,
        MOST_WAITING,
        source.name,
        f"{source.group}:",
    )
    return done == "INSERT 0 1"


async def added_since(
    connection: Connection, tenant_id: UUID, source: Source, since: datetime
) -> bool:
    """Whether a notice about something was made behind a time."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM audit.notice"
        " WHERE tenant_id = $1 AND source = $2 AND created_at > $3)",
        tenant_id,
        source.name,
        since,
    )
    return found


async def claim(connection: Connection, at: datetime, until: datetime, most: int) -> list[Notice]:
    """Takes some notices that are due, which nobody else takes until then; of each tenant one."""
    rows = await connection.fetch(
        "UPDATE audit.notice SET next_attempt_at = $2, attempts = attempts + 1 WHERE id IN"
        " (SELECT id FROM audit.notice WHERE id IN (SELECT DISTINCT ON (tenant_id) id"
        " FROM audit.notice WHERE next_attempt_at <= $1 ORDER BY tenant_id, next_attempt_at)"
        " AND next_attempt_at <= $1 ORDER BY next_attempt_at LIMIT $3 FOR UPDATE SKIP LOCKED)"
        f" RETURNING {_COLUMNS}",
        at,
        until,
        most,
    )
    return [_notice(row) for row in rows]


async def put_off(connection: Connection, notice: Notice, until: datetime | None) -> None:
    """Has a notice wait until a time; `None`: it has ended."""
    await connection.execute(
        "UPDATE audit.notice SET next_attempt_at = $3 WHERE id = $1 AND tenant_id = $2",
        notice.id,
        notice.tenant_id,
        until,
    )


async def forget(connection: Connection, before: datetime) -> None:
    """Deletes notices that have ended, and were made before a time."""
    await connection.execute(
        "DELETE FROM audit.notice WHERE next_attempt_at IS NULL AND created_at < $1", before
    )


async def waiting(connection: Connection) -> int:
    """How many notices wait."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM audit.notice WHERE next_attempt_at IS NOT NULL"
    )
    return found
