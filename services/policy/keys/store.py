"""Keys that sign policies, in SQL."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from servicekit.data.postgres import Connection
from servicekit.security.signing import PublicKey


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A signing key at rest."""

    public: PublicKey
    sealed_seed: bytes = field(repr=False)
    signs: bool


async def signing_keys(connection: Connection) -> list[StoredKey]:
    """The policy-signing keys, the one that signs first.

    The lock makes other processes that start at the same moment wait for the first key.
    """
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('policy:keys'))")
    rows = await connection.fetch(
        "SELECT public_key, sealed_seed, signs FROM policy.signing_keys"
        " ORDER BY signs DESC, created_at DESC"
    )
    return [
        StoredKey(
            public=PublicKey(row["public_key"]),
            sealed_seed=row["sealed_seed"],
            signs=row["signs"],
        )
        for row in rows
    ]


async def insert_signing_key(connection: Connection, key: StoredKey, now: datetime) -> None:
    """Stores a new key."""
    await connection.execute(
        "INSERT INTO policy.signing_keys (id, public_key, sealed_seed, signs, created_at)"
        " VALUES ($1, $2, $3, $4, $5)",
        key.public.id,
        key.public.raw,
        key.sealed_seed,
        key.signs,
        now,
    )


async def has_signed(connection: Connection) -> bool:
    """Whether a policy was ever signed here."""
    found: bool = await connection.fetchval("SELECT EXISTS (SELECT FROM policy.versions)")
    return found
