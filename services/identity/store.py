"""All of identity's SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg

from servicekit.access import Role
from servicekit.errors import DomainError, already_exists
from servicekit.postgres import Connection, Scope
from services.identity.domain import Tenant, User

_TENANT: Final = "id, parent_id, kind, name, code, created_at, updated_at"
_USER: Final = "id, tenant_id, email, role, status, created_at"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user with the hash of the user's password; `None` before the first one is set."""

    user: User
    password_hash: str | None


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """A refresh token as it is stored, with its session."""

    session_id: UUID
    account_id: UUID
    used_at: datetime | None
    expires_at: datetime
    ended: bool


def tenant_of(row: asyncpg.Record) -> Tenant:
    """The tenant of a row with the columns of `_TENANT`."""
    return Tenant(
        row["id"],
        row["parent_id"],
        row["kind"],
        row["name"],
        row["code"],
        row["created_at"],
        row["updated_at"],
    )


def _user(row: asyncpg.Record) -> User:
    return User(
        row["id"],
        row["tenant_id"],
        row["email"],
        Role(row["role"]),
        row["status"],
        row["created_at"],
    )


# Tenants


async def insert_tenant(connection: Connection, tenant: Tenant) -> None:
    """Adds a tenant.

    Raises:
        DomainError: ALREADY_EXISTS when its code is taken.
    """
    try:
        await connection.execute(
            "INSERT INTO identity.tenant"
            " (id, parent_id, kind, name, code, created_at, updated_at)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7)",
            tenant.id,
            tenant.parent_id,
            tenant.kind,
            tenant.name,
            tenant.code,
            tenant.created_at,
            tenant.updated_at,
        )
    except asyncpg.UniqueViolationError as error:
        raise _tenant_conflict(error) from error


async def update_tenant(connection: Connection, tenant: Tenant) -> None:
    """Writes a tenant's name and code.

    Raises:
        DomainError: ALREADY_EXISTS when the code is taken.
    """
    try:
        await connection.execute(
            "UPDATE identity.tenant SET name = $2, code = $3, updated_at = $4,"
            " changed_xid = pg_current_xact_id() WHERE id = $1",
            tenant.id,
            tenant.name,
            tenant.code,
            tenant.updated_at,
        )
    except asyncpg.UniqueViolationError as error:
        raise _tenant_conflict(error) from error


def _tenant_conflict(error: asyncpg.UniqueViolationError) -> DomainError:
    if error.constraint_name == "tenant_code_taken":
        return already_exists("CODE_TAKEN", "code: is taken by another tenant")
    raise error


async def tenant(
    connection: Connection, tenant_id: UUID, *, for_update: bool = False
) -> Tenant | None:
    """One tenant in the transaction's scope."""
    lock = " FOR UPDATE" if for_update else ""
    row = await connection.fetchrow(
        f"SELECT {_TENANT} FROM identity.tenant WHERE id = $1{lock}", tenant_id
    )
    return tenant_of(row) if row else None


async def root_tenant(connection: Connection) -> Tenant | None:
    """The root of the tree; `None` before the first start."""
    row = await connection.fetchrow(f"SELECT {_TENANT} FROM identity.tenant WHERE kind = 'root'")
    return tenant_of(row) if row else None


async def list_tenants(
    connection: Connection, scope: Scope, after: UUID | None, limit: int
) -> list[Tenant]:
    """Tenants of the scope behind a position; ids grow with time, so parents come first."""
    rows = await connection.fetch(
        f"SELECT {_TENANT} FROM identity.tenant"
        " WHERE ($1::uuid[] IS NULL OR id = ANY ($1)) AND ($2::uuid IS NULL OR id > $2)"
        " ORDER BY id LIMIT $3",
        scope.tenant_ids,
        after,
        limit,
    )
    return [tenant_of(row) for row in rows]


CHANGING: Final = (
    "SELECT changed_xid FROM identity.tenant",
    "SELECT changed_xid FROM identity.session WHERE ended_at IS NOT NULL",
)
"""What the two feeds tell of (`servicekit.changes`)."""

TENANT_CHANGES: Final = (
    f"SELECT changed_xid::text AS changed_xid, id AS key, {_TENANT} FROM identity.tenant"
    " WHERE (changed_xid, id) > ($1::text::xid8, $2) ORDER BY changed_xid, id LIMIT $3"
)
"""The feed of tenants (`servicekit.feed.read_page`)."""

ENDED_SESSIONS: Final = (
    "SELECT changed_xid::text AS changed_xid, id AS key, id, ended_at FROM identity.session"
    " WHERE ended_at IS NOT NULL AND (changed_xid, id) > ($1::text::xid8, $2)"
    " ORDER BY changed_xid, id LIMIT $3"
)
"""The feed of ended sessions (`servicekit.feed.read_page`)."""


# Users


async def insert_user(
    connection: Connection,
    user: User,
    *,
    password_hash: str | None = None,
    invitation: tuple[bytes, datetime] | None = None,
) -> None:
    """Adds a user; an invitation is the hash of its token and when it expires.

    Raises:
        DomainError: ALREADY_EXISTS when the address is taken.
    """
    try:
        await connection.execute(
            "INSERT INTO identity.account (id, tenant_id, email, role, status, password_hash,"
            " invitation_hash, invitation_expires_at, created_at, updated_at)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)",
            user.id,
            user.tenant_id,
            user.email,
            user.role.value,
            user.status,
            password_hash,
            *(invitation or (None, None)),
            user.created_at,
        )
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name == "account_email_taken":
            raise already_exists("EMAIL_TAKEN", "email: there is a user with it") from error
        raise


