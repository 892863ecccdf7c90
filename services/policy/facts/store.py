"""The SQL of what reports ask of policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection
from servicekit.rpc.pagination import Page
from services.policy.vault import DIGEST, HOLDS_SECRETS

_VERSION: Final = (
    "v.version, v.policy_id, coalesce(p.name, '') AS policy_name, v.published_at, v.published_by,"
    # Of secrets a digest would let readers try out guesses.
    f" v.rollback_of, CASE WHEN {HOLDS_SECRETS} THEN '' ELSE encode({DIGEST}, 'hex') END"
    " AS document_sha256, v.key_id"
    " FROM policy.versions v LEFT JOIN policy.policies p ON p.id = v.policy_id"
)


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """A version that was published, without its document."""

    version: int
    policy_id: UUID
    policy_name: str
    """Empty when the policy was deleted."""
    published_at: datetime
    published_by: str
    rollback_of: int | None
    document_sha256: str
    """Empty where the document holds secrets."""
    key_id: str


@dataclass(frozen=True, slots=True)
class RequiredVersion:
    """What devices of an organisation are to have."""

    versions: tuple[int, ...]
    """The numbers that stand for it, the newest last."""
    since: datetime
    policy_id: UUID | None
    """The organisation's own policy in it."""
    policy_name: str


@dataclass(frozen=True, slots=True)
class DeviceVersion:
    """What a device says it has, and whose policies make what it is to have."""

    device_id: UUID
    version: int
    """0 for none."""
    reported_at: datetime | None
    """`None` when it never said anything."""
    first_above: datetime | None
    """When the first version above that was made."""
    targets: tuple[UUID, ...]
    """The groups, and the device itself, that have policies in force; sorted. Where it falls short
    of an enforced gate, that alone."""


def _published(row: asyncpg.Record) -> PublishedVersion:
    return PublishedVersion(
        version=row["version"],
        policy_id=row["policy_id"],
        policy_name=row["policy_name"],
        published_at=row["published_at"],
        published_by=row["published_by"],
        rollback_of=row["rollback_of"],
        document_sha256=row["document_sha256"],
        key_id=row["key_id"],
    )


async def versions(
    connection: Connection, tenant_id: UUID, after: int | None, limit: int
) -> Page[PublishedVersion, int]:
    """The versions of an organisation, oldest first."""
    rows = await connection.fetch(
        f"SELECT {_VERSION} WHERE v.tenant_id = $1 AND ($2::bigint IS NULL OR v.version > $2)"
        " ORDER BY v.version LIMIT $3",
        tenant_id,
        after,
        limit + 1,
    )
    return Page.of([_published(row) for row in rows], limit, lambda found: found.version)


async def required(
    connection: Connection, tenant_id: UUID, versions: Sequence[int]
) -> RequiredVersion:
    """What devices of an organisation are to have.

    Args:
        connection: of the organisation.
        tenant_id: the organisation.
        versions: the numbers that stand for it, the newest last.
    """
    row = await connection.fetchrow(
        "SELECT (SELECT min(s.stamped_at) FROM policy.stamps s WHERE s.tenant_id = $1"
        " AND s.version = ANY ($2)) AS since, a.policy_id, coalesce(p.name, '') AS policy_name"
        " FROM (SELECT $1::uuid AS tenant_id) AS t"
        " LEFT JOIN policy.assignments a ON a.tenant_id = t.tenant_id"
        " LEFT JOIN policy.policies p ON p.id = a.policy_id",
        tenant_id,
        versions,
    )
    return RequiredVersion(tuple(versions), row["since"], row["policy_id"], row["policy_name"])


async def devices(
    connection: Connection, tenant_id: UUID, ids: Sequence[UUID]
) -> list[DeviceVersion]:
    """What devices of an organisation said they have, by id."""
    rows = await connection.fetch(
        "SELECT d.id, coalesce(a.version, 0) AS version, a.reported_at,"
        " (SELECT s.stamped_at FROM policy.stamps s WHERE s.tenant_id = $1 AND s.shared"
        " AND s.version > coalesce(a.version, 0) ORDER BY s.version LIMIT 1) AS first_above,"
        " CASE WHEN g.id IS NOT NULL THEN ARRAY[g.id]"
        " ELSE ARRAY(SELECT b.target_id FROM policy.bindings b WHERE b.tenant_id = $1"
        " AND b.version IS NOT NULL AND (b.target_id = d.id OR b.target_id = ANY (m.group_ids))"
        " ORDER BY b.target_id) END AS targets"
        " FROM unnest($2::uuid[]) AS d (id)"
        " LEFT JOIN policy.applied_versions a ON a.device_id = d.id AND a.tenant_id = $1"
        " LEFT JOIN policy.memberships m ON m.device_id = d.id AND m.tenant_id = $1"
        " LEFT JOIN policy.restricted_device r ON r.device_id = d.id AND r.tenant_id = $1"
        " LEFT JOIN policy.gate g ON g.id = r.gate_id AND g.mode = 'ENFORCE'"
        " ORDER BY d.id",
        tenant_id,
        ids,
    )
    return [
        DeviceVersion(
            row["id"], row["version"], row["reported_at"], row["first_above"], tuple(row["targets"])
        )
        for row in rows
    ]
