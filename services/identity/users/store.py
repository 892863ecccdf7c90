"""Users in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from contract.access import Role
from servicekit.data.postgres import Connection, Scope
from servicekit.errors import DomainError, already_exists
from servicekit.rpc.pagination import Page
from servicekit.security.passwords import PasswordHashes
from services.identity.users.domain import User

_USER: Final = (
    "id, tenant_id, email, role, status, created_at, activated_at, last_login_at, origin,"
    " disabled_by, kept_from_sources,"
    " CASE WHEN origin <> 'local' THEN (SELECT e.source_id FROM identity.external_identity e"
    # Who comes from SCIM may be linked with a provider, too.
    " LEFT JOIN identity.source s ON s.id = e.source_id WHERE e.account_id = account.id"
    " ORDER BY coalesce(s.kind = account.origin, true) DESC, e.source_id LIMIT 1) END AS source_id"
)
_TOMBSTONE: Final = (
    "id, tenant_id, email, role, 'deleted' AS status, created_at,"
    " NULL::timestamptz AS activated_at, NULL::timestamptz AS last_login_at, 'local' AS origin,"
    " NULL::text AS disabled_by, false AS kept_from_sources, NULL::uuid AS source_id, deleted_at,"
    " deleted_by"
)
_OF_SCOPE: Final = "($2::uuid[] IS NULL OR tenant_id = ANY ($2))"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user with the hashes of the user's password; `None` before the first one is set."""

    user: User
    hashes: PasswordHashes | None = field(repr=False)


def _user(row: asyncpg.Record) -> User:
    return User(
        id=row["id"],
        tenant_id=row["tenant_id"],
        email=row["email"],
        role=Role(row["role"]),
        status=row["status"],
        created_at=row["created_at"],
        activated=row["activated_at"] is not None,
        last_login_at=row["last_login_at"],
        origin=row["origin"],
        source_id=row["source_id"],
        # The release before does not say who it was.
        disabled_by=(row["disabled_by"] or "admin") if row["status"] == "disabled" else None,
        kept_from_sources=row["kept_from_sources"],
    )


def _listed(row: asyncpg.Record) -> User:
    return replace(_user(row), deleted_at=row["deleted_at"], deleted_by=row["deleted_by"] or "")


def _credentials(row: asyncpg.Record) -> Credentials:
    typed = row["password_hash"]
    hashes = None if typed is None else PasswordHashes(typed, row["prepared_hash"])
    return Credentials(_user(row), hashes)


# Users


async def insert_user(
    connection: Connection,
    user: User,
    *,
    password: PasswordHashes | None = None,
    invitation: tuple[bytes, datetime] | None = None,
) -> None:
    """Adds a user; an invitation is the hash of its token and when it expires.

    Raises:
        DomainError: ALREADY_EXISTS when the address is taken.
    """
    try:
        await connection.execute(
            "INSERT INTO identity.account (id, tenant_id, email, role, status, password_hash,"
            " prepared_hash, invitation_hash, invitation_expires_at, created_at, updated_at,"
            " origin)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10, $11)",
            user.id,
            user.tenant_id,
            user.email,
            user.role.value,
            user.status,
            *((password.typed, password.prepared) if password else (None, None)),
            *(invitation or (None, None)),
            user.created_at,
            user.origin,
        )
    except asyncpg.UniqueViolationError as error:
        raise _conflict(error) from error


def _conflict(error: asyncpg.UniqueViolationError) -> DomainError:
    if error.constraint_name == "account_email_taken":
        return already_exists("EMAIL_TAKEN", "email: already in use")
    raise error


