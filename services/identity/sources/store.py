"""Sources, their role mappings and the people they know, in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import asyncpg

from contract.access import Role
from servicekit.data.postgres import Connection, Scope
from services.identity.sources.domain import ExternalIdentity, RoleMapping, Source

_SOURCE: Final = "id, tenant_id, kind, name, enabled, grace_hours, created_at, updated_at"
_IDENTITY: Final = (
    "source_id, subject, account_id, tenant_id, groups_seen, seen_at, asked_at, lost_at"
)
_OF_SCOPE: Final = "($2::uuid[] IS NULL OR tenant_id = ANY ($2))"


def _source(row: asyncpg.Record) -> Source:
    return Source(
        id=row["id"],
        tenant_id=row["tenant_id"],
        kind=row["kind"],
        name=row["name"],
        enabled=row["enabled"],
        grace=timedelta(hours=row["grace_hours"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _identity(row: asyncpg.Record) -> ExternalIdentity:
    return ExternalIdentity(
        source_id=row["source_id"],
        subject=row["subject"],
        account_id=row["account_id"],
        tenant_id=row["tenant_id"],
        groups_seen=frozenset(row["groups_seen"]),
        seen_at=row["seen_at"],
        asked_at=row["asked_at"],
        lost_at=row["lost_at"],
    )


# Sources


async def only_owners_log_in_here(connection: Connection, tenant_id: UUID) -> bool:
    """Whether only Owners of a tenant log in with what they have here: somebody wants that, others
    get in by a directory or provider in use, and an Owner with a password is there."""
    found: bool = await connection.fetchval(
        "SELECT identity.only_owners_log_in_here($1)", tenant_id
    )
    return found


async def count_local_only(connection: Connection, tenant_id: UUID) -> int:
    """How many Admins and Auditors of a tenant, and of all below, get in by nothing but what they
    have here, where others get in by a directory or provider in use."""
    found: int = await connection.fetchval("SELECT identity.only_known_here($1)", tenant_id)
    return found


async def insert_source(connection: Connection, source: Source) -> None:
    """Adds a source."""
    await connection.execute(
        "INSERT INTO identity.source"
        " (id, tenant_id, kind, name, enabled, grace_hours, created_at, updated_at)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        source.id,
        source.tenant_id,
        source.kind,
        source.name,
        source.enabled,
        source.grace // timedelta(hours=1),
        source.created_at,
        source.updated_at,
    )


async def update_source(connection: Connection, source: Source) -> None:
    """Writes a source's name and whether it is in use."""
    await connection.execute(
        "UPDATE identity.source SET name = $3, enabled = $4, grace_hours = $5, updated_at = $6"
        " WHERE id = $1 AND tenant_id = $2",
        source.id,
        source.tenant_id,
        source.name,
        source.enabled,
        source.grace // timedelta(hours=1),
        source.updated_at,
    )


async def delete_source(connection: Connection, source: Source) -> None:
    """Deletes a source with its mappings and the people it knows; domains name it no more."""
    await connection.execute(
        "DELETE FROM identity.source WHERE id = $1 AND tenant_id = $2", source.id, source.tenant_id
    )


async def source(
    connection: Connection, scope: Scope, source_id: UUID, *, lock: str = ""
) -> Source | None:
    """One source of the scope's tenants.

    Args:
        lock: `FOR UPDATE` or `FOR SHARE`.
    """
    row = await connection.fetchrow(
        f"SELECT {_SOURCE} FROM identity.source WHERE id = $1 AND {_OF_SCOPE} {lock}",
        source_id,
        scope.tenant_ids,
    )
    return _source(row) if row else None


async def take_turns(connection: Connection, tenant_id: UUID) -> None:
    """Waits until no other transaction adds a source of a tenant, or gives one another name."""
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtext('identity:sources'), hashtext($1))", str(tenant_id)
    )


