"""Sessions in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from servicekit.data.postgres import Connection
from servicekit.rpc.pagination import Page
from services.identity.second_factor import store as factors_store
from services.identity.sessions.domain import MAX_USER_AGENT, KnownSession
from services.identity.sources.domain import Origin
from services.identity.users.domain import User


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """A refresh token as it is stored, with its session."""

    session_id: UUID
    tenant_id: UUID
    account_id: UUID
    used_at: datetime | None
    expires_at: datetime
    ended: bool
    authenticated_at: datetime
    methods: frozenset[str]
    """How the user logged in, and confirmed it since."""
    vouching_tenant_id: UUID | None
    """The tenant of the provider that opened the session, if that answers for a second factor."""
    source_id: UUID | None
    """The source that recognised the user; `None` for a login with what the user has here."""


CHANGING: Final = (
    "SELECT changed_xid FROM identity.tenant",
    "SELECT changed_xid FROM identity.tenant_tombstone",
    "SELECT changed_xid FROM identity.session WHERE ended_at IS NOT NULL",
)
"""What the feeds tell of (`servicekit.feeds.changes`)."""

ENDED_SESSIONS: Final = (
    "SELECT s.changed_xid::text AS changed_xid, s.id AS key, s.id, s.ended_at"
    " FROM identity.session s"
    " WHERE s.ended_at IS NOT NULL AND (s.changed_xid, s.id) > ($1::text::xid8, $2)"
    # By the column: the text of the same name would put 99 behind 100.
    " ORDER BY s.changed_xid, s.id LIMIT $3"
)
"""The feed of ended sessions (`servicekit.feeds.feed.read_page`)."""


# Sessions


async def insert_session(
    connection: Connection,
    session_id: UUID,
    user: User,
    at: datetime,
    expires_at: datetime,
    methods: Sequence[str],
    origin: Origin | None = None,
) -> None:
    """Opens a session of somebody who logs in."""
    await connection.execute(
        "INSERT INTO identity.session"
        " (id, account_id, tenant_id, created_at, expires_at, authenticated_at, methods,"
        " source_id, external_sid) VALUES ($1, $2, $3, $4, $5, $9, $6, $7, nullif($8, ''))",
        session_id,
        user.id,
        user.tenant_id,
        at,
        expires_at,
        list(methods),
        origin.source_id if origin else None,
        origin.sid if origin else "",
        (origin.authenticated_at if origin else None) or at,
    )


async def insert_refresh_token(
    connection: Connection, token_hash: bytes, session_id: UUID, at: datetime
) -> None:
    """Adds the session's newest refresh token."""
    await connection.execute(
        "INSERT INTO identity.refresh_token (hash, session_id, issued_at) VALUES ($1, $2, $3)",
        token_hash,
        session_id,
        at,
    )


async def refresh_token(connection: Connection, token_hash: bytes) -> RefreshToken | None:
    """A refresh token with its session, locked."""
    row = await connection.fetchrow(
        "SELECT s.id, s.tenant_id, s.account_id, t.used_at, s.expires_at,"
        " s.ended_at IS NOT NULL AS ended,"
        " coalesce(s.authenticated_at, s.created_at) AS authenticated_at,"
        " s.methods, (SELECT p.tenant_id FROM identity.sso_provider p"
        " WHERE p.id = s.source_id AND p.trusts_mfa) AS vouching_tenant_id, s.source_id"
        " FROM identity.refresh_token t JOIN identity.session s ON s.id = t.session_id"
        " WHERE t.hash = $1 FOR UPDATE",
        token_hash,
    )
    if row is None:
        return None
    return RefreshToken(
        session_id=row["id"],
        tenant_id=row["tenant_id"],
        account_id=row["account_id"],
        used_at=row["used_at"],
        expires_at=row["expires_at"],
        ended=row["ended"],
        authenticated_at=row["authenticated_at"],
        methods=frozenset(row["methods"]),
        vouching_tenant_id=row["vouching_tenant_id"],
        source_id=row["source_id"],
    )


async def use_refresh_token(connection: Connection, token_hash: bytes, at: datetime) -> None:
    """Marks a refresh token as used."""
    await connection.execute(
        "UPDATE identity.refresh_token SET used_at = $2 WHERE hash = $1", token_hash, at
    )


async def confirm_session(
    connection: Connection, session_id: UUID, at: datetime, methods: Sequence[str] = ()
) -> bool:
    """Notes that it is still its user who uses a session; answers whether it is open.

    Args:
        methods: how the user has shown it.
    """
    done: str = await connection.execute(
        "UPDATE identity.session SET authenticated_at = $2"
        " WHERE id = $1 AND ended_at IS NULL AND expires_at > $2",
        session_id,
        at,
    )
    await factors_store.add_methods(connection, session_id, methods)
    return done == "UPDATE 1"


