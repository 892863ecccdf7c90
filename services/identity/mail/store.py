"""Mails that wait, in SQL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from servicekit.data.postgres import Connection
from services.identity.mail.domain import (
    MOST_A_DAY,
    MOST_WAITING,
    Budget,
    Language,
    Overview,
    Queued,
    ServerState,
)

_DAY: Final = timedelta(days=1)
_BATCH: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMail:
    """A mail to be sent."""

    id: UUID
    tenant_id: UUID
    key: str
    kind: str
    budget: Budget
    address: str
    details: Mapping[str, object]
    created_at: datetime
    expires_at: datetime
    language: Language | None = None
    sealed: bytes | None = field(default=None, repr=False)
    link_hash: bytes | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """A mail that this process is to send now."""

    id: UUID
    tenant_id: UUID
    kind: str
    address: str
    language: Language | None
    details: Mapping[str, object]
    sealed: bytes | None = field(repr=False)
    created_at: datetime
    expires_at: datetime
    attempts: int
    unanswered: int


async def insert(connection: Connection, mail: NewMail) -> Queued:
    """Has a mail wait, once for its key and address."""
    row = await connection.fetchrow(
        "WITH known AS (SELECT count(*) FILTER (WHERE ended_at IS NULL) AS waiting,"
        " count(*) FILTER (WHERE created_at > $12) AS today FROM identity.mail"
        " WHERE tenant_id = $2 AND budget = $15 AND (ended_at IS NULL OR created_at > $12)),"
        " made AS (INSERT INTO identity.mail (id, tenant_id, key, kind, address, language, details,"
        " sealed_secrets, link_hash, created_at, expires_at, next_at, budget)"
        " SELECT $1, $2, $3, $4, $5, $6, $7::jsonb, $8, $9, $10, $11, $10, $15 FROM known"
        " WHERE waiting < $13 AND today < $14"
        " ON CONFLICT ON CONSTRAINT mail_once DO NOTHING RETURNING id)"
        " SELECT waiting < $13 AND today < $14 AS has_room FROM known",
        mail.id,
        mail.tenant_id,
        mail.key,
        mail.kind,
        mail.address,
        mail.language,
        json.dumps(dict(mail.details)),
        mail.sealed,
        mail.link_hash,
        mail.created_at,
        mail.expires_at,
        mail.created_at - _DAY,
        MOST_WAITING,
        MOST_A_DAY,
        mail.budget,
    )
    assert row is not None
    return "queued" if row["has_room"] else "full"


async def made_since(
    connection: Connection, tenant_id: UUID, kind: str, address: str, since: datetime
) -> int:
    """How many mails of a kind an address was to get since a time."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM identity.mail"
        " WHERE tenant_id = $1 AND created_at > $4 AND kind = $2 AND address = $3",
        tenant_id,
        kind,
        address,
        since,
    )
    return found


async def address_of(connection: Connection, account_id: UUID) -> str:
    """The address of an account that the transaction sees; empty without one."""
    found: str | None = await connection.fetchval(
        "SELECT email FROM identity.account WHERE id = $1", account_id
    )
    return found or ""


async def take(connection: Connection, at: datetime, until: datetime, most: int) -> list[Taken]:
    """Takes mails that are due: of each tenant one at a time, and tenants by chance, so that each
    has the same share of the server.

    Args:
        until: so long no other process takes them.
    """
    rows = await connection.fetch(
        "WITH due AS (SELECT DISTINCT ON (m.tenant_id) m.id FROM identity.mail m"
        " WHERE m.ended_at IS NULL AND m.next_at <= $1 AND m.expires_at > $1"
        " AND NOT EXISTS (SELECT FROM identity.mail o WHERE o.tenant_id = m.tenant_id"
        " AND o.ended_at IS NULL AND o.taken_until > $1)"
        # What ends soon, as a link for a new password, does not wait behind many invitations.
        " ORDER BY m.tenant_id, m.expires_at, m.next_at, m.id),"
        " chosen AS (SELECT id FROM due ORDER BY random() LIMIT $3),"
        " free AS (SELECT id FROM identity.mail WHERE id IN (SELECT id FROM chosen)"
        " AND ended_at IS NULL AND (taken_until IS NULL OR taken_until <= $1)"
        " FOR UPDATE SKIP LOCKED)"
        " UPDATE identity.mail m SET taken_until = $2, attempts = m.attempts + 1 FROM free"
        " WHERE m.id = free.id RETURNING m.id, m.tenant_id, m.kind, m.address, m.language,"
        " m.details::text AS details, m.sealed_secrets, m.created_at, m.expires_at, m.attempts,"
        " m.unanswered",
        at,
        until,
        most,
    )
    return [
        Taken(
            id=row["id"],
            tenant_id=row["tenant_id"],
            kind=row["kind"],
            address=row["address"],
            language=row["language"],
            details=json.loads(row["details"]),
            sealed=row["sealed_secrets"],
            created_at=row["created_at"],
            expires_at=row["expires_at"],
            attempts=row["attempts"],
            unanswered=row["unanswered"],
        )
        for row in rows
    ]


