"""SCIM sources, in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope
from servicekit.rpc.pagination import Page
from services.identity.scim.domain import DISABLED, PENDING, ScimSource
from services.identity.sources import store as sources_store
from services.identity.sources.domain import RoleMapping, Source

_SOURCE: Final = (
    "s.id, s.tenant_id, s.name, s.enabled, s.grace_hours, s.created_at, s.updated_at, c.held"
)
_COUNTS: Final = (
    "(SELECT count(*) FROM identity.scim_person p"
    " WHERE p.source_id = s.id AND p.deleted_at IS NULL) AS people,"
    " (SELECT count(*) FROM identity.scim_group g WHERE g.source_id = s.id) AS groups,"
    " (SELECT count(*) FROM identity.external_identity e WHERE e.source_id = s.id) AS users,"
    " (SELECT count(*) FROM identity.scim_person p"
    " WHERE p.source_id = s.id AND p.id > c.remapped_to) AS remaining"
)
_SOURCES: Final = "identity.source s JOIN identity.scim_source c ON c.id = s.id"


def _source(row: asyncpg.Record, mappings: Sequence[RoleMapping]) -> ScimSource:
    return ScimSource(
        source=Source(
            id=row["id"],
            tenant_id=row["tenant_id"],
            kind="scim",
            name=row["name"],
            enabled=row["enabled"],
            grace=timedelta(hours=row["grace_hours"]),
            created_at=row["created_at"],
            updated_at=row["updated_at"],
        ),
        mappings=tuple(mappings),
        held=row["held"] or 0,
        people=row["people"],
        groups=row["groups"],
        users=row["users"],
        remaining=row["remaining"],
    )


async def insert_source(connection: Connection, source: ScimSource) -> None:
    """Adds a source with its mappings."""
    await sources_store.insert_source(connection, source.source)
    await connection.execute(
        "INSERT INTO identity.scim_source (id, tenant_id) VALUES ($1, $2)",
        source.id,
        source.source.tenant_id,
    )
    await sources_store.replace_mappings(connection, source.id, source.mappings)


async def update_source(connection: Connection, source: ScimSource) -> None:
    """Writes a source as it was changed."""
    await sources_store.update_source(connection, source.source)
    await sources_store.replace_mappings(connection, source.id, source.mappings)


async def source(
    connection: Connection, scope: Scope, source_id: UUID, *, lock: str = ""
) -> ScimSource | None:
    """One source of the scope's tenants.

    Args:
        lock: `FOR UPDATE` or `FOR SHARE`.
    """
    of = f"{lock} OF s" if lock else ""
    row = await connection.fetchrow(
        f"SELECT {_SOURCE}, {_COUNTS} FROM {_SOURCES}"
        f" WHERE s.id = $1 AND ($2::uuid[] IS NULL OR s.tenant_id = ANY ($2)) {of}",
        source_id,
        scope.tenant_ids,
    )
    if row is None:
        return None
    return _source(row, await sources_store.mappings(connection, source_id))


async def list_sources(
    connection: Connection, scope: Scope, after: UUID | None, limit: int
) -> Page[ScimSource, UUID]:
    """Sources of the scope's tenants behind a position, oldest first."""
    rows = await connection.fetch(
        f"SELECT {_SOURCE}, {_COUNTS} FROM {_SOURCES}"
        " WHERE ($1::uuid[] IS NULL OR s.tenant_id = ANY ($1)) AND ($2::uuid IS NULL OR s.id > $2)"
        " ORDER BY s.id LIMIT $3",
        scope.tenant_ids,
        after,
        limit + 1,
    )
    found = [_source(row, await sources_store.mappings(connection, row["id"])) for row in rows]
    return Page.of(found, limit, lambda one: one.id)


async def held(connection: Connection, source_id: UUID) -> int | None:
    """From how many users a source would take access."""
    found: int | None = await connection.fetchval(
        "SELECT held FROM identity.scim_source WHERE id = $1", source_id
    )
    return found


async def hold(connection: Connection, source_id: UUID, users: int | None) -> None:
    """Writes from how many users a source would take access; `None` for nobody."""
    await connection.execute(
        "UPDATE identity.scim_source SET held = $2 WHERE id = $1", source_id, users
    )


async def remapped_to(connection: Connection, source_id: UUID) -> UUID | None:
    """Up to which of its people the last change of a source's mappings has been carried out; `None`
    when it has been for all."""
    found: UUID | None = await connection.fetchval(
        "SELECT remapped_to FROM identity.scim_source WHERE id = $1", source_id
    )
    return found


async def note_remapped(connection: Connection, source_id: UUID, to: UUID | None) -> None:
    """Notes how far a change of mappings has come; `None` for all people."""
    await connection.execute(
        "UPDATE identity.scim_source SET remapped_to = $2 WHERE id = $1", source_id, to
    )


async def unsettled(connection: Connection) -> list[UUID]:
    """The sources of all tenants that hold somebody, whose mappings were changed for some of their
    people only, or whose people wait for accounts or have a problem that others than the source may
    solve."""
    rows = await connection.fetch(
        "SELECT s.id FROM identity.scim_source c JOIN identity.source s ON s.id = c.id"
        " WHERE c.remapped_to IS NOT NULL"
        " OR s.enabled AND (c.held IS NOT NULL OR EXISTS (SELECT FROM identity.scim_person p"
        " WHERE p.source_id = s.id AND p.problem = ANY ($1))) ORDER BY s.id",
        [PENDING, "EMAIL_DOMAIN", "OTHER_ACCOUNT", DISABLED],
    )
    return [row["id"] for row in rows]