async def update_user(connection: Connection, user: User, at: datetime) -> None:
    """Writes a user's role and status."""
    await connection.execute(
        "UPDATE identity.account SET role = $2, status = $3, updated_at = $4 WHERE id = $1",
        user.id,
        user.role.value,
        user.status,
        at,
    )


async def set_password(
    connection: Connection, user_id: UUID, password_hash: str, at: datetime
) -> None:
    """Sets a password; the user is active and no invitation is open from then on."""
    await connection.execute(
        "UPDATE identity.account SET password_hash = $2, status = 'active',"
        " invitation_hash = NULL, invitation_expires_at = NULL, updated_at = $3 WHERE id = $1",
        user_id,
        password_hash,
        at,
    )


async def set_invitation(
    connection: Connection, user_id: UUID, token_hash: bytes, expires_at: datetime, at: datetime
) -> None:
    """Opens an invitation; the old password is gone."""
    await connection.execute(
        "UPDATE identity.account SET password_hash = NULL, status = 'invited',"
        " invitation_hash = $2, invitation_expires_at = $3, updated_at = $4 WHERE id = $1",
        user_id,
        token_hash,
        expires_at,
        at,
    )


async def user(connection: Connection, user_id: UUID, *, for_update: bool = False) -> User | None:
    """One user in the transaction's scope."""
    lock = " FOR UPDATE" if for_update else ""
    row = await connection.fetchrow(
        f"SELECT {_USER} FROM identity.account WHERE id = $1{lock}", user_id
    )
    return _user(row) if row else None


async def credentials(
    connection: Connection, column: str, value: Any, *, for_update: bool = False
) -> Credentials | None:
    """The user whose `column` (`email` or `id`) has a value."""
    lock = " FOR UPDATE" if for_update else ""
    row = await connection.fetchrow(
        f"SELECT {_USER}, password_hash FROM identity.account WHERE {column} = $1{lock}", value
    )
    return Credentials(_user(row), row["password_hash"]) if row else None


async def invited_user(connection: Connection, token_hash: bytes, at: datetime) -> User | None:
    """The user with an open invitation, locked."""
    row = await connection.fetchrow(
        f"SELECT {_USER} FROM identity.account"
        " WHERE invitation_hash = $1 AND invitation_expires_at > $2 AND status = 'invited'"
        " FOR UPDATE",
        token_hash,
        at,
    )
    return _user(row) if row else None


async def list_users(
    connection: Connection, scope: Scope, after: UUID | None, limit: int
) -> list[User]:
    """Users of the scope's tenants behind a position, oldest first."""
    rows = await connection.fetch(
        f"SELECT {_USER} FROM identity.account"
        " WHERE ($1::uuid[] IS NULL OR tenant_id = ANY ($1)) AND ($2::uuid IS NULL OR id > $2)"
        " ORDER BY id LIMIT $3",
        scope.tenant_ids,
        after,
        limit,
    )
    return [_user(row) for row in rows]


# Sessions


async def insert_session(
    connection: Connection, session_id: UUID, user: User, at: datetime, expires_at: datetime
) -> None:
    """Opens a session."""
    await connection.execute(
        "INSERT INTO identity.session (id, account_id, tenant_id, created_at, expires_at)"
        " VALUES ($1, $2, $3, $4, $5)",
        session_id,
        user.id,
        user.tenant_id,
        at,
        expires_at,
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
        "SELECT s.id, s.account_id, t.used_at, s.expires_at,"
        " s.ended_at IS NOT NULL AS ended"
        " FROM identity.refresh_token t JOIN identity.session s ON s.id = t.session_id"
        " WHERE t.hash = $1 FOR UPDATE",
        token_hash,
    )
    if row is None:
        return None
    return RefreshToken(
        row["id"], row["account_id"], row["used_at"], row["expires_at"], row["ended"]
    )


async def use_refresh_token(connection: Connection, token_hash: bytes, at: datetime) -> None:
    """Marks a refresh token as used."""
    await connection.execute(
        "UPDATE identity.refresh_token SET used_at = $2 WHERE hash = $1", token_hash, at
    )


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
    connection: Connection, user_id: UUID, at: datetime, *, but: UUID | None = None
) -> None:
    """Ends all open sessions of a user, but for one."""
    await connection.execute(
        "UPDATE identity.session SET ended_at = $2, changed_xid = pg_current_xact_id()"
        " WHERE account_id = $1 AND ended_at IS NULL AND ($3::uuid IS NULL OR id <> $3)",
        user_id,
        at,
        but,
    )


async def forget_sessions(connection: Connection, before: datetime) -> None:
    """Deletes sessions that expired or ended before a time; their tokens have expired by then."""
    await connection.execute(
        "DELETE FROM identity.session WHERE expires_at < $1 OR ended_at < $1", before
    )


# Keys


async def insert_key(
    connection: Connection, key_id: str, purpose: str, public: bytes, sealed: bytes, at: datetime
) -> None:
    """Adds a signing key, its private half sealed."""
    await connection.execute(
        "INSERT INTO identity.signing_key (key_id, purpose, public_key, sealed_seed, created_at)"
        " VALUES ($1, $2, $3, $4, $5)",
        key_id,
        purpose,
        public,
        sealed,
        at,
    )


async def keys(connection: Connection) -> Sequence[asyncpg.Record]:
    """All signing keys, oldest first: key_id, purpose, public_key, sealed_seed."""
    rows: Sequence[asyncpg.Record] = await connection.fetch(
        "SELECT key_id, purpose, public_key, sealed_seed FROM identity.signing_key"
        " ORDER BY created_at, key_id"
    )
    return rows


async def lock_first_start(connection: Connection) -> None:
    """Makes processes that start at the same time take turns."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('identity:first-start'))")