async def end_session(connection: Connection, session_id: UUID, at: datetime) -> bool:
    """Ends a session; answers whether it was open."""
    done: str = await connection.execute(
        "UPDATE identity.session SET ended_at = $2, changed_xid = pg_current_xact_id()"
        " WHERE id = $1 AND ended_at IS NULL",
        session_id,
        at,
    )
    return done == "UPDATE 1"


async def end_sessions_of(
    connection: Connection,
    user_id: UUID,
    at: datetime,
    *,
    only: UUID | None = None,
    but: UUID | None = None,
) -> list[UUID]:
    """Ends all open sessions of a user, or one, or all but for one; answers those that ended."""
    rows = await connection.fetch(
        "UPDATE identity.session SET ended_at = $2, changed_xid = pg_current_xact_id()"
        " WHERE account_id = $1 AND ended_at IS NULL AND ($3::uuid IS NULL OR id <> $3)"
        " AND ($4::uuid IS NULL OR id = $4) RETURNING id",
        user_id,
        at,
        but,
        only,
    )
    return [row["id"] for row in rows]


async def end_sessions_of_source(connection: Connection, source_id: UUID, at: datetime) -> None:
    """Ends all open sessions that a source opened, and logins that wait for a second factor."""
    await connection.execute("DELETE FROM identity.login_challenge WHERE source_id = $1", source_id)
    await connection.execute(
        "UPDATE identity.session SET ended_at = $2, changed_xid = pg_current_xact_id()"
        " WHERE source_id = $1 AND ended_at IS NULL",
        source_id,
        at,
    )


async def end_sessions_by_source(
    connection: Connection, user_id: UUID, source_id: UUID, at: datetime, sid: str
) -> list[UUID]:
    """Ends the open sessions of a user that a source opened, and logins that wait for a second
    factor; answers the sessions that ended.

    Args:
        sid: what the source calls its session; empty for all. Of sessions that it gave no name
            it may mean any.
    """
    await connection.execute(
        "DELETE FROM identity.login_challenge WHERE account_id = $1 AND source_id = $2"
        " AND ($3 = '' OR external_sid IN ('', $3))",
        user_id,
        source_id,
        sid,
    )
    rows = await connection.fetch(
        "UPDATE identity.session SET ended_at = $3, changed_xid = pg_current_xact_id()"
        " WHERE account_id = $1 AND source_id = $2 AND ended_at IS NULL"
        " AND ($4 = '' OR coalesce(external_sid, $4) = $4) RETURNING id",
        user_id,
        source_id,
        at,
        sid,
    )
    return [row["id"] for row in rows]


async def is_open(connection: Connection, session_id: UUID, at: datetime) -> bool:
    """Whether a session is open."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM identity.session WHERE id = $1 AND ended_at IS NULL"
        " AND expires_at > $2)",
        session_id,
        at,
    )
    return found


async def note_seen(
    connection: Connection, session_id: UUID, at: datetime, source_ip: str, user_agent: str
) -> None:
    """Notes that a session is used, and from where."""
    await connection.execute(
        "UPDATE identity.session SET last_seen_at = $2, source_ip = $3, user_agent = $4"
        " WHERE id = $1",
        session_id,
        at,
        source_ip,
        user_agent[:MAX_USER_AGENT],
    )


async def open_sessions(
    connection: Connection, user_id: UUID, at: datetime, before: UUID | None, limit: int
) -> Page[KnownSession, UUID]:
    """Open sessions of a user before a position, newest first."""
    rows = await connection.fetch(
        "SELECT id, created_at, expires_at, coalesce(last_seen_at, created_at) AS last_seen_at,"
        " source_ip, user_agent, methods FROM identity.session"
        " WHERE account_id = $1 AND ended_at IS NULL AND expires_at > $2"
        " AND ($3::uuid IS NULL OR id < $3) ORDER BY id DESC LIMIT $4",
        user_id,
        at,
        before,
        limit + 1,
    )
    found = [
        KnownSession(
            id=row["id"],
            created_at=row["created_at"],
            expires_at=row["expires_at"],
            last_seen_at=row["last_seen_at"],
            source_ip=row["source_ip"],
            user_agent=row["user_agent"],
            methods=tuple(row["methods"]),
        )
        for row in rows
    ]
    return Page.of(found, limit, lambda one: one.id)


async def is_session_of(connection: Connection, user_id: UUID, session_id: UUID) -> bool:
    """Whether a session is a user's, open or not."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM identity.session WHERE id = $1 AND account_id = $2)",
        session_id,
        user_id,
    )
    return found


async def forget_sessions(connection: Connection, before: datetime) -> None:
    """Deletes sessions that expired or ended before a time; their tokens have expired by then."""
    await connection.execute(
        "DELETE FROM identity.session WHERE expires_at < $1 OR ended_at < $1", before
    )
