"""The SQL of event credentials."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.postgres import Connection, Scope
from services.identity.domain import EventCredential

_COLUMNS: Final = (
    "id, tenant_id, name, created_at, created_by, expires_at, revoked_at, last_used_at"
)


def _credential(row: asyncpg.Record) -> EventCredential:
    return EventCredential(
        row["id"],
        row["tenant_id"],
        row["name"],
        row["created_at"],
        row["created_by"],
        row["expires_at"],
        row["revoked_at"],
        row["last_used_at"],
    )


async def insert(connection: Connection, credential: EventCredential, secret_hash: bytes) -> None:
    """Adds a credential."""
    await connection.execute(
        "INSERT INTO identity.event_credential (id, tenant_id, name, secret_hash, created_at,"
        " created_by, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        credential.id,
        credential.tenant_id,
        credential.name,
        secret_hash,
        credential.created_at,
        credential.created_by,
        credential.expires_at,
    )


async def get(connection: Connection, credential_id: UUID) -> EventCredential | None:
    """One credential in the transaction's scope, locked."""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM identity.event_credential WHERE id = $1 FOR UPDATE",
        credential_id,
    )
    return _credential(row) if row else None


async def secret_of(
    connection: Connection, credential_id: UUID
) -> tuple[EventCredential, bytes] | None:
    """A credential with the hash of its secret."""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS}, secret_hash FROM identity.event_credential WHERE id = $1",
        credential_id,
    )
    return (_credential(row), row["secret_hash"]) if row else None


async def page(
    connection: Connection, scope: Scope, after: UUID | None, limit: int
) -> list[EventCredential]:
    """Credentials of the scope's tenants behind a position, oldest first."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM identity.event_credential"
        " WHERE ($1::uuid[] IS NULL OR tenant_id = ANY ($1)) AND ($2::uuid IS NULL OR id > $2)"
        " ORDER BY id LIMIT $3",
        scope.tenant_ids,
        after,
        limit,
    )
    return [_credential(row) for row in rows]


async def lock_and_count(connection: Connection, tenant_id: UUID, at: datetime) -> int:
    """How many working credentials a tenant has; makes those who add one take turns."""
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtext('identity:event-credentials'), hashtext($1))",
        str(tenant_id),
    )
    count: int = await connection.fetchval(
        "SELECT count(*) FROM identity.event_credential WHERE tenant_id = $1"
        " AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)",
        tenant_id,
        at,
    )
    return count


async def revoke(connection: Connection, credential_id: UUID, at: datetime) -> None:
    """Marks a credential as revoked."""
    await connection.execute(
        "UPDATE identity.event_credential SET revoked_at = $2 WHERE id = $1", credential_id, at
    )


async def note_use(
    connection: Connection, credential_id: UUID, at: datetime, every: timedelta
) -> None:
    """Notes that a credential was used, unless that was noted a moment ago."""
    await connection.execute(
        "UPDATE identity.event_credential SET last_used_at = $2::timestamptz"
        " WHERE id = $1"
        " AND (last_used_at IS NULL OR last_used_at < $2::timestamptz - $3::interval)",
        credential_id,
        at,
        every,
    )


async def working(connection: Connection, at: datetime) -> Sequence[tuple[UUID, UUID]]:
    """The credentials that work, with their tenants."""
    rows = await connection.fetch(
        "SELECT id, tenant_id FROM identity.event_credential"
        " WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $1)",
        at,
    )
    return [(row["id"], row["tenant_id"]) for row in rows]
