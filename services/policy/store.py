"""All the SQL of policy administration. Every query is bound to the caller's tenants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

import asyncpg

from servicekit.ids import new_id
from servicekit.keys import PublicKey
from servicekit.postgres import Connection, Scope
from services.policy.domain import MAX_JUMP, Policy, Published, Version
from services.policy.signing import Statement

CHANNEL = "policy_changed"

_POLICY = (
    "p.id, p.tenant_id, p.name, p.description, p.revision, p.published_version,"
    " p.changed_since_publish, p.created_at, p.updated_at,"
    " EXISTS (SELECT FROM policy.assignments a WHERE a.tenant_id = p.tenant_id"
    " AND a.policy_id = p.id) AS in_force"
)
_VERSION = (
    "v.tenant_id, v.version, v.policy_id, v.authored, v.document, v.signature,"
    " v.statement_payload, v.statement_signature, v.key_id, v.rollback_of, v.published_at,"
    " v.published_by"
)


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A signing key at rest."""

    public: PublicKey
    sealed_seed: bytes
    signs: bool


def _policy(row: asyncpg.Record) -> Policy:
    return Policy(**dict(row))


def to_version(row: asyncpg.Record) -> Version:
    """A row with the columns of a version."""
    return Version(
        tenant_id=row["tenant_id"],
        version=row["version"],
        policy_id=row["policy_id"],
        authored=row["authored"],
        document=row["document"],
        signature=row["signature"],
        statement=Statement(row["statement_payload"], row["statement_signature"], row["key_id"]),
        rollback_of=row["rollback_of"],
        published_at=row["published_at"],
        published_by=row["published_by"],
    )


async def list_policies(
    connection: Connection, scope: Scope, after: UUID | None, limit: int
) -> list[Policy]:
    """The policies of a scope, oldest first (their ids have that order), without bundles."""
    rows = await connection.fetch(
        f"SELECT {_POLICY}, '' AS authored FROM policy.policies p"
        " WHERE ($1::uuid[] IS NULL OR p.tenant_id = ANY ($1))"
        " AND ($2::uuid IS NULL OR p.id > $2) ORDER BY p.id LIMIT $3",
        scope.tenant_ids,
        after,
        limit,
    )
    return [_policy(row) for row in rows]


async def get_policy(
    connection: Connection, scope: Scope, policy_id: UUID, *, lock: bool = False
) -> Policy | None:
    """One policy; with `lock` nobody else changes it until the transaction ends."""
    row = await connection.fetchrow(
        f"SELECT {_POLICY}, p.authored FROM policy.policies p"
        " WHERE p.id = $1 AND ($2::uuid[] IS NULL OR p.tenant_id = ANY ($2))"
        + (" FOR UPDATE OF p" if lock else ""),
        policy_id,
        scope.tenant_ids,
    )
    return None if row is None else _policy(row)


async def insert_policy(connection: Connection, policy: Policy) -> None:
    """Stores a new policy."""
    await connection.execute(
        "INSERT INTO policy.policies (id, tenant_id, name, description, authored, revision,"
        " created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        policy.id,
        policy.tenant_id,
        policy.name,
        policy.description,
        policy.authored,
        policy.revision,
        policy.created_at,
        policy.updated_at,
    )


async def update_policy(connection: Connection, policy: Policy, now: datetime) -> Policy:
    """Stores a changed policy under a new revision; the row has to be locked."""
    changed = replace(policy, revision=policy.revision + 1, updated_at=now)
    await connection.execute(
        "UPDATE policy.policies SET name = $3, description = $4, authored = $5, revision = $6,"
        " published_version = $7, changed_since_publish = $8, updated_at = $9"
        " WHERE id = $1 AND tenant_id = $2",
        changed.id,
        changed.tenant_id,
        changed.name,
        changed.description,
        changed.authored,
        changed.revision,
        changed.published_version,
        changed.changed_since_publish,
        changed.updated_at,
    )
    return changed


async def delete_policy(connection: Connection, policy: Policy) -> None:
    """Deletes a policy and takes it out of force; its versions stay."""
    await connection.execute(
        "DELETE FROM policy.policies WHERE id = $1 AND tenant_id = $2", policy.id, policy.tenant_id
    )
    taken = await connection.fetchval(
        "UPDATE policy.assignments SET policy_id = NULL, version = NULL,"
        " changed_xid = pg_current_xact_id() WHERE tenant_id = $1 AND policy_id = $2 RETURNING 1",
        policy.tenant_id,
        policy.id,
    )
    if taken:
        await connection.execute("SELECT pg_notify($1, '')", CHANNEL)


