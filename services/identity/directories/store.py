"""Directories in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope
from servicekit.rpc.pagination import Page
from services.identity.directories.domain import Directory, Reading, SyncStatus
from services.identity.sources import store as sources_store
from services.identity.sources.domain import RoleMapping, Source

_COLUMNS: Final = (
    "s.id, s.tenant_id, s.name, s.enabled, s.grace_hours, s.created_at, s.updated_at,"
    " d.kind, d.urls, d.tls, d.ca_pem, d.bind_dn, d.sealed_secrets, d.base_dn, d.user_filter,"
    " d.id_attribute, d.email_attribute, d.name_attribute, d.group_base_dn, d.group_mode,"
    " d.sync_minutes, d.synced_at, d.sync_status, d.sync_error, d.sync_held, d.sync_pass,"
    " (SELECT count(*) FROM identity.external_identity e WHERE e.source_id = s.id) AS users"
)
_TABLES: Final = "identity.source s JOIN identity.directory d ON d.id = s.id"


def _directory(row: asyncpg.Record, mappings: Sequence[RoleMapping]) -> Directory:
    return Directory(
        source=Source(
            id=row["id"],
            tenant_id=row["tenant_id"],
            kind="directory",
            name=row["name"],
            enabled=row["enabled"],
            grace=timedelta(hours=row["grace_hours"]),
            created_at=row["created_at"],
            updated_at=row["updated_at"],
        ),
        kind=row["kind"],
        urls=tuple(row["urls"]),
        tls=row["tls"],
        ca_pem=row["ca_pem"],
        bind_dn=row["bind_dn"],
        sealed_secrets=row["sealed_secrets"],
        base_dn=row["base_dn"],
        reading=Reading(
            user_filter=row["user_filter"],
            id_attribute=row["id_attribute"],
            email_attribute=row["email_attribute"],
            name_attribute=row["name_attribute"],
            group_mode=row["group_mode"],
        ),
        group_base_dn=row["group_base_dn"],
        sync_minutes=row["sync_minutes"],
        mappings=tuple(mappings),
        synced_at=row["synced_at"],
        sync_status=row["sync_status"],
        sync_error=row["sync_error"],
        sync_held=row["sync_held"],
        sync_pass=row["sync_pass"],
        users=row["users"],
    )


def _written(directory: Directory) -> tuple[Any, ...]:
    reading = directory.reading
    return (
        directory.id,
        directory.source.tenant_id,
        directory.kind,
        list(directory.urls),
        directory.tls,
        directory.ca_pem,
        directory.bind_dn,
        directory.sealed_secrets,
        directory.base_dn,
        reading.user_filter,
        reading.id_attribute,
        reading.email_attribute,
        reading.name_attribute,
        directory.group_base_dn,
        reading.group_mode,
        directory.sync_minutes,
    )


async def insert(connection: Connection, directory: Directory, next_sync: datetime) -> None:
    """Adds a directory with its source and its mappings."""
    await sources_store.insert_source(connection, directory.source)
    await connection.execute(
        "INSERT INTO identity.directory (id, tenant_id, kind, urls, tls, ca_pem, bind_dn,"
        " sealed_secrets, base_dn, user_filter, id_attribute, email_attribute,"
        " name_attribute, group_base_dn, group_mode, sync_minutes, sync_next_at)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
        *_written(directory),
        next_sync,
    )
    await sources_store.replace_mappings(connection, directory.id, directory.mappings)


async def update(connection: Connection, directory: Directory, next_sync: datetime) -> None:
    """Writes a directory as it was changed; what a sync said of the one before is forgotten,
    and one that is under way changes nothing any more."""
    await sources_store.update_source(connection, directory.source)
    await connection.execute(
        "UPDATE identity.directory SET kind = $3, urls = $4, tls = $5, ca_pem = $6, bind_dn = $7,"
        " sealed_secrets = $8, base_dn = $9, user_filter = $10, id_attribute = $11,"
        " email_attribute = $12, name_attribute = $13, group_base_dn = $14, group_mode = $15,"
        " sync_minutes = $16, sync_next_at = $17, sync_status = '', sync_error = '',"
        " sync_held = NULL, sync_until = NULL, sync_pass = NULL, sync_asked = false"
        " WHERE id = $1 AND tenant_id = $2",
        *_written(directory),
        next_sync,
    )
    await sources_store.replace_mappings(connection, directory.id, directory.mappings)


async def directory(
    connection: Connection, scope: Scope, directory_id: UUID, *, lock: str = ""
) -> Directory | None:
    """One directory of the scope's tenants.

    Args:
        lock: `FOR UPDATE` or `FOR SHARE`, of its source.
    """
    of = f"{lock} OF s" if lock else ""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM {_TABLES}"
        f" WHERE s.id = $1 AND ($2::uuid[] IS NULL OR s.tenant_id = ANY ($2)) {of}",
        directory_id,
        scope.tenant_ids,
    )
    if row is None:
        return None
    return _directory(row, await sources_store.mappings(connection, directory_id))


async def list_directories(
    connection: Connection, scope: Scope, after: UUID | None, limit: int
) -> Page[Directory, UUID]:
    """Directories of the scope's tenants behind a position, oldest first."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM {_TABLES}"
        " WHERE ($1::uuid[] IS NULL OR s.tenant_id = ANY ($1)) AND ($2::uuid IS NULL OR s.id > $2)"
        " ORDER BY s.id LIMIT $3",
        scope.tenant_ids,
        after,
        limit + 1,
    )
    found = [_directory(row, await sources_store.mappings(connection, row["id"])) for row in rows]
    return Page.of(found, limit, lambda one: one.id)