async def has_name(connection: Connection, source: Source) -> bool:
    """Whether another source of the tenant, of the same kind, has a source's name."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM identity.source"
        " WHERE tenant_id = $1 AND kind = $2 AND name = $3 AND id <> $4)",
        source.tenant_id,
        source.kind,
        source.name,
        source.id,
    )
    return found


async def count_sources(connection: Connection, tenant_id: UUID) -> int:
    """How many sources a tenant has; who adds one takes turns."""
    await take_turns(connection, tenant_id)
    count: int = await connection.fetchval(
        "SELECT count(*) FROM identity.source WHERE tenant_id = $1", tenant_id
    )
    return count


# Mappings


async def mappings(connection: Connection, source_id: UUID) -> list[RoleMapping]:
    """A source's rows, in their order."""
    rows = await connection.fetch(
        "SELECT external_group, role, tenant_id FROM identity.role_mapping"
        " WHERE source_id = $1 ORDER BY position",
        source_id,
    )
    return [
        RoleMapping(group=row["external_group"], role=Role(row["role"]), tenant_id=row["tenant_id"])
        for row in rows
    ]


async def replace_mappings(
    connection: Connection, source_id: UUID, rows: Sequence[RoleMapping]
) -> None:
    """Puts rows in the place of those that are there."""
    await connection.execute("DELETE FROM identity.role_mapping WHERE source_id = $1", source_id)
    await connection.executemany(
        "INSERT INTO identity.role_mapping (source_id, position, external_group, role, tenant_id)"
        " VALUES ($1, $2, $3, $4, $5)",
        [
            (source_id, position, row.group, row.role.value, row.tenant_id)
            for position, row in enumerate(rows)
        ],
    )


# Domains


async def source_of_domain(connection: Connection, domain: str) -> UUID | None:
    """The source that people with addresses of a domain log in with."""
    found: UUID | None = await connection.fetchval(
        "SELECT d.source_id FROM identity.email_domain d JOIN identity.source s"
        " ON s.id = d.source_id AND s.tenant_id = d.tenant_id WHERE d.domain = $1",
        domain,
    )
    return found


async def tenant_of_domain(connection: Connection, domain: str) -> UUID | None:
    """The tenant that a domain is assigned to."""
    found: UUID | None = await connection.fetchval(
        "SELECT tenant_id FROM identity.email_domain WHERE domain = $1", domain
    )
    return found


# People


async def identity(
    connection: Connection, source_id: UUID, subject: str
) -> ExternalIdentity | None:
    """Which account a person of a source has."""
    row = await connection.fetchrow(
        f"SELECT {_IDENTITY} FROM identity.external_identity WHERE source_id = $1 AND subject = $2",
        source_id,
        subject,
    )
    return _identity(row) if row else None


async def identities_of(connection: Connection, account_id: UUID) -> list[ExternalIdentity]:
    """The persons of sources that an account is."""
    rows = await connection.fetch(
        f"SELECT {_IDENTITY} FROM identity.external_identity WHERE account_id = $1"
        " ORDER BY source_id",
        account_id,
    )
    return [_identity(row) for row in rows]


async def identities(
    connection: Connection, source_id: UUID, subjects: Sequence[str] | None = None
) -> list[ExternalIdentity]:
    """Everybody whom a source knows, or some of them, in the order of their accounts."""
    rows = await connection.fetch(
        f"SELECT {_IDENTITY} FROM identity.external_identity WHERE source_id = $1"
        " AND ($2::text[] IS NULL OR subject = ANY ($2)) ORDER BY account_id",
        source_id,
        subjects,
    )
    return [_identity(row) for row in rows]


async def count_identities(connection: Connection, source_ids: Sequence[UUID]) -> dict[UUID, int]:
    """How many users come from each source."""
    rows = await connection.fetch(
        "SELECT source_id, count(*) AS users FROM identity.external_identity"
        " WHERE source_id = ANY ($1) GROUP BY source_id",
        source_ids,
    )
    return {row["source_id"]: row["users"] for row in rows}


