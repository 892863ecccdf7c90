"""The SQL of event credentials."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope
from servicekit.rpc.pagination import Page
from services.identity.event_access.domain import CREDENTIAL_LIFE_MAX, EventCredential

_LIFE: Final = f"interval '{CREDENTIAL_LIFE_MAX.days} days'"
# Release 0.1.0 makes credentials without a holder, and some without an end.
_EXPIRES: Final = f"coalesce(c.expires_at, c.created_at + {_LIFE})"
_HELD_BY: Final = "coalesce(c.held_by, c.created_by)"
_COLUMNS: Final = (
    f"c.id, c.tenant_id, c.name, c.created_at, c.created_by, {_EXPIRES} AS expires_at,"
    f" {_HELD_BY} AS held_by, c.holder_id, c.orphaned_at, c.revoked_at, c.last_used_at"
)
# It may also have been release 0.1.0 that deactivated the holder.
_WORKS: Final = (
    f"c.revoked_at IS NULL AND c.orphaned_at IS NULL AND {_EXPIRES} > $1 AND NOT EXISTS"
    " (SELECT FROM identity.account a WHERE a.status = 'disabled'"
    " AND (a.id = c.holder_id OR c.holder_id IS NULL AND a.email = c.created_by))"
    " AND NOT EXISTS (SELECT FROM identity.tenant t WHERE t.id = c.tenant_id"
    " AND t.archived_at IS NOT NULL)"
)


def _credential(row: asyncpg.Record) -> EventCredential:
    return EventCredential(
        id=row["id"],
        tenant_id=row["tenant_id"],
        name=row["name"],
        created_at=row["created_at"],
        created_by=row["created_by"],
        expires_at=row["expires_at"],
        held_by=row["held_by"],
        holder_id=row["holder_id"],
        orphaned_at=row["orphaned_at"],
        revoked_at=row["revoked_at"],
        last_used_at=row["last_used_at"],
    )


async def insert(connection: Connection, credential: EventCredential, secret_hash: bytes) -> None:
    """Adds a credential."""
    await connection.execute(
        "INSERT INTO identity.event_credential (id, tenant_id, name, secret_hash, created_at,"
        " created_by, expires_at, holder_id, held_by) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        credential.id,
        credential.tenant_id,
        credential.name,
        secret_hash,
        credential.created_at,
        credential.created_by,
        credential.expires_at,
        credential.holder_id,
        credential.held_by,
    )


async def credential(
    connection: Connection, scope: Scope, credential_id: UUID, *, for_update: bool = False
) -> EventCredential | None:
    """One credential of the scope's tenants."""
    lock = " FOR UPDATE" if for_update else ""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM identity.event_credential c"
        f" WHERE c.id = $1 AND ($2::uuid[] IS NULL OR c.tenant_id = ANY ($2)){lock}",
        credential_id,
        scope.tenant_ids,
    )
    return _credential(row) if row else None


async def working_one(
    connection: Connection, credential_id: UUID, at: datetime
) -> tuple[EventCredential, bytes] | None:
    """A credential that works, with the hash of its secret."""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS}, c.secret_hash FROM identity.event_credential c"
        f" WHERE c.id = $2 AND {_WORKS}",
        at,
        credential_id,
    )
    return (_credential(row), row["secret_hash"]) if row else None


async def list_credentials(
    connection: Connection, scope: Scope, after: UUID | None, limit: int
) -> Page[EventCredential, UUID]:
    """Credentials of the scope's tenants behind a position, oldest first."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM identity.event_credential c"
        " WHERE ($1::uuid[] IS NULL OR c.tenant_id = ANY ($1)) AND ($2::uuid IS NULL OR c.id > $2)"
        " ORDER BY c.id LIMIT $3",
        scope.tenant_ids,
        after,
        limit + 1,
    )
    return Page.of([_credential(row) for row in rows], limit, lambda one: one.id)


async def lock_and_count(connection: Connection, tenant_id: UUID, at: datetime) -> int:
    """How many credentials of a tenant work, or could be taken over; who adds one takes turns."""
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtext('identity:event-credentials'), hashtext($1))",
        str(tenant_id),
    )
    count: int = await connection.fetchval(
        "SELECT count(*) FROM identity.event_credential c WHERE c.tenant_id = $1"
        f" AND c.revoked_at IS NULL AND {_EXPIRES} > $2",
        tenant_id,
        at,
    )
    return count


async def revoke(connection: Connection, credential_id: UUID, at: datetime) -> None:
    """Marks a credential as revoked."""
    await connection.execute(
        "UPDATE identity.event_credential SET revoked_at = $2 WHERE id = $1", credential_id, at
    )


async def take_over(
    connection: Connection, credential_id: UUID, holder_id: UUID, held_by: str
) -> None:
    """Gives a credential to another holder."""
    await connection.execute(
        "UPDATE identity.event_credential SET holder_id = $2, held_by = $3, orphaned_at = NULL"
        " WHERE id = $1",
        credential_id,
        holder_id,
        held_by,
    )


async def orphan(
    connection: Connection, holder_id: UUID, email: str, at: datetime, but: Scope | None = None
) -> list[EventCredential]:
    """Ends the credentials of a user until somebody takes them over; answers them as they are.

    Args:
        but: the tenants whose credentials go on.
    """
    rows = await connection.fetch(
        "UPDATE identity.event_credential c SET orphaned_at = $3"
        " WHERE (c.holder_id = $1 OR c.holder_id IS NULL AND c.created_by = $2)"
        f" AND c.revoked_at IS NULL AND c.orphaned_at IS NULL AND {_EXPIRES} > $3"
        " AND ($4::uuid[] IS NULL OR c.tenant_id <> ALL ($4))"
        f" RETURNING {_COLUMNS}",
        holder_id,
        email,
        at,
        but.tenant_ids if but is not None else None,
    )
    return [_credential(row) for row in rows]


async def hold(connection: Connection, holder_id: UUID, old_email: str, email: str) -> None:
    """Names a user as the holder of the user's credentials, by id and by another address."""
    await connection.execute(
        "UPDATE identity.event_credential SET holder_id = $1, held_by = $3"
        " WHERE holder_id = $1 OR holder_id IS NULL AND created_by = $2",
        holder_id,
        old_email,
        email,
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
        f"SELECT c.id, c.tenant_id FROM identity.event_credential c WHERE {_WORKS}", at
    )
    return [(row["id"], row["tenant_id"]) for row in rows]
