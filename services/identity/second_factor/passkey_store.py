"""Passkeys in SQL. A caller has read the account within its scope before."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection
from servicekit.errors import already_exists

_COLUMNS: Final = (
    "id, account_id, credential_id, site, public_key, sign_count, backed_up, aaguid, name,"
    " created_at, last_used_at"
)


@dataclass(frozen=True, slots=True)
class Passkey:
    """A passkey of a user."""

    id: UUID
    account_id: UUID
    credential_id: bytes
    site: str
    """The host that it is for."""
    public_key: bytes = field(repr=False)
    sign_count: int
    backed_up: bool
    aaguid: UUID
    name: str
    created_at: datetime
    last_used_at: datetime | None


def _passkey(row: asyncpg.Record) -> Passkey:
    return Passkey(
        id=row["id"],
        account_id=row["account_id"],
        credential_id=row["credential_id"],
        site=row["site"],
        public_key=row["public_key"],
        sign_count=row["sign_count"],
        backed_up=row["backed_up"],
        aaguid=row["aaguid"],
        name=row["name"],
        created_at=row["created_at"],
        last_used_at=row["last_used_at"],
    )


async def passkeys(connection: Connection, account_id: UUID) -> list[Passkey]:
    """The passkeys of a user, oldest first."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM identity.passkey WHERE account_id = $1 ORDER BY id", account_id
    )
    return [_passkey(row) for row in rows]


async def passkey(connection: Connection, credential_id: bytes) -> Passkey | None:
    """A passkey by what its device calls it, locked."""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM identity.passkey WHERE credential_id = $1 FOR UPDATE",
        credential_id,
    )
    return None if row is None else _passkey(row)


async def insert(connection: Connection, one: Passkey) -> None:
    """Adds a passkey.

    Raises:
        DomainError: ALREADY_EXISTS when somebody has it.
    """
    try:
        await connection.execute(
            f"INSERT INTO identity.passkey ({_COLUMNS})"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
            one.id,
            one.account_id,
            one.credential_id,
            one.site,
            one.public_key,
            one.sign_count,
            one.backed_up,
            one.aaguid,
            one.name,
            one.created_at,
            one.last_used_at,
        )
    except asyncpg.UniqueViolationError as error:
        raise already_exists("PASSKEY_TAKEN", "credential: is added already") from error


async def note_use(
    connection: Connection, passkey_id: UUID, sign_count: int, at: datetime, *, backed_up: bool
) -> None:
    """Notes a use."""
    await connection.execute(
        "UPDATE identity.passkey SET sign_count = $2, last_used_at = $3, backed_up = $4"
        " WHERE id = $1",
        passkey_id,
        sign_count,
        at,
        backed_up,
    )


async def delete(connection: Connection, account_id: UUID, passkey_id: UUID | None = None) -> int:
    """Removes a passkey of a user, or all; answers how many."""
    done: str = await connection.execute(
        "DELETE FROM identity.passkey WHERE account_id = $1 AND ($2::uuid IS NULL OR id = $2)",
        account_id,
        passkey_id,
    )
    return int(done.rsplit(" ", 1)[1])


async def spend(connection: Connection, challenge: bytes, expires_at: datetime) -> bool:
    """Takes a challenge, by its digest; answers whether it had not been taken."""
    done: str = await connection.execute(
        "INSERT INTO identity.spent_challenge (hash, expires_at) VALUES ($1, $2)"
        " ON CONFLICT (hash) DO NOTHING",
        challenge,
        expires_at,
    )
    return done == "INSERT 0 1"


async def forget_spent(connection: Connection, at: datetime) -> None:
    """Deletes taken challenges that have expired."""
    await connection.execute("DELETE FROM identity.spent_challenge WHERE expires_at <= $1", at)
