"""E-mail domains in SQL."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope
from servicekit.errors import already_exists
from servicekit.rpc.pagination import Page
from services.identity.email_domains.domain import EmailDomain

_COLUMNS: Final = "domain, tenant_id, source_id, assigned_by, created_at"


def _domain(row: asyncpg.Record) -> EmailDomain:
    return EmailDomain(
        domain=row["domain"],
        tenant_id=row["tenant_id"],
        source_id=row["source_id"],
        assigned_by=row["assigned_by"],
        created_at=row["created_at"],
    )


async def insert(connection: Connection, domain: EmailDomain) -> None:
    """Adds a domain.

    Raises:
        DomainError: ALREADY_EXISTS when it is assigned, to whomever.
    """
    try:
        await connection.execute(
            "INSERT INTO identity.email_domain (domain, tenant_id, source_id, assigned_by,"
            " created_at) VALUES ($1, $2, $3, $4, $5)",
            domain.domain,
            domain.tenant_id,
            domain.source_id,
            domain.assigned_by,
            domain.created_at,
        )
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != "email_domain_taken":
            raise
        raise already_exists("DOMAIN_TAKEN", "domain: already assigned") from error


async def domain(
    connection: Connection, scope: Scope, name: str, *, for_update: bool = False
) -> EmailDomain | None:
    """One domain of the scope's tenants."""
    lock = " FOR UPDATE" if for_update else ""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM identity.email_domain"
        f" WHERE domain = $1 AND ($2::uuid[] IS NULL OR tenant_id = ANY ($2)){lock}",
        name,
        scope.tenant_ids,
    )
    return _domain(row) if row else None


async def list_domains(
    connection: Connection, scope: Scope, after: str | None, limit: int
) -> Page[EmailDomain, str]:
    """Domains of the scope's tenants behind a position, by name."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM identity.email_domain"
        " WHERE ($1::uuid[] IS NULL OR tenant_id = ANY ($1)) AND ($2::text IS NULL OR domain > $2)"
        " ORDER BY domain LIMIT $3",
        scope.tenant_ids,
        after,
        limit + 1,
    )
    return Page.of([_domain(row) for row in rows], limit, lambda one: one.domain)


async def set_source(connection: Connection, domain: EmailDomain) -> None:
    """Writes where people with addresses of a domain log in."""
    await connection.execute(
        "UPDATE identity.email_domain SET source_id = $3 WHERE domain = $1 AND tenant_id = $2",
        domain.domain,
        domain.tenant_id,
        domain.source_id,
    )


async def delete(connection: Connection, domain: EmailDomain) -> None:
    """Takes a domain back."""
    await connection.execute(
        "DELETE FROM identity.email_domain WHERE domain = $1 AND tenant_id = $2",
        domain.domain,
        domain.tenant_id,
    )


async def count(connection: Connection, tenant_id: UUID) -> int:
    """How many domains a tenant has."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM identity.email_domain WHERE tenant_id = $1", tenant_id
    )
    return found


async def is_used_elsewhere(connection: Connection, tenant_id: UUID, name: str) -> bool:
    """Whether a user of neither a tenant, nor one below or above it, has an address of a domain
    that is assigned to nobody.

    Args:
        connection: sees all rows.
    """
    found: bool = await connection.fetchval(
        "WITH RECURSIVE below AS (SELECT id FROM identity.tenant WHERE id = $1"
        " UNION ALL SELECT t.id FROM identity.tenant t JOIN below b ON t.parent_id = b.id),"
        " above AS (SELECT id, parent_id FROM identity.tenant WHERE id = $1"
        " UNION ALL SELECT t.id, t.parent_id FROM identity.tenant t JOIN above a"
        " ON t.id = a.parent_id)"
        " SELECT EXISTS (SELECT FROM identity.account WHERE split_part(email, '@', 2) = $2"
        " AND tenant_id NOT IN (SELECT id FROM below UNION ALL SELECT id FROM above))"
        " AND NOT EXISTS (SELECT FROM identity.email_domain WHERE domain = $2)",
        tenant_id,
        name,
    )
    return found