_TAKEN: Final = (
    "sync_until = $2, sync_pass = $3,"
    " sync_next_at = $1 + sync_minutes * $4::float8 * interval '1 minute'"
)
"""A pass takes a directory. The next one is due from now on, whatever comes of this one."""


async def take_due(
    connection: Connection,
    number: UUID,
    at: datetime,
    until: datetime,
    unevenness: float,
    *,
    failed_too: bool,
) -> UUID | None:
    """Takes the directory whose sync is due for the longest, one of a tenant at a time.

    Args:
        number: of the pass.
        until: how long it has the directory, if it does not give it back before.
        unevenness: by what the time until the next one is multiplied.
        failed_too: whether it may be one whose last sync has failed.
    """
    found: UUID | None = await connection.fetchval(
        f"UPDATE identity.directory SET {_TAKEN}, sync_asked = false WHERE id ="
        f" (SELECT d.id FROM {_TABLES} JOIN identity.tenant t ON t.id = s.tenant_id"
        " WHERE s.enabled AND d.sync_next_at <= $1 AND t.archived_at IS NULL"
        " AND (d.sync_until IS NULL OR d.sync_until <= $1)"
        " AND ($5 OR d.sync_status <> 'failed') AND NOT EXISTS (SELECT FROM identity.directory o"
        " WHERE o.tenant_id = d.tenant_id AND o.sync_until > $1)"
        " ORDER BY d.sync_next_at, d.id LIMIT 1 FOR UPDATE OF d SKIP LOCKED) RETURNING id",
        at,
        until,
        number,
        unevenness,
        failed_too,
    )
    return found


async def take(
    connection: Connection,
    directory: Directory,
    number: UUID,
    at: datetime,
    until: datetime,
    unevenness: float,
) -> bool:
    """Takes a directory for a sync that an Owner waits for; answers whether it was free, and no
    other Owner of its tenant waits for one."""
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtext('identity:asked-syncs'), hashtext($1))",
        str(directory.source.tenant_id),
    )
    done: str = await connection.execute(
        f"UPDATE identity.directory d SET {_TAKEN}, sync_asked = true"
        " WHERE id = $5 AND tenant_id = $6 AND (sync_until IS NULL OR sync_until <= $1)"
        " AND NOT EXISTS (SELECT FROM identity.directory o WHERE o.tenant_id = d.tenant_id"
        " AND o.id <> d.id AND o.sync_asked AND o.sync_until > $1)",
        at,
        until,
        number,
        unevenness,
        directory.id,
        directory.source.tenant_id,
    )
    return done == "UPDATE 1"


async def give_back(connection: Connection, directory_id: UUID, number: UUID) -> None:
    """Gives a directory back, if the pass still has it."""
    await connection.execute(
        "UPDATE identity.directory SET sync_until = NULL, sync_pass = NULL, sync_asked = false"
        " WHERE id = $1 AND sync_pass = $2",
        directory_id,
        number,
    )


async def note_sync(
    connection: Connection,
    directory_id: UUID,
    number: UUID,
    at: datetime,
    status: SyncStatus,
    error: str,
    held: int | None,
) -> None:
    """Writes what came of a pass, if it still has the directory."""
    await connection.execute(
        "UPDATE identity.directory SET synced_at = $3, sync_status = $4, sync_error = $5,"
        " sync_held = $6 WHERE id = $1 AND sync_pass = $2",
        directory_id,
        number,
        at,
        status,
        error,
        held,
    )
