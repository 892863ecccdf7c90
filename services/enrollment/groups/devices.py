"""The devices of groups: who belongs to one, and what a filter would change."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any
from uuid import UUID

from servicekit.data.postgres import Connection
from services.enrollment.groups.domain import Group, Member, Moved
from services.enrollment.groups.filter_sql import FilterSql
from services.enrollment.groups.filters import parse
from services.enrollment.groups.members import member_of
from services.enrollment.groups.membership import IN_GROUPS, KEY
from services.enrollment.groups.store import GROUP, group_of


def _condition(filters: FilterSql, group: Group) -> str:
    """Whether a device belongs to a group."""
    if group.deleted_at is not None:
        return "false"
    if group.filter is None:
        return (
            f"({IN_GROUPS} AND EXISTS (SELECT FROM enrollment.group_member m"
            f" WHERE m.group_id = {filters.value(str(group.id))}::uuid AND m.serial_key = {KEY}))"
        )
    return f"({IN_GROUPS} AND {filters.condition(parse(group.filter))})"


async def compute(
    connection: Connection, group: Group, after: UUID, limit: int
) -> tuple[list[Moved], UUID | None]:
    """Brings devices into a group, or out of it; and behind which one it goes on.

    Args:
        after: behind which device it begins.
        limit: how many devices to move at most.
    """
    filters = FilterSql("$5")
    wanted = _condition(filters, group)
    rows = await connection.fetch(
        "SELECT d.id FROM enrollment.device d WHERE d.tenant_id = $1 AND d.id > $2"
        f" AND (d.group_ids @> ARRAY[$3::uuid]) <> {wanted} ORDER BY d.id LIMIT $4"
        " FOR NO KEY UPDATE",
        group.tenant_id,
        after,
        group.id,
        limit,
        *([list(filters.values)] if filters.values else []),
    )
    ids = [row["id"] for row in rows]
    if not ids:
        return [], None
    rows = await connection.fetch(
        "UPDATE enrollment.device AS d SET group_ids = w.wanted"
        " FROM (SELECT b.id, b.group_ids AS before, CASE WHEN b.group_ids @> ARRAY[$2::uuid]"
        " THEN array_remove(b.group_ids, $2) ELSE ARRAY(SELECT g.id"
        " FROM unnest(b.group_ids || $2::uuid) AS g (id) ORDER BY g.id) END AS wanted"
        " FROM enrollment.device b WHERE b.id = ANY ($1)) AS w WHERE d.id = w.id"
        " RETURNING d.id, d.serial, w.before, d.group_ids",
        ids,
        group.id,
    )
    moved = [
        Moved(
            row["id"], group.tenant_id, row["serial"], tuple(row["before"]), tuple(row["group_ids"])
        )
        for row in rows
    ]
    return moved, ids[-1] if len(ids) == limit else None


async def note_computed(connection: Connection, group_id: UUID, after: UUID | None) -> None:
    """Notes how far a group was computed; `None` for to the end."""
    await connection.execute(
        "UPDATE enrollment.device_group SET computing_after = $2 WHERE id = $1", group_id, after
    )


async def computing_org(connection: Connection, but: Collection[UUID]) -> UUID | None:
    """An organisation, none of some, with a group that is to be computed further."""
    found: UUID | None = await connection.fetchval(
        "SELECT g.tenant_id FROM enrollment.device_group g WHERE g.computing_after IS NOT NULL"
        " AND g.tenant_id <> ALL ($1::uuid[]) ORDER BY g.id LIMIT 1",
        list(but),
    )
    return found


async def computing_group(connection: Connection, tenant_id: UUID) -> Group | None:
    """A group of an organisation that is to be computed further, locked.

    None that another process computes.
    """
    row = await connection.fetchrow(
        f"SELECT {GROUP} FROM enrollment.device_group g WHERE g.tenant_id = $1"
        " AND g.computing_after IS NOT NULL ORDER BY g.id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED",
        tenant_id,
    )
    return group_of(row) if row else None


async def uncomputed_org(connection: Connection, but: Collection[UUID]) -> UUID | None:
    """An organisation, none of some, with devices whose groups are to be computed."""
    found: UUID | None = await connection.fetchval(
        "SELECT d.tenant_id FROM enrollment.device d WHERE d.groups_computed_at IS NULL"
        " AND d.tenant_id <> ALL ($1::uuid[]) LIMIT 1",
        list(but),
    )
    return found


async def absorb_expected(connection: Connection, device_ids: Collection[UUID]) -> None:
    """Gives devices what was said of them while they were expected.

    For those that came without this release's services, which do so themselves.
    """
    await connection.execute(
        "WITH came AS (DELETE FROM enrollment.expected_device e USING enrollment.device d"
        " WHERE d.id = ANY ($1) AND d.tenant_id = e.tenant_id AND d.serial_key = e.serial_key"
        " AND d.deleted_at IS NULL RETURNING d.id, e.labels, e.asset_tag, e.note)"
        " UPDATE enrollment.device d SET labels = c.labels || d.labels,"
        " asset_tag = coalesce(nullif(d.asset_tag, ''), c.asset_tag),"
        " note = coalesce(nullif(d.note, ''), c.note) FROM came c WHERE d.id = c.id",
        list(device_ids),
    )


async def uncomputed_devices(connection: Connection, tenant_id: UUID, limit: int) -> list[UUID]:
    """Devices of an organisation whose groups are to be computed, locked."""
    rows = await connection.fetch(
        "SELECT d.id FROM enrollment.device d WHERE d.tenant_id = $1"
        " AND d.groups_computed_at IS NULL ORDER BY d.id LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED",
        tenant_id,
        limit,
    )
    return [row["id"] for row in rows]


async def preview(
    connection: Connection, tenant_id: UUID, text: str, group_id: UUID | None, sample: int
) -> tuple[Mapping[str, int], Mapping[str, list[Member]]]:
    """What a filter would match: counts and the first devices, by `matched`, `joins`, `leaves`.

    Args:
        group_id: the group whose filter it would be; `None` for a new one.
        sample: how many devices of each at most; none for 0.
    """
    filters = FilterSql("$3")
    wanted = f"({IN_GROUPS} AND {filters.condition(parse(text))})"
    is_in = "coalesce(d.group_ids @> ARRAY[$2::uuid], false)"
    found = (
        f"SELECT d.id, d.serial, d.model, d.status, {wanted} AS wanted, {is_in} AS is_in"
        " FROM enrollment.device d WHERE d.tenant_id = $1"
    )
    arguments: list[Any] = [tenant_id, group_id, list(filters.values)]
    kinds = {"matched": "wanted", "joins": "wanted AND NOT is_in", "leaves": "is_in AND NOT wanted"}
    counted = ", ".join(f"count(*) FILTER (WHERE {kind}) AS {name}" for name, kind in kinds.items())
    row = await connection.fetchrow(f"SELECT {counted} FROM ({found}) AS f", *arguments)
    assert row is not None
    counts: dict[str, int] = {name: row[name] for name in kinds}
    samples: dict[str, list[Member]] = {name: [] for name in kinds}
    for name, kind in kinds.items():
        if counts[name] and sample:
            rows = await connection.fetch(
                f"SELECT f.id, f.serial, f.model, f.status FROM ({found}) AS f WHERE {kind}"
                " ORDER BY f.id LIMIT $4",
                *arguments,
                sample,
            )
            samples[name] = [member_of(row) for row in rows]
    return counts, samples
