"""The SQL of simulations: the devices by what makes their policy."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from servicekit.data.postgres import Connection


@dataclass(frozen=True, slots=True)
class Alike:
    """Devices of an organisation in the same groups, which have the same version."""

    tenant_id: UUID
    group_ids: tuple[UUID, ...]
    own: UUID | None
    """The device itself, where it has or would have a policy of its own."""
    version: int
    """What they say they have; 0 for nothing."""
    devices: int
    sample: tuple[UUID, ...]


async def alike(
    connection: Connection, tenant_ids: Sequence[UUID], own: Collection[UUID]
) -> list[Alike]:
    """The active devices of organisations.

    Args:
        connection: of the organisations.
        tenant_ids: the organisations.
        own: devices that are looked at one by one.
    """
    rows = await connection.fetch(
        "SELECT d.tenant_id, coalesce(m.group_ids, '{}') AS group_ids,"
        " CASE WHEN d.device_id = ANY ($2) THEN d.device_id END AS own,"
        " coalesce(a.version, 0) AS version, count(*) AS devices,"
        " (array_agg(d.device_id ORDER BY d.device_id))[1:5] AS sample"
        " FROM policy.devices d"
        " LEFT JOIN policy.memberships m"
        " ON m.device_id = d.device_id AND m.tenant_id = d.tenant_id"
        " LEFT JOIN policy.applied_versions a"
        " ON a.device_id = d.device_id AND a.tenant_id = d.tenant_id"
        " WHERE d.tenant_id = ANY ($1) AND d.status = 'active'"
        " GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4",
        list(tenant_ids),
        list(own),
    )
    return [
        Alike(
            row["tenant_id"],
            tuple(row["group_ids"]),
            row["own"],
            row["version"],
            row["devices"],
            tuple(row["sample"]),
        )
        for row in rows
    ]


async def bound_targets(
    connection: Connection, tenant_ids: Sequence[UUID]
) -> dict[UUID, dict[UUID, int]]:
    """The groups and devices with policies by organisation: their priorities, 0 for devices."""
    rows = await connection.fetch(
        "SELECT b.tenant_id, b.target_id, coalesce(g.priority, 0) AS priority"
        " FROM policy.bindings b LEFT JOIN policy.groups g ON g.id = b.target_id"
        " WHERE b.tenant_id = ANY ($1) AND b.version IS NOT NULL"
        " AND (b.kind = 'device' OR NOT g.deleted)",
        list(tenant_ids),
    )
    found: dict[UUID, dict[UUID, int]] = {}
    for row in rows:
        found.setdefault(row["tenant_id"], {})[row["target_id"]] = row["priority"]
    return found
