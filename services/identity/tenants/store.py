"""Tenants in SQL."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope
from servicekit.errors import DomainError, already_exists
from servicekit.rpc.pagination import Page
from services.identity.tenants.domain import OldCode, Tenant

_TENANT: Final = (
    "t.id, t.parent_id, t.kind, t.name, t.code, t.created_at, t.updated_at, t.archived_at,"
    " t.archived_by, t.archived_with, t.purge_at, t.deletion_requested_at,"
    " t.deletion_requested_by, NULL::timestamptz AS deleted_at, o.codes, o.since, o.replaced,"
    " t.language, t.time_zone"
)
_TENANTS: Final = (
    "identity.tenant t CROSS JOIN LATERAL ("
    "SELECT array_agg(c.code ORDER BY c.replaced_at) AS codes,"
    " array_agg(c.since ORDER BY c.replaced_at) AS since,"
    " array_agg(c.replaced_at ORDER BY c.replaced_at) AS replaced"
    " FROM identity.old_tenant_code c WHERE c.tenant_id = t.id) o"
)
_TOMBSTONE: Final = (
    "t.id, t.parent_id, t.kind, t.name, t.code, t.created_at, t.deleted_at AS updated_at,"
    " t.archived_at, t.archived_by, NULL::uuid AS archived_with, NULL::timestamptz AS purge_at,"
    " t.deletion_requested_at, t.deleted_by AS deletion_requested_by, t.deleted_at,"
    " NULL::text[] AS codes, NULL::timestamptz[] AS since, NULL::timestamptz[] AS replaced,"
    " NULL::text AS language, NULL::text AS time_zone"
)
_TOMBSTONES: Final = "identity.tenant_tombstone t"
_OF_SCOPE: Final = "($2::uuid[] IS NULL OR t.id = ANY ($2))"


@dataclass(frozen=True, slots=True)
class Erasure:
    """How far a service is with the rows of a tenant."""

    context: str
    rows: int
    waiting_for: str
    finished: bool


def tenant_of(row: asyncpg.Record) -> Tenant:
    """The tenant of a row with the columns of `_TENANT`."""
    return Tenant(
        id=row["id"],
        parent_id=row["parent_id"],
        kind=row["kind"],
        name=row["name"],
        code=row["code"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        archived_at=row["archived_at"],
        archived_by=row["archived_by"] or "",
        archived_with=row["archived_with"],
        purge_at=row["purge_at"],
        deletion_requested_at=row["deletion_requested_at"],
        deletion_requested_by=row["deletion_requested_by"] or "",
        deleted_at=row["deleted_at"],
        language=row["language"] or "",
        time_zone=row["time_zone"] or "",
        old_codes=tuple(
            OldCode(code, since, replaced)
            for code, since, replaced in zip(
                row["codes"] or (), row["since"] or (), row["replaced"] or (), strict=True
            )
        ),
    )


# Tenants


async def insert_tenant(connection: Connection, tenant: Tenant) -> None:
    """Adds a tenant.

    Raises:
        DomainError: ALREADY_EXISTS when its code is taken.
    """
    try:
        await connection.execute(
            "INSERT INTO identity.tenant"
            " (id, parent_id, kind, name, code, created_at, updated_at)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7)",
            tenant.id,
            tenant.parent_id,
            tenant.kind,
            tenant.name,
            tenant.code,
            tenant.created_at,
            tenant.updated_at,
        )
    except asyncpg.UniqueViolationError as error:
        raise _tenant_conflict(error) from error


async def update_tenant(connection: Connection, tenant: Tenant) -> None:
    """Writes a tenant's name, code and manners; the code that it had is kept as an old one.

    Raises:
        DomainError: ALREADY_EXISTS when the code is taken.
    """
    try:
        await connection.execute(
            "UPDATE identity.tenant SET name = $2, code = $3, updated_at = $4,"
            " language = nullif($5, ''), time_zone = nullif($6, ''),"
            " changed_xid = pg_current_xact_id() WHERE id = $1",
            tenant.id,
            tenant.name,
            tenant.code,
            tenant.updated_at,
            tenant.language,
            tenant.time_zone,
        )
    except asyncpg.UniqueViolationError as error:
        raise _tenant_conflict(error) from error


def _tenant_conflict(error: asyncpg.UniqueViolationError) -> DomainError:
    if error.constraint_name in {"tenant_code_taken", "old_tenant_code_once"}:
        return already_exists("CODE_TAKEN", "code: already in use")
    raise error


async def drop_code(connection: Connection, tenant_id: UUID, code: str, at: datetime) -> bool:
    """Deletes an old code of a tenant; answers whether there was one."""
    done: str = await connection.execute(
        "DELETE FROM identity.old_tenant_code WHERE tenant_id = $1 AND code = $2", tenant_id, code
    )
    await connection.execute(
        "UPDATE identity.tenant SET updated_at = $2, changed_xid = pg_current_xact_id()"
        " WHERE id = $1",
        tenant_id,
        at,
    )
    return done == "DELETE 1"


async def tenant(
    connection: Connection,
    scope: Scope,
    tenant_id: UUID,
    *,
    for_update: bool = False,
    for_share: bool = False,
) -> Tenant | None:
    """One tenant of the scope.

    Args:
        for_update: whether nobody else may change it until the transaction ends.
        for_share: whether nobody may archive it until the transaction ends.
    """
    lock = " FOR UPDATE OF t" if for_update else " FOR SHARE OF t" if for_share else ""
    row = await connection.fetchrow(
        f"SELECT {_TENANT} FROM {_TENANTS} WHERE t.id = $1 AND {_OF_SCOPE}{lock}",
        tenant_id,
        scope.tenant_ids,
    )
    return tenant_of(row) if row else None


async def tombstone(connection: Connection, scope: Scope, tenant_id: UUID) -> Tenant | None:
    """What stays of a tenant of the scope that was deleted."""
    row = await connection.fetchrow(
        f"SELECT {_TOMBSTONE} FROM {_TOMBSTONES} WHERE t.id = $1 AND {_OF_SCOPE}",
        tenant_id,
        scope.tenant_ids,
    )
    return tenant_of(row) if row else None


async def subtree(
    connection: Connection, tenant_id: UUID, *, for_update: bool = False
) -> list[Tenant]:
    """A tenant and all below it, parents first."""
    lock = " FOR UPDATE OF t" if for_update else ""
    rows = await connection.fetch(
        "WITH RECURSIVE below AS (SELECT id FROM identity.tenant WHERE id = $1"
        " UNION ALL SELECT c.id FROM identity.tenant c JOIN below b ON c.parent_id = b.id)"
        f" SELECT {_TENANT} FROM {_TENANTS} WHERE t.id IN (SELECT id FROM below)"
        f" ORDER BY t.id{lock}",
        tenant_id,
    )
    return [tenant_of(row) for row in rows]


async def below(
    connection: Connection, ancestor: UUID, tenant_ids: Collection[UUID]
) -> frozenset[UUID]:
    """Those of some tenants that are a tenant, or below it, and are not being deleted."""
    rows = await connection.fetch(
        "WITH RECURSIVE up AS (SELECT id AS begun, id, parent_id FROM identity.tenant"
        " WHERE id = ANY ($2) AND deletion_requested_at IS NULL"
        " UNION ALL SELECT u.begun, t.id, t.parent_id FROM identity.tenant t"
        " JOIN up u ON t.id = u.parent_id WHERE u.id <> $1)"
        " SELECT begun FROM up WHERE id = $1",
        ancestor,
        list(tenant_ids),
    )
    return frozenset(row["begun"] for row in rows)


async def root_tenant(connection: Connection) -> Tenant | None:
    """The root of the tree; `None` before the first start."""
    row = await connection.fetchrow(f"SELECT {_TENANT} FROM {_TENANTS} WHERE t.kind = 'root'")
    return tenant_of(row) if row else None


async def list_tenants(
    connection: Connection, scope: Scope, after: UUID | None, limit: int, *, deleted: bool = False
) -> Page[Tenant, UUID]:
    """Tenants of the scope behind a position; ids grow with time, so parents come first.

    Args:
        deleted: whether to list those, too, that are deleted or about to be.
    """
    sql = (
        "SELECT {columns} FROM {table}"
        " WHERE ($1::uuid[] IS NULL OR t.id = ANY ($1)) AND ($2::uuid IS NULL OR t.id > $2){more}"
        " ORDER BY t.id LIMIT $3"
    )
    if deleted:
        going = sql.format(columns=_TENANT, table=_TENANTS, more="")
        gone = sql.format(columns=_TOMBSTONE, table=_TOMBSTONES, more="")
        statement = f"({going}) UNION ALL ({gone}) ORDER BY id LIMIT $3"
    else:
        staying = " AND t.deletion_requested_at IS NULL"
        statement = sql.format(columns=_TENANT, table=_TENANTS, more=staying)
    rows = await connection.fetch(statement, scope.tenant_ids, after, limit + 1)
    return Page.of([tenant_of(row) for row in rows], limit, lambda tenant: tenant.id)


async def close(
    connection: Connection,
    tenant_ids: Sequence[UUID],
    *,
    together_with: UUID,
    by: str,
    at: datetime,
    purge_at: datetime,
) -> None:
    """Archives tenants, and ends the sessions of their users."""
    await connection.execute(
        "UPDATE identity.tenant SET archived_at = $2, archived_by = $3, archived_with = $4,"
        " purge_at = $5, updated_at = $2, changed_xid = pg_current_xact_id() WHERE id = ANY ($1)",
        tenant_ids,
        at,
        by,
        together_with,
        purge_at,
    )
    await connection.execute(
        "UPDATE identity.session SET ended_at = $2, changed_xid = pg_current_xact_id()"
        " WHERE tenant_id = ANY ($1) AND ended_at IS NULL",
        tenant_ids,
        at,
    )


async def reopen(connection: Connection, tenant_ids: Sequence[UUID], at: datetime) -> None:
    """Restores archived tenants."""
    await connection.execute(
        "UPDATE identity.tenant SET archived_at = NULL, archived_by = NULL, archived_with = NULL,"
        " purge_at = NULL, updated_at = $2, changed_xid = pg_current_xact_id()"
        " WHERE id = ANY ($1)",
        tenant_ids,
        at,
    )
    # Nobody of them could be seen meanwhile, and is not deactivated for that.
    await connection.execute(
        "UPDATE identity.account SET seen_at = greatest(seen_at, $2) WHERE tenant_id = ANY ($1)",
        tenant_ids,
        at,
    )


# Deletion


async def request_deletion(
    connection: Connection, tenant_ids: Sequence[UUID], by: str, at: datetime
) -> None:
    """Has tenants deleted by all services."""
    await connection.execute(
        "UPDATE identity.tenant SET deletion_requested_at = $2, deletion_requested_by = $3,"
        " updated_at = $2, changed_xid = pg_current_xact_id() WHERE id = ANY ($1)",
        tenant_ids,
        at,
        by,
    )


async def to_purge(connection: Connection, moment: datetime) -> list[UUID]:
    """Archived tenants whose time has come; of those archived together, the uppermost."""
    rows = await connection.fetch(
        "SELECT id FROM identity.tenant WHERE purge_at <= $1 AND deletion_requested_at IS NULL"
        " AND archived_with = id ORDER BY id",
        moment,
    )
    return [row["id"] for row in rows]


async def purge_reached(connection: Connection) -> datetime:
    """How far time has come, as `purge_moment` left it."""
    reached: datetime = await connection.fetchval("SELECT reached FROM identity.purge_cursor")
    return reached


async def purge_moment(connection: Connection, at: datetime, further: float) -> datetime:
    """How far time has come for purges; it follows the clock by `further` seconds at most."""
    moment: datetime = await connection.fetchval(
        "UPDATE identity.purge_cursor SET reached ="
        " greatest(reached, least($1, reached + make_interval(secs => $2))) RETURNING reached",
        at,
        further,
    )
    return moment


async def note_erasure(connection: Connection, tenant_id: UUID, erasure: Erasure) -> None:
    """Keeps how far a service is, while the tenant is being deleted."""
    await connection.execute(
        "INSERT INTO identity.tenant_erasure AS e"
        " (tenant_id, context, erased_rows, waiting_for, finished_at)"
        " SELECT id, $2, $3, $4, CASE WHEN $5 THEN now() END FROM identity.tenant"
        " WHERE id = $1 AND deletion_requested_at IS NOT NULL"
        " ON CONFLICT (tenant_id, context) DO UPDATE SET erased_rows = excluded.erased_rows,"
        " waiting_for = excluded.waiting_for, finished_at = excluded.finished_at",
        tenant_id,
        erasure.context,
        erasure.rows,
        erasure.waiting_for,
        erasure.finished,
    )


async def erasures(connection: Connection, tenant_id: UUID) -> list[Erasure]:
    """How far each service is that has said so."""
    rows = await connection.fetch(
        "SELECT context, erased_rows, waiting_for, finished_at IS NOT NULL AS finished"
        " FROM identity.tenant_erasure WHERE tenant_id = $1 ORDER BY context",
        tenant_id,
    )
    return [
        Erasure(row["context"], row["erased_rows"], row["waiting_for"], row["finished"])
        for row in rows
    ]


async def erased_rows(connection: Connection, tenant_id: UUID) -> str:
    """What services deleted of a deleted tenant: JSON, the rows by the service's name."""
    found: str | None = await connection.fetchval(
        "SELECT erased_rows FROM identity.tenant_tombstone WHERE id = $1", tenant_id
    )
    return found or "{}"


