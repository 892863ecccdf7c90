"""The SQL of roots and listed keys. Roots are the installation's; listed keys an organisation's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from servicekit.data.postgres import Connection
from servicekit.rpc.pagination import Page
from services.attestation.trust.domain import ListedKey, Source, TrustRoot


async def list_roots(connection: Connection) -> list[TrustRoot]:
    """All of them, by subject."""
    rows = await connection.fetch(
        "SELECT id, sha256, certificate, subject, not_before, not_after, created_at"
        " FROM attestation.trust_root ORDER BY subject, id"
    )
    return [TrustRoot(**row) for row in rows]


async def root_digests(connection: Connection) -> list[bytes]:
    """The SHA-256 of all of them."""
    rows = await connection.fetch("SELECT sha256 FROM attestation.trust_root ORDER BY sha256")
    return [row["sha256"] for row in rows]


async def root_certificates(connection: Connection, digests: Sequence[bytes]) -> dict[bytes, bytes]:
    """Some of them, by their SHA-256."""
    if not digests:
        return {}
    rows = await connection.fetch(
        "SELECT sha256, certificate FROM attestation.trust_root WHERE sha256 = ANY ($1)", digests
    )
    return {row["sha256"]: row["certificate"] for row in rows}


async def is_trusted(connection: Connection, sha256: bytes) -> bool:
    """Whether a root is there, by its SHA-256."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM attestation.trust_root WHERE sha256 = $1)", sha256
    )
    return found


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


_KEYS: Final = {
    Source.LISTED: "SELECT serial_key AS serial, ek_sha256 FROM attestation.listed_key"
    " WHERE tenant_id = $1",
    Source.BOUND: "SELECT d.serial, b.ek_sha256 FROM attestation.tpm_binding b"
    " JOIN attestation.device d ON d.binding_id = b.id"
    " WHERE b.tenant_id = $1 AND d.tenant_id = $1 AND d.serial <> ''",
}


async def list_keys(
    connection: Connection, tenant_id: UUID, source: Source, after: ListedKey | None, limit: int
) -> Page[ListedKey, ListedKey]:
    """Keys of an organisation behind one of them, by serial number."""
    rows = await connection.fetch(
        f"SELECT serial, ek_sha256 FROM ({_KEYS[source]}) AS k"
        " WHERE $2::text IS NULL OR (serial, ek_sha256) > ($2, $3)"
        " ORDER BY serial, ek_sha256 LIMIT $4",
        tenant_id,
        after.serial if after else None,
        after.ek_sha256 if after else None,
        limit + 1,
    )
    found = [ListedKey(row["serial"], row["ek_sha256"]) for row in rows]
    return Page.of(found, limit, lambda key: key)


async def add_listed(
    connection: Connection, tenant_id: UUID, keys: Sequence[tuple[str, bytes]]
) -> int:
    """Lists keys (serial key, SHA-256) of an organisation; answers how many are new."""
    done: str = await connection.execute(
        "INSERT INTO attestation.listed_key (tenant_id, serial_key, ek_sha256)"
        " SELECT $1, * FROM unnest($2::text[], $3::bytea[]) ON CONFLICT DO NOTHING",
        tenant_id,
        [serial for serial, _ in keys],
        [ek_sha256 for _, ek_sha256 in keys],
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
        [serial for serial, _ in keys],
        [ek_sha256 for _, ek_sha256 in keys],
    )
    return int(done.rsplit(" ", 1)[1])