async def link_holds(connection: Connection, mail_id: UUID, at: datetime) -> bool:
    """Whether the link of a mail still opens something; yes for a mail without one."""
    found: bool = await connection.fetchval(
        "WITH able AS (SELECT a.id, a.email, a.status, a.password_hash, a.invitation_hash,"
        " a.invitation_expires_at FROM identity.mail m JOIN identity.account a"
        " ON a.email = m.address JOIN identity.tenant t ON t.id = a.tenant_id WHERE m.id = $1"
        " AND t.archived_at IS NULL AND t.deletion_requested_at IS NULL)"
        " SELECT link_hash IS NULL OR EXISTS (SELECT FROM able a"
        " WHERE a.invitation_hash = m.link_hash AND a.status = 'invited'"
        " AND a.invitation_expires_at > $2)"
        " OR EXISTS (SELECT FROM identity.password_reset r JOIN able a"
        " ON a.id = r.account_id WHERE r.hash = m.link_hash AND r.expires_at > $2"
        " AND a.status = 'active' AND a.password_hash IS NOT NULL AND a.email = r.email)"
        " FROM identity.mail m WHERE m.id = $1",
        mail_id,
        at,
    )
    return bool(found)


async def manners(connection: Connection, tenant_id: UUID) -> tuple[Language | None, str | None]:
    """Language and time zone of a tenant, or of the nearest above it that says one."""
    row = await connection.fetchrow(
        "WITH RECURSIVE up AS (SELECT id, parent_id, language, time_zone, 0 AS depth"
        " FROM identity.tenant WHERE id = $1 UNION ALL"
        " SELECT t.id, t.parent_id, t.language, t.time_zone, up.depth + 1"
        " FROM identity.tenant t JOIN up ON t.id = up.parent_id)"
        " SELECT (SELECT language FROM up WHERE language IS NOT NULL ORDER BY depth LIMIT 1)"
        " AS language, (SELECT time_zone FROM up WHERE time_zone IS NOT NULL ORDER BY depth"
        " LIMIT 1) AS time_zone",
        tenant_id,
    )
    assert row is not None
    return row["language"], row["time_zone"]


async def end(
    connection: Connection, mail_id: UUID, outcome: str, at: datetime, error: str = ""
) -> None:
    """Ends a mail; its secret and its details go."""
    await connection.execute(
        "UPDATE identity.mail SET ended_at = $3, outcome = $2, taken_until = NULL,"
        " last_error = nullif($4, ''), sealed_secrets = NULL, details = '{}'"
        " WHERE id = $1 AND ended_at IS NULL",
        mail_id,
        outcome,
        at,
        error,
    )


async def postpone(
    connection: Connection,
    mail_id: UUID,
    next_at: datetime,
    error: str,
    *,
    counts: bool,
    unanswered: bool = False,
) -> None:
    """Gives a mail back, to be tried at another time.

    Args:
        counts: whether this was an attempt of the mail, and not of the server.
        unanswered: whether the server got it whole, and did not answer.
    """
    await connection.execute(
        "UPDATE identity.mail SET next_at = $2, taken_until = NULL, last_error = $3,"
        " attempts = attempts - $4, unanswered = unanswered + $5"
        " WHERE id = $1 AND ended_at IS NULL",
        mail_id,
        next_at,
        error,
        0 if counts else 1,
        int(unanswered),
    )


async def void_of(connection: Connection, tenant_id: UUID, address: str, at: datetime) -> None:
    """Ends what waits for an address of a tenant whose user is no more."""
    await connection.execute(
        "UPDATE identity.mail SET ended_at = $3, outcome = 'void', taken_until = NULL,"
        " sealed_secrets = NULL, details = '{}'"
        " WHERE tenant_id = $1 AND address = $2 AND ended_at IS NULL",
        tenant_id,
        address,
        at,
    )


async def note_on(connection: Connection) -> None:
    """Notes that the installation sends mail, for who has the server's machine."""
    await connection.execute(
        "INSERT INTO identity.mail_server DEFAULT VALUES ON CONFLICT (only_row) DO NOTHING"
    )