async def erased_by_all(connection: Connection, contexts: int) -> list[UUID]:
    """Tenants of which no service has anything and below which nothing stands."""
    rows = await connection.fetch(
        "SELECT t.id FROM identity.tenant t WHERE t.deletion_requested_at IS NOT NULL"
        " AND (SELECT count(e.finished_at) FROM identity.tenant_erasure e"
        " WHERE e.tenant_id = t.id) >= $1"
        " AND NOT EXISTS (SELECT FROM identity.tenant c WHERE c.parent_id = t.id) ORDER BY t.id",
        contexts,
    )
    return [row["id"] for row in rows]


async def staying_ancestor(connection: Connection, tenant_id: UUID) -> UUID:
    """The next tenant above one that is not being deleted itself."""
    found: UUID = await connection.fetchval(
        "WITH RECURSIVE above AS (SELECT parent_id, 1 AS far FROM identity.tenant WHERE id = $1"
        " UNION ALL SELECT p.parent_id, far + 1 FROM identity.tenant p"
        " JOIN above a ON p.id = a.parent_id WHERE p.deletion_requested_at IS NOT NULL)"
        " SELECT parent_id FROM above ORDER BY far DESC LIMIT 1",
        tenant_id,
    )
    return found


async def bury_users(connection: Connection, tenant_id: UUID) -> None:
    """Makes the tombstones of a tenant's users."""
    await connection.execute(
        "INSERT INTO identity.user_tombstone"
        " (id, tenant_id, email, role, created_at, deleted_at, deleted_by)"
        " SELECT a.id, a.tenant_id, a.email, a.role, a.created_at, now(), t.deletion_requested_by"
        " FROM identity.account a JOIN identity.tenant t ON t.id = a.tenant_id"
        " WHERE a.tenant_id = $1 AND t.deletion_requested_by IS NOT NULL ON CONFLICT DO NOTHING",
        tenant_id,
    )