async def update_user(connection: Connection, before: User, user: User, at: datetime) -> None:
    """Writes a user's role, status, address, tenant and origin.

    Raises:
        DomainError: ALREADY_EXISTS when the address is taken.
    """
    try:
        await connection.execute(
            "UPDATE identity.account SET tenant_id = $3, email = $4, role = $5, status = $6,"
            " updated_at = $7, origin = $8, disabled_by = $9, kept_from_sources = $10"
            " WHERE id = $1 AND tenant_id = $2",
            user.id,
            before.tenant_id,
            user.tenant_id,
            user.email,
            user.role.value,
            user.status,
            at,
            user.origin,
            user.disabled_by if user.status == "disabled" else None,
            user.kept_from_sources,
        )
    except asyncpg.UniqueViolationError as error:
        raise _conflict(error) from error


async def bury(connection: Connection, user: User) -> None:
    """Puts a tombstone in the place of a user; what ended the user's sessions stays."""
    await connection.execute(
        "INSERT INTO identity.user_tombstone"
        " (id, tenant_id, email, role, created_at, deleted_at, deleted_by)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7)",
        user.id,
        user.tenant_id,
        user.email,
        user.role.value,
        user.created_at,
        user.deleted_at,
        user.deleted_by,
    )
    await connection.execute(
        "DELETE FROM identity.account WHERE id = $1 AND tenant_id = $2", user.id, user.tenant_id
    )


async def set_password(
    connection: Connection, user: User, password: PasswordHashes, at: datetime
) -> None:
    """Sets a password; the user is active and no invitation is open from then on."""
    await connection.execute(
        "UPDATE identity.account SET password_hash = $3, prepared_hash = $4, status = 'active',"
        " invitation_hash = NULL, invitation_expires_at = NULL, kept_from_sources = false,"
        " updated_at = $5"
        " WHERE id = $1 AND tenant_id = $2",
        user.id,
        user.tenant_id,
        password.typed,
        password.prepared,
        at,
    )


async def renew_hashes(connection: Connection, user: User, password: PasswordHashes) -> None:
    """Stores other hashes of the same password."""
    await connection.execute(
        "UPDATE identity.account SET password_hash = $3, prepared_hash = $4"
        " WHERE id = $1 AND tenant_id = $2",
        user.id,
        user.tenant_id,
        password.typed,
        password.prepared,
    )


async def note_seen(connection: Connection, user: User, at: datetime, *, login: bool) -> None:
    """Notes that a user is here, and perhaps has just logged in.

    Not while another transaction changes the user: it may wait for the session, which a refresh
    holds already.
    """
    await connection.execute(
        "UPDATE identity.account SET seen_at = greatest(seen_at, $3),"
        " last_login_at = CASE WHEN $4 THEN $3 ELSE last_login_at END"
        " WHERE id = (SELECT a.id FROM identity.account a WHERE a.id = $1 AND a.tenant_id = $2"
        " FOR NO KEY UPDATE SKIP LOCKED)",
        user.id,
        user.tenant_id,
        at,
        login,
    )


async def unseen(connection: Connection, before: datetime, limit: int) -> list[tuple[UUID, UUID]]:
    """Active users of all tenants who were not here since a time, with their tenants, the longest
    away first."""
    rows = await connection.fetch(
        "SELECT id, tenant_id FROM identity.account WHERE status = 'active' AND seen_at < $1"
        " AND NOT EXISTS (SELECT FROM identity.tenant t WHERE t.id = account.tenant_id"
        " AND t.archived_at IS NOT NULL)"
        # Of a tenant's Owners the one who was here last stays.
        " AND (role <> 'Owner' OR EXISTS (SELECT FROM identity.account o"
        " WHERE o.tenant_id = account.tenant_id AND o.role = 'Owner' AND o.status = 'active'"
        " AND (o.seen_at, o.id) > (account.seen_at, account.id)))"
        " ORDER BY seen_at, id LIMIT $2",
        before,
        limit,
    )
    return [(row["id"], row["tenant_id"]) for row in rows]


