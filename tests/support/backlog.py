"""Entries of the audit log that PostgreSQL makes by itself: many, and fast."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import asyncpg

_FILL: Final = """
INSERT INTO audit.entry (tenant_id, sequence, id, occurred_at, actor, actor_id, action, resource,
                         record, previous_hash, hash)
SELECT $1::uuid, $3::bigint + n, gen_random_uuid(),
       '2026-09-01Z'::timestamptz + n * interval '1 s',
       'a@b.example', '', 'policy.updated', 'policies/1',
       '{"data":{"action":"policy.updated","actor":"a@b.example","after":{"text":"'
           || repeat('x', 400) || '"},"before":null,"resource":"policies/1"},"id":"' || n
           || '","source":"/evergreen/policy","specversion":"1.0","tenantid":"' || $1::uuid::text
           || '","time":"2026-09-01T00:00:00Z","type":"evergreen.v1.policy.updated"}',
       sha256('x'), sha256('y')
FROM generate_series(1, $2::int) AS n
"""
_SECONDS: Final = 600.0


async def fill(connection: asyncpg.Connection[asyncpg.Record], tenant_id: UUID, count: int) -> None:
    """Puts entries of some 700 bytes at the end of a chain. They are linked to nothing.

    Args:
        connection: a superuser's.
        tenant_id: whose chain it is.
        count: how many.
    """
    async with connection.transaction():
        await connection.execute("SET LOCAL evergreen.scope = '*'")
        await connection.execute(
            "INSERT INTO audit.chain_head (tenant_id, sequence, hash) VALUES ($1, 0, sha256('y'))"
            " ON CONFLICT DO NOTHING",
            tenant_id,
        )
        head = await connection.fetchval(
            "SELECT sequence FROM audit.chain_head WHERE tenant_id = $1 FOR UPDATE", tenant_id
        )
        await connection.execute(_FILL, tenant_id, count, head, timeout=_SECONDS)
        await connection.execute(
            "UPDATE audit.chain_head SET sequence = $2, hash = sha256('y') WHERE tenant_id = $1",
            tenant_id,
            head + count,
        )
