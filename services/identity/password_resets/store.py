"""Links for new passwords, in SQL."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from servicekit.data.postgres import Connection
from servicekit.security.digests import sha256
from services.identity.users.domain import User
from services.identity.users.store import Credentials


@dataclass(frozen=True, slots=True)
class Found:
    """What a link was made for."""

    account_id: UUID
    tenant_id: UUID
    email: str
    password_mark: bytes


def mark_of(credentials: Credentials) -> bytes:
    """Stands for a password, so that a link ends when another one takes its place."""
    hashes = credentials.hashes
    return sha256(hashes.typed.encode() if hashes else b"")


async def put(
    connection: Connection, credentials: Credentials, link_hash: bytes, expires_at: datetime
) -> None:
    """Adds the link of an account in place of the one before."""
    await connection.execute(
        "INSERT INTO identity.password_reset (account_id, hash, email, password_mark, expires_at)"
        " VALUES ($1, $2, $3, $4, $5) ON CONFLICT (account_id) DO UPDATE SET hash = excluded.hash,"
        " email = excluded.email, password_mark = excluded.password_mark,"
        " expires_at = excluded.expires_at",
        credentials.user.id,
        link_hash,
        credentials.user.email,
        mark_of(credentials),
        expires_at,
    )


async def found(connection: Connection, link_hash: bytes, at: datetime) -> Found | None:
    """What a link was made for that has not expired."""
    row = await connection.fetchrow(
        "SELECT r.account_id, a.tenant_id, r.email, r.password_mark FROM identity.password_reset r"
        " JOIN identity.account a ON a.id = r.account_id WHERE r.hash = $1 AND r.expires_at > $2",
        link_hash,
        at,
    )
    return Found(**row) if row else None


async def end(connection: Connection, user: User) -> None:
    """Ends the link of an account."""
    await connection.execute("DELETE FROM identity.password_reset WHERE account_id = $1", user.id)


async def forget(connection: Connection, at: datetime) -> None:
    """Deletes links that have expired."""
    await connection.execute("DELETE FROM identity.password_reset WHERE expires_at <= $1", at)