async def write_identity(
    connection: Connection, identity: ExternalIdentity, email: str, *, login_at: datetime | None
) -> None:
    """Adds or renews what is known of a person, who is there."""
    await connection.execute(
        "INSERT INTO identity.external_identity AS e (source_id, subject, account_id, tenant_id,"
        " email_seen, groups_seen, last_login_at, seen_at, asked_at, lost_at)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
        " ON CONFLICT (source_id, subject) DO UPDATE SET tenant_id = excluded.tenant_id,"
        " email_seen = excluded.email_seen, groups_seen = excluded.groups_seen,"
        " last_login_at = coalesce(excluded.last_login_at, e.last_login_at),"
        " seen_at = excluded.seen_at, asked_at = excluded.asked_at, lost_at = excluded.lost_at,"
        " missing_since = NULL",
        identity.source_id,
        identity.subject,
        identity.account_id,
        identity.tenant_id,
        email,
        sorted(identity.groups_seen),
        login_at,
        identity.seen_at,
        identity.asked_at,
        identity.lost_at,
    )


async def note_login(connection: Connection, identity: ExternalIdentity, at: datetime) -> None:
    """Notes that a person has logged in, and nothing else."""
    await connection.execute(
        "UPDATE identity.external_identity SET last_login_at = $3"
        " WHERE source_id = $1 AND subject = $2",
        identity.source_id,
        identity.subject,
        at,
    )


async def confirm(
    connection: Connection,
    source_id: UUID,
    subjects: Sequence[str],
    at: datetime,
    asked_at: datetime,
) -> None:
    """Notes that a source knows people as before, unless something newer is known of them."""
    await connection.execute(
        "UPDATE identity.external_identity SET seen_at = greatest(seen_at, $3), asked_at = $4,"
        " missing_since = NULL WHERE source_id = $1 AND subject = ANY ($2)"
        " AND (asked_at IS NULL OR asked_at <= $4 OR asked_at > $3)",
        source_id,
        subjects,
        at,
        asked_at,
    )


async def miss(
    connection: Connection, identity: ExternalIdentity, at: datetime, asked_at: datetime
) -> None:
    """Notes that a source knows a person no more."""
    await connection.execute(
        "UPDATE identity.external_identity SET groups_seen = '{}', asked_at = $4, lost_at = $5,"
        " missing_since = coalesce(missing_since, $3) WHERE source_id = $1 AND subject = $2",
        identity.source_id,
        identity.subject,
        at,
        asked_at,
        identity.lost_at,
    )


async def forget_losses(connection: Connection, source_id: UUID) -> None:
    """After an Owner's word: what syncs took until now counts no more."""
    await connection.execute(
        "UPDATE identity.external_identity SET lost_at = NULL"
        " WHERE source_id = $1 AND lost_at IS NOT NULL",
        source_id,
    )


async def follow_account(connection: Connection, account_id: UUID, tenant_id: UUID) -> None:
    """Lets what is known of a person follow the account into another tenant."""
    await connection.execute(
        "UPDATE identity.external_identity SET tenant_id = $2 WHERE account_id = $1",
        account_id,
        tenant_id,
    )


async def subject(connection: Connection, source_id: UUID, account_id: UUID) -> str | None:
    """What a source calls the person of an account; `None` when it does not know the person."""
    found: str | None = await connection.fetchval(
        "SELECT subject FROM identity.external_identity WHERE source_id = $1 AND account_id = $2",
        source_id,
        account_id,
    )
    return found


async def forget_identity(connection: Connection, source_id: UUID, account_id: UUID) -> bool:
    """Forgets which person of a source an account is; answers whether it was one."""
    done: str = await connection.execute(
        "DELETE FROM identity.external_identity WHERE source_id = $1 AND account_id = $2",
        source_id,
        account_id,
    )
    return done == "DELETE 1"