async def bury(connection: Connection, tenant: Tenant, erased: str, at: datetime) -> None:
    """Puts a tombstone in the place of a tenant.

    Args:
        erased: JSON, the rows that were deleted by the service's name.
    """
    await connection.execute(
        "INSERT INTO identity.tenant_tombstone (id, parent_id, kind, name, code, created_at,"
        " archived_at, archived_by, deletion_requested_at, deleted_at, deleted_by, erased_rows)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        tenant.id,
        tenant.parent_id,
        tenant.kind,
        tenant.name,
        tenant.code,
        tenant.created_at,
        tenant.archived_at,
        tenant.archived_by,
        tenant.deletion_requested_at,
        at,
        tenant.deletion_requested_by,
        erased,
    )
    await connection.execute("DELETE FROM identity.tenant WHERE id = $1", tenant.id)


async def people(connection: Connection, tenant_ids: Sequence[UUID]) -> tuple[int, int]:
    """How many users and event credentials tenants have."""
    row = await connection.fetchrow(
        "SELECT (SELECT count(*) FROM identity.account WHERE tenant_id = ANY ($1)) AS users,"
        " (SELECT count(*) FROM identity.event_credential WHERE tenant_id = ANY ($1)) AS others",
        tenant_ids,
    )
    assert row is not None
    return row["users"], row["others"]


_FED: Final = "(t.changed_xid, t.id) > ($1::text::xid8, $2)"
TENANT_CHANGES: Final = (
    "SELECT fed.xid::text AS changed_xid, fed.id AS key, fed.* FROM ("
    f"(SELECT t.changed_xid AS xid, {_TENANT} FROM {_TENANTS} WHERE {_FED}"
    " ORDER BY t.changed_xid, t.id LIMIT $3) UNION ALL"
    f" (SELECT t.changed_xid AS xid, {_TOMBSTONE} FROM {_TOMBSTONES} WHERE {_FED}"
    " ORDER BY t.changed_xid, t.id LIMIT $3)"
    ") AS fed ORDER BY fed.xid, fed.id LIMIT $3"
)
"""The feed of tenants, those that were deleted included (`servicekit.feeds.feed.read_page`)."""