async def is_unseen(connection: Connection, user: User, before: datetime) -> bool:
    """Whether an active user, locked, was not here since a time, and is no tenant's last Owner."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM identity.account a WHERE id = $1 AND tenant_id = $2"
        " AND status = 'active' AND seen_at < $3 AND (role <> 'Owner' OR EXISTS"
        " (SELECT FROM identity.account o WHERE o.tenant_id = a.tenant_id AND o.id <> a.id"
        " AND o.role = 'Owner' AND o.status = 'active')))",
        user.id,
        user.tenant_id,
        before,
    )
    return found


async def set_invitation(
    connection: Connection, user: User, token_hash: bytes, expires_at: datetime, at: datetime
) -> None:
    """Opens an invitation; the old password is gone."""
    await connection.execute(
        "UPDATE identity.account SET password_hash = NULL, prepared_hash = NULL,"
        " status = 'invited',"
        " invitation_hash = $3, invitation_expires_at = $4, updated_at = $5"
        " WHERE id = $1 AND tenant_id = $2",
        user.id,
        user.tenant_id,
        token_hash,
        expires_at,
        at,
    )


async def end_invitation(connection: Connection, user: User, at: datetime) -> None:
    """Takes an open invitation back."""
    await connection.execute(
        "UPDATE identity.account SET invitation_hash = NULL, invitation_expires_at = NULL,"
        " updated_at = $3 WHERE id = $1 AND tenant_id = $2",
        user.id,
        user.tenant_id,
        at,
    )


async def user(
    connection: Connection, scope: Scope, user_id: UUID, *, for_update: bool = False
) -> User | None:
    """One user of the scope's tenants."""
    lock = " FOR UPDATE" if for_update else ""
    row = await connection.fetchrow(
        f"SELECT {_USER} FROM identity.account WHERE id = $1 AND {_OF_SCOPE}{lock}",
        user_id,
        scope.tenant_ids,
    )
    return _user(row) if row else None


async def users_by_id(
    connection: Connection, user_ids: Sequence[UUID], *, for_update: bool = False
) -> dict[UUID, User]:
    """Some users of any tenant."""
    lock = " FOR UPDATE" if for_update else ""
    rows = await connection.fetch(
        f"SELECT {_USER} FROM identity.account WHERE id = ANY ($1) ORDER BY id{lock}", user_ids
    )
    return {row["id"]: _user(row) for row in rows}


async def credentials(
    connection: Connection, scope: Scope, user_id: UUID, *, for_update: bool = False
) -> Credentials | None:
    """A user of the scope's tenants with the hash of the password."""
    lock = " FOR UPDATE" if for_update else ""
    row = await connection.fetchrow(
        f"SELECT {_USER}, password_hash, prepared_hash FROM identity.account"
        f" WHERE id = $1 AND {_OF_SCOPE}{lock}",
        user_id,
        scope.tenant_ids,
    )
    return _credentials(row) if row else None


async def credentials_by_email(
    connection: Connection, first: str, second: str
) -> Credentials | None:
    """The user of any tenant with one of two spellings of an address; one query, whichever."""
    row = await connection.fetchrow(
        f"SELECT {_USER}, password_hash, prepared_hash FROM identity.account"
        " WHERE email IN ($1, $2)"
        " ORDER BY email = $1 DESC LIMIT 1",
        first,
        second,
    )
    return _credentials(row) if row else None


async def invited_user(connection: Connection, token_hash: bytes, at: datetime) -> User | None:
    """The user of any tenant with an open invitation, locked."""
    row = await connection.fetchrow(
        f"SELECT {_USER} FROM identity.account"
        " WHERE invitation_hash = $1 AND invitation_expires_at > $2 AND status = 'invited'"
        " FOR UPDATE",
        token_hash,
        at,
    )
    return _user(row) if row else None


async def take_turns(connection: Connection) -> None:
    """Waits until no other transaction changes who is an Owner, so that one remains."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('identity:users'))")


async def has_active_owner(connection: Connection, tenant_id: UUID) -> bool:
    """Whether an Owner of a tenant can log in."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM identity.account WHERE tenant_id = $1 AND role = 'Owner'"
        " AND status = 'active')",
        tenant_id,
    )
    return found


