"""The SQL of roots and listed keys. Roots are the installation's; listed keys an organisation's."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from servicekit.data.postgres import Connection, columns
from services.attestation.trust.domain import TrustRoot


async def list_roots(connection: Connection) -> list[TrustRoot]:
    """All of them, by subject."""
    rows = await connection.fetch(
        "SELECT id, sha256, certificate, subject, not_before, not_after, created_at"
        " FROM attestation.trust_root ORDER BY subject, id"
    )
    return [TrustRoot(**row) for row in rows]


async def insert_root(connection: Connection, root: TrustRoot) -> bool:
    """Adds one; answers whether it was not there before."""
    done: str = await connection.execute(
        "INSERT INTO attestation.trust_root (id, sha256, certificate, subject, not_before,"
        " not_after, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
        root.id,
        root.sha256,
        root.certificate,
        root.subject,
        root.not_before,
        root.not_after,
        root.created_at,
    )
    return done.endswith(" 1")


async def delete_root(connection: Connection, root_id: UUID) -> TrustRoot | None:
    """Removes one; answers it."""
    row = await connection.fetchrow(
        "DELETE FROM attestation.trust_root WHERE id = $1"
        " RETURNING id, sha256, certificate, subject, not_before, not_after, created_at",
        root_id,
    )
    return None if row is None else TrustRoot(**row)


async def count_listed(connection: Connection, tenant_id: UUID) -> int:
    """How many keys an organisation lists."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM attestation.listed_key WHERE tenant_id = $1", tenant_id
    )
    return found


async def add_listed(
    connection: Connection, tenant_id: UUID, keys: Sequence[tuple[str, bytes]]
) -> int:
    """Lists keys (serial key, SHA-256) of an organisation; answers how many are new."""
    done: str = await connection.execute(
        "INSERT INTO attestation.listed_key (tenant_id, serial_key, ek_sha256)"
        " SELECT $1, * FROM unnest($2::text[], $3::bytea[]) ON CONFLICT DO NOTHING",
        tenant_id,
        *columns(keys),
    )
    return int(done.rsplit(" ", 1)[1])


async def keep_listed(
    connection: Connection, tenant_id: UUID, keys: Sequence[tuple[str, bytes]]
) -> int:
    """Removes all other listed keys of an organisation; answers how many."""
    done: str = await connection.execute(
        "DELETE FROM attestation.listed_key l WHERE l.tenant_id = $1 AND NOT EXISTS"
        " (SELECT FROM unnest($2::text[], $3::bytea[]) AS k (serial_key, ek_sha256)"
        " WHERE k.serial_key = l.serial_key AND k.ek_sha256 = l.ek_sha256)",
        tenant_id,
        *columns(keys),
    )
    return int(done.rsplit(" ", 1)[1])
