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

_VERSION: Final = (
    "v.version, v.policy_id, coalesce(p.name, '') AS policy_name, v.published_at, v.published_by,"
    " v.rollback_of, encode(sha256(v.document), 'hex') AS document_sha256, v.key_id"
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
class AppliedVersion:
    """What a device says it has, and since when it says so."""

    device_id: UUID
    version: int
    reported_at: datetime


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


async def applied(
    connection: Connection, tenant_id: UUID, ids: Sequence[UUID]
) -> list[AppliedVersion]:
    """What some devices of an organisation said they have, by id."""
    rows = await connection.fetch(
        "SELECT device_id, version, reported_at FROM policy.applied_versions"
        " WHERE tenant_id = $1 AND device_id = ANY ($2) ORDER BY device_id",
        tenant_id,
        ids,
    )
    return [AppliedVersion(row["device_id"], row["version"], row["reported_at"]) for row in rows]