async def has_role_of_its_own(connection: Connection, user: User) -> bool:
    """Whether a user comes from a provider without role mappings, which says nothing of roles."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM identity.external_identity e"
        " JOIN identity.source s ON s.id = e.source_id AND s.kind = 'sso' AND s.kind = $2"
        " WHERE e.account_id = $1 AND NOT EXISTS"
        " (SELECT FROM identity.role_mapping m WHERE m.source_id = s.id))",
        user.id,
        user.origin,
    )
    return found


async def is_last_local_owner(connection: Connection, user: User) -> bool:
    """Whether a user is the only active Owner of a tenant with a password here."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM identity.account WHERE id = $2 AND role = 'Owner'"
        " AND status = 'active' AND origin = 'local' AND password_hash IS NOT NULL)"
        " AND NOT EXISTS (SELECT FROM identity.account WHERE tenant_id = $1 AND id <> $2"
        " AND role = 'Owner' AND status = 'active' AND origin = 'local'"
        " AND password_hash IS NOT NULL)",
        user.tenant_id,
        user.id,
    )
    return found


async def has_source(connection: Connection, tenant_id: UUID) -> bool:
    """Whether people come into a tenant from a directory or provider."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM identity.source WHERE tenant_id = $1)"
        " OR EXISTS (SELECT FROM identity.role_mapping WHERE tenant_id = $1)",
        tenant_id,
    )
    return found


async def list_users(
    connection: Connection, scope: Scope, after: UUID | None, limit: int, *, deleted: bool = False
) -> Page[User, UUID]:
    """Users of the scope's tenants behind a position, oldest first."""
    sql = (
        "SELECT {columns} FROM {table}"
        " WHERE ($1::uuid[] IS NULL OR tenant_id = ANY ($1)) AND ($2::uuid IS NULL OR id > $2)"
        " ORDER BY id LIMIT $3"
    )
    there = f"{_USER}, NULL::timestamptz AS deleted_at, NULL::text AS deleted_by"
    statement = sql.format(columns=there, table="identity.account")
    if deleted:
        gone = sql.format(columns=_TOMBSTONE, table="identity.user_tombstone")
        statement = f"({statement}) UNION ALL ({gone}) ORDER BY id LIMIT $3"
    rows = await connection.fetch(statement, scope.tenant_ids, after, limit + 1)
    return Page.of([_listed(row) for row in rows], limit, lambda user: user.id)


async def invited_users(
    connection: Connection, scope: Scope, before: UUID | None, limit: int
) -> Page[User, UUID]:
    """Invited users of the scope's tenants before a position, newest first."""
    rows = await connection.fetch(
        f"SELECT {_USER} FROM identity.account WHERE status = 'invited'"
        " AND ($1::uuid[] IS NULL OR tenant_id = ANY ($1)) AND ($2::uuid IS NULL OR id < $2)"
        " ORDER BY id DESC LIMIT $3",
        scope.tenant_ids,
        before,
        limit + 1,
    )
    return Page.of([_user(row) for row in rows], limit, lambda user: user.id)


async def forget_links(
    connection: Connection, user_id: UUID, *, but: str = ""
) -> list[tuple[UUID, str]]:
    """Forgets what a user signs in with elsewhere; answers the sources, with their names where the
    transaction sees them.

    Args:
        but: the kind of the sources that are left; the transaction sees them.
    """
    rows = await connection.fetch(
        "WITH gone AS"
        " (DELETE FROM identity.external_identity WHERE account_id = $1 AND ($2 = '' OR NOT EXISTS"
        " (SELECT FROM identity.source k WHERE k.id = source_id AND k.kind = $2))"
        " RETURNING source_id)"
        " SELECT g.source_id, coalesce(s.name, '') AS name FROM gone g"
        " LEFT JOIN identity.source s ON s.id = g.source_id ORDER BY g.source_id",
        user_id,
        but,
    )
    return [(row["source_id"], row["name"]) for row in rows]
