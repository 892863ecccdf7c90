"""Service accounts in SQL."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import asyncpg

from contract.access import Role
from servicekit.data.postgres import Connection, Scope
from servicekit.errors import DomainError, already_exists
from servicekit.rpc.pagination import Page
from services.identity.api_tokens.domain import ServiceAccount

_COLUMNS: Final = "id, tenant_id, name, role, created_at, created_by, deleted_at, deleted_by"


def _account(row: asyncpg.Record) -> ServiceAccount:
    return ServiceAccount(
        id=row["id"],
        tenant_id=row["tenant_id"],
        name=row["name"],
        role=Role(row["role"]),
        created_at=row["created_at"],
        created_by=row["created_by"],
        deleted_at=row["deleted_at"],
        deleted_by=row["deleted_by"] or "",
    )


def _conflict(error: asyncpg.UniqueViolationError) -> DomainError:
    if error.constraint_name == "service_account_name_taken":
        return already_exists("NAME_TAKEN", "name: already in use by another service account")
    raise error


async def lock_and_count(connection: Connection, tenant_id: UUID) -> int:
    """How many service accounts a tenant has; who adds one takes turns."""
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtext('identity:service-accounts'), hashtext($1))",
        str(tenant_id),
    )
    count: int = await connection.fetchval(
        "SELECT count(*) FROM identity.service_account WHERE tenant_id = $1 AND deleted_at IS NULL",
        tenant_id,
    )
    return count


async def insert(connection: Connection, account: ServiceAccount) -> None:
    """Adds a service account.

    Raises:
        DomainError: ALREADY_EXISTS when the tenant has one of that name.
    """
    try:
        await connection.execute(
            "INSERT INTO identity.service_account"
            " (id, tenant_id, name, role, created_at, created_by) VALUES ($1, $2, $3, $4, $5, $6)",
            account.id,
            account.tenant_id,
            account.name,
            account.role.value,
            account.created_at,
            account.created_by,
        )
    except asyncpg.UniqueViolationError as error:
        raise _conflict(error) from error


async def update(connection: Connection, account: ServiceAccount) -> None:
    """Writes a service account's name and role, or that it was deleted.

    Raises:
        DomainError: ALREADY_EXISTS when the tenant has another one of that name.
    """
    try:
        await connection.execute(
            "UPDATE identity.service_account"
            " SET name = $3, role = $4, deleted_at = $5, deleted_by = nullif($6, '')"
            " WHERE id = $1 AND tenant_id = $2",
            account.id,
            account.tenant_id,
            account.name,
            account.role.value,
            account.deleted_at,
            account.deleted_by,
        )
    except asyncpg.UniqueViolationError as error:
        raise _conflict(error) from error


async def account(
    connection: Connection, scope: Scope, account_id: UUID, *, for_update: bool = False
) -> ServiceAccount | None:
    """A service account of the scope's tenants that was not deleted."""
    lock = " FOR UPDATE" if for_update else ""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM identity.service_account WHERE id = $1 AND deleted_at IS NULL"
        f" AND ($2::uuid[] IS NULL OR tenant_id = ANY ($2)){lock}",
        account_id,
        scope.tenant_ids,
    )
    return _account(row) if row else None


async def list_accounts(
    connection: Connection, scope: Scope, after: UUID | None, limit: int, *, deleted: bool
) -> Page[ServiceAccount, UUID]:
    """Service accounts of the scope's tenants behind a position, oldest first."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM identity.service_account"
        " WHERE ($1::uuid[] IS NULL OR tenant_id = ANY ($1)) AND ($2::uuid IS NULL OR id > $2)"
        " AND ($3 OR deleted_at IS NULL) ORDER BY id LIMIT $4",
        scope.tenant_ids,
        after,
        deleted,
        limit + 1,
    )
    return Page.of([_account(row) for row in rows], limit, lambda one: one.id)


async def scim_source(
    connection: Connection, scope: Scope, source_id: UUID
) -> tuple[str, UUID] | None:
    """Name and tenant of a SCIM source of the scope's tenants, locked against changes."""
    row = await connection.fetchrow(
        "SELECT name, tenant_id FROM identity.source WHERE id = $1 AND kind = 'scim'"
        " AND ($2::uuid[] IS NULL OR tenant_id = ANY ($2)) FOR SHARE",
        source_id,
        scope.tenant_ids,
    )
    return (row["name"], row["tenant_id"]) if row else None
