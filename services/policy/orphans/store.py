"""The SQL of orphaned devices."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from servicekit.data.postgres import Connection, Scope
from servicekit.rpc.pagination import Page
from services.policy.orphans.domain import Orphan

# An organisation's row stays when nothing is in force any more; there are few such rows. One that
# inherits has something in force all the same.
_ORPHANS: Final = (
    " FROM (SELECT o.tenant_id, NULL::bigint AS version FROM policy.assignments o"
    " WHERE o.version IS NULL UNION SELECT e.tenant_id, NULL FROM policy.editions e"
    " WHERE e.recipe = '[]' UNION SELECT b.tenant_id, NULL FROM policy.bindings b"
    " WHERE b.version IS NULL"
    " EXCEPT SELECT o.tenant_id, NULL FROM policy.assignments o WHERE o.version IS NOT NULL"
    " EXCEPT SELECT e.tenant_id, NULL FROM policy.editions e"
    " WHERE e.own_version IS NULL AND e.digest IS NOT NULL) AS s"
    " JOIN policy.applied_versions a ON a.tenant_id = s.tenant_id AND a.version > 0"
    " JOIN policy.devices d ON d.device_id = a.device_id AND d.status = 'active'"
    " LEFT JOIN policy.memberships m ON m.device_id = a.device_id"
    " WHERE s.version IS NULL AND ($1::uuid[] IS NULL OR s.tenant_id = ANY ($1))"
    " AND NOT EXISTS (SELECT FROM policy.bindings b WHERE b.tenant_id = a.tenant_id"
    " AND b.version IS NOT NULL"
    " AND (b.target_id = a.device_id OR b.target_id = ANY (m.group_ids)))"
)


async def list_orphans(
    connection: Connection, scope: Scope, after: UUID | None, limit: int
) -> Page[Orphan, UUID]:
    """The orphaned devices of a scope behind a position, by id."""
    rows = await connection.fetch(
        "SELECT o.device_id, o.tenant_id, o.version, v.policy_id, p.name AS policy_name,"
        " o.reported_at FROM (SELECT a.device_id, a.tenant_id, a.version, a.reported_at"
        f"{_ORPHANS} AND ($2::uuid IS NULL OR a.device_id > $2)"
        " ORDER BY a.device_id LIMIT $3) AS o"
        " LEFT JOIN policy.versions v ON v.tenant_id = o.tenant_id AND v.version = o.version"
        " LEFT JOIN policy.policies p ON p.id = v.policy_id AND p.tenant_id = o.tenant_id"
        " ORDER BY o.device_id",
        scope.tenant_ids,
        after,
        limit + 1,
    )
    return Page.of([Orphan(**row) for row in rows], limit, lambda orphan: orphan.device_id)


async def count(connection: Connection, scope: Scope) -> int:
    """How many orphaned devices a scope has."""
    found: int = await connection.fetchval(f"SELECT count(*){_ORPHANS}", scope.tenant_ids)
    return found