async def is_on(connection: Connection) -> bool:
    """Whether the installation has sent mail, as far as the database knows."""
    return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM identity.mail_server)"))


async def end_expired(connection: Connection, at: datetime) -> int:
    """Ends mails whose time is over, and that nobody is sending; answers how many."""
    done: str = await connection.execute(
        "UPDATE identity.mail SET ended_at = $1, outcome = 'expired', taken_until = NULL,"
        " sealed_secrets = NULL, details = '{}' WHERE id IN (SELECT id FROM identity.mail"
        " WHERE ended_at IS NULL AND expires_at <= $1"
        " AND (taken_until IS NULL OR taken_until <= $1) LIMIT $2 FOR UPDATE SKIP LOCKED)",
        at,
        _BATCH,
    )
    return int(done.rsplit(" ", 1)[1])


async def forget(connection: Connection, before: datetime) -> int:
    """Deletes mails that ended before a time; answers how many."""
    done: str = await connection.execute(
        "DELETE FROM identity.mail WHERE id IN (SELECT id FROM identity.mail"
        " WHERE ended_at < $1 LIMIT $2 FOR UPDATE SKIP LOCKED)",
        before,
        _BATCH,
    )
    return int(done.rsplit(" ", 1)[1])


async def note_server(connection: Connection, at: datetime, error: str = "") -> None:
    """Notes how the mail server was found: well, or with an error."""
    # A restored database has no row.
    if error:
        await connection.execute(
            "INSERT INTO identity.mail_server AS s (failing_since, last_error, last_error_at)"
            " VALUES ($1, $2, $1) ON CONFLICT (only_row) DO UPDATE SET"
            " failing_since = coalesce(s.failing_since, excluded.failing_since),"
            " last_error = excluded.last_error, last_error_at = excluded.last_error_at",
            at,
            error,
        )
        return
    await connection.execute(
        "INSERT INTO identity.mail_server AS s (last_success_at) VALUES ($1)"
        " ON CONFLICT (only_row) DO UPDATE SET last_success_at = excluded.last_success_at,"
        " failing_since = NULL WHERE s.failing_since IS NOT NULL OR s.last_success_at IS NULL"
        " OR s.last_success_at < $1 - interval '10 seconds'",
        at,
    )


async def waiting(connection: Connection) -> tuple[int, datetime | None]:
    """How many mails of all tenants wait, and since when the oldest does."""
    row = await connection.fetchrow(
        "SELECT count(*) AS waiting, min(created_at) AS oldest_at FROM identity.mail"
        " WHERE ended_at IS NULL"
    )
    assert row is not None
    return row["waiting"], row["oldest_at"]


async def overview(connection: Connection) -> Overview:
    """What waits, and what became of those that have ended lately, of all tenants."""
    row = await connection.fetchrow(
        "SELECT count(*) FILTER (WHERE ended_at IS NULL) AS waiting,"
        " min(created_at) FILTER (WHERE ended_at IS NULL) AS oldest_at,"
        " count(*) FILTER (WHERE outcome = 'sent') AS sent,"
        " count(*) FILTER (WHERE outcome = 'refused') AS refused,"
        " count(*) FILTER (WHERE outcome = 'expired') AS expired,"
        " (SELECT last_error FROM identity.mail WHERE outcome = 'refused'"
        " ORDER BY ended_at DESC LIMIT 1) AS last_refusal FROM identity.mail"
    )
    server = await connection.fetchrow(
        "SELECT last_success_at, failing_since, last_error, last_error_at FROM identity.mail_server"
    )
    assert row is not None
    return Overview(
        ServerState(
            server["last_success_at"],
            server["failing_since"],
            server["last_error"] or "",
            server["last_error_at"],
        )
        if server is not None
        else ServerState(None, None, "", None),
        row["waiting"],
        row["oldest_at"],
        row["sent"],
        row["refused"],
        row["expired"],
        row["last_refusal"] or "",
    )


async def addresses(
    connection: Connection, tenant_id: UUID, user_ids: Sequence[UUID], roles: Sequence[str]
) -> list[str]:
    """Addresses of a tenant's active users with one of some ids or roles."""
    rows = await connection.fetch(
        "SELECT email FROM identity.account WHERE tenant_id = $1 AND status = 'active'"
        " AND (id = ANY ($2) OR role = ANY ($3)) ORDER BY id LIMIT $4",
        tenant_id,
        list(user_ids),
        list(roles),
        MOST_WAITING,
    )
    return [row["email"] for row in rows]