async def lock_counter(connection: Connection, tenant_id: UUID) -> tuple[int, int]:
    """Locks an org's counter; answers its last version and the highest one that devices report.

    What a device reports counts only as far as it may move the counter.
    """
    await connection.execute(
        "INSERT INTO policy.version_counters (tenant_id, last_version) VALUES ($1, 0)"
        " ON CONFLICT (tenant_id) DO NOTHING",
        tenant_id,
    )
    last: int = await connection.fetchval(
        "SELECT last_version FROM policy.version_counters WHERE tenant_id = $1 FOR UPDATE",
        tenant_id,
    )
    reported: int | None = await connection.fetchval(
        "SELECT max(version) FROM policy.applied_versions WHERE tenant_id = $1 AND version <= $2",
        tenant_id,
        last + MAX_JUMP,
    )
    return last, reported or 0


async def put_in_force(connection: Connection, version: Version) -> None:
    """Stores a signed version, moves the org's counter to it and assigns it to the org."""
    await connection.execute(
        "INSERT INTO policy.versions (tenant_id, version, policy_id, authored, document,"
        " signature, statement_payload, statement_signature, key_id, rollback_of, published_at,"
        " published_by) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        version.tenant_id,
        version.version,
        version.policy_id,
        version.authored,
        version.document,
        version.signature,
        version.statement.payload,
        version.statement.signature,
        version.statement.key_id,
        version.rollback_of,
        version.published_at,
        version.published_by,
    )
    await connection.execute(
        "UPDATE policy.version_counters SET last_version = $2 WHERE tenant_id = $1",
        version.tenant_id,
        version.version,
    )
    await connection.execute(
        "INSERT INTO policy.assignments (id, tenant_id, policy_id, version)"
        " VALUES ($1, $2, $3, $4) ON CONFLICT (tenant_id, target) DO UPDATE"
        " SET policy_id = excluded.policy_id, version = excluded.version,"
        " changed_xid = pg_current_xact_id()",
        new_id(),
        version.tenant_id,
        version.policy_id,
        version.version,
    )
    await connection.execute("SELECT pg_notify($1, '')", CHANNEL)


async def get_version(connection: Connection, tenant_id: UUID, version: int) -> Version | None:
    """One published version of an org."""
    row = await connection.fetchrow(
        f"SELECT {_VERSION} FROM policy.versions v WHERE v.tenant_id = $1 AND v.version = $2",
        tenant_id,
        version,
    )
    return None if row is None else to_version(row)


async def list_versions(
    connection: Connection, policy: Policy, before: int | None, limit: int
) -> list[Published]:
    """What was published of a policy, newest first."""
    rows = await connection.fetch(
        "SELECT v.version, v.published_at, v.published_by, v.rollback_of, v.key_id,"
        " encode(sha256(v.document), 'hex') AS document_sha256"
        " FROM policy.versions v WHERE v.policy_id = $1 AND v.tenant_id = $2"
        " AND ($3::bigint IS NULL OR v.version < $3) ORDER BY v.version DESC LIMIT $4",
        policy.id,
        policy.tenant_id,
        before,
        limit,
    )
    return [Published(**dict(row)) for row in rows]


async def device_tenant(
    connection: Connection, scope: Scope, device_id: UUID
) -> tuple[UUID, str] | None:
    """The org of a device and its status in the registry."""
    row = await connection.fetchrow(
        "SELECT tenant_id, status FROM policy.devices"
        " WHERE device_id = $1 AND ($2::uuid[] IS NULL OR tenant_id = ANY ($2))",
        device_id,
        scope.tenant_ids,
    )
    return None if row is None else (row["tenant_id"], row["status"])


async def request_sync(
    connection: Connection, device_id: UUID, tenant_id: UUID, now: datetime
) -> None:
    """Notes that a device is to apply its policy again."""
    await connection.execute(
        "INSERT INTO policy.device_syncs (device_id, tenant_id, requested_at)"
        " VALUES ($1, $2, $3) ON CONFLICT (device_id) DO UPDATE"
        " SET tenant_id = excluded.tenant_id, requested_at = excluded.requested_at,"
        " served_at = NULL, changed_xid = pg_current_xact_id()",
        device_id,
        tenant_id,
        now,
    )
    await connection.execute("SELECT pg_notify($1, '')", CHANNEL)


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
        StoredKey(PublicKey(row["public_key"]), row["sealed_seed"], row["signs"]) for row in rows
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
