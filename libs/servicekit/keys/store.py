"""Signing keys in SQL: a table `signing_key` in a service's schema."""

from __future__ import annotations

from datetime import datetime

from servicekit.data.postgres import Connection
from servicekit.keys.ring import RingKey
from servicekit.security.signing import PublicKey

_COLUMNS = (
    "key_id, public_key, purpose, algorithm, sealed_seed, created_at, signs_from, verifies_until,"
    " tenant_id, request_id"
)


async def lock(connection: Connection, schema: str) -> None:
    """Makes processes that start or rotate at the same time take turns."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext($1))", f"{schema}.signing_key")


async def keys(connection: Connection, schema: str) -> list[RingKey]:
    """All keys."""
    rows = await connection.fetch(f"SELECT {_COLUMNS} FROM {schema}.signing_key")
    return [
        RingKey(
            public=PublicKey(row["public_key"]),
            purpose=row["purpose"],
            algorithm=row["algorithm"],
            sealed_seed=row["sealed_seed"],
            created_at=row["created_at"],
            # The release before writes none: its keys sign from the beginning.
            signs_from=row["signs_from"] or row["created_at"],
            verifies_until=row["verifies_until"],
            tenant_id=row["tenant_id"],
            request_id=row["request_id"],
        )
        for row in rows
    ]


async def insert(connection: Connection, schema: str, key: RingKey) -> None:
    """Adds a key."""
    await connection.execute(
        f"INSERT INTO {schema}.signing_key ({_COLUMNS})"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        key.public.id,
        key.public.raw,
        key.purpose,
        key.algorithm,
        key.sealed_seed,
        key.created_at,
        key.signs_from,
        key.verifies_until,
        key.tenant_id,
        key.request_id,
    )


async def retire(connection: Connection, schema: str, key: RingKey, at: datetime) -> None:
    """Says until when a key's signatures count."""
    await connection.execute(
        f"UPDATE {schema}.signing_key SET verifies_until = $2 WHERE key_id = $1",
        key.public.id,
        at,
    )


async def forget(connection: Connection, schema: str, before: datetime) -> None:
    """Removes keys whose signatures have not counted since."""
    await connection.execute(f"DELETE FROM {schema}.signing_key WHERE verifies_until < $1", before)


async def reseal(connection: Connection, schema: str, key: RingKey, sealed_seed: bytes) -> None:
    """Stores the same private key, sealed anew."""
    await connection.execute(
        f"UPDATE {schema}.signing_key SET sealed_seed = $2 WHERE key_id = $1 AND sealed_seed = $3",
        key.public.id,
        sealed_seed,
        key.sealed_seed,
    )
