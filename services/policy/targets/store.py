"""The SQL of policies of groups and devices, and of what the registry tells of groups."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from servicekit.data.postgres import Connection, columns
from servicekit.feeds.feed import Cursor, FeedPage, read_page
from servicekit.ids import new_id
from services.policy.keys.store import FIRST_KEY
from services.policy.targets.domain import Group, PolicyTargets

CHANGING: Final = "SELECT changed_xid FROM policy.memberships"
"""What the feed of memberships tells of (`servicekit.feeds.changes`)."""
CHANGING_RESTRICTIONS: Final = "SELECT changed_xid FROM policy.restricted_device"
"""What the feed of restricted devices tells of."""
_CHANGES_A_PAGE: Final = 5_000


@dataclass(frozen=True, slots=True)
class Membership:
    """The groups of a device, as the registry has them."""

    device_id: UUID
    tenant_id: UUID
    group_ids: tuple[UUID, ...]
    revision: int
    key_id: str = ""
    """The key for policies that it pins; empty for the first one of the installation."""


# What is in force


async def bind(
    connection: Connection, tenant_id: UUID, targets: PolicyTargets, policy_id: UUID, version: int
) -> None:
    """Puts a version in force for groups and devices, and for no others any more."""
    await connection.execute(
        "UPDATE policy.bindings SET policy_id = NULL, version = NULL,"
        " changed_xid = pg_current_xact_id()"
        " WHERE tenant_id = $1 AND policy_id = $2 AND target_id <> ALL ($3)",
        tenant_id,
        policy_id,
        list(targets.ids),
    )
    for kind, ids in (("group", targets.group_ids), ("device", targets.device_ids)):
        await connection.execute(
            "INSERT INTO policy.bindings (tenant_id, target_id, id, kind, policy_id, version)"
            " SELECT $1, t.target_id, t.id, $4, $5, $6"
            " FROM unnest($2::uuid[], $3::uuid[]) AS t (target_id, id)"
            " ON CONFLICT (tenant_id, target_id) DO UPDATE SET policy_id = excluded.policy_id,"
            " version = excluded.version, changed_xid = pg_current_xact_id()",
            tenant_id,
            list(ids),
            [new_id() for _ in ids],
            kind,
            policy_id,
            version,
        )


async def unbind(connection: Connection, tenant_id: UUID, policy_id: UUID) -> None:
    """Takes a policy out of force for groups and devices."""
    await bind(connection, tenant_id, PolicyTargets(), policy_id, 0)


async def unbind_targets(
    connection: Connection, target_ids: Sequence[UUID]
) -> list[tuple[UUID, UUID]]:
    """Takes whatever is in force out of it for groups and devices that are gone.

    Answers tenant and id of the policies that it was.
    """
    if not target_ids:
        return []
    rows = await connection.fetch(
        "WITH ended AS (UPDATE policy.bindings b SET policy_id = NULL, version = NULL,"
        " changed_xid = pg_current_xact_id() FROM (SELECT o.tenant_id, o.target_id, o.policy_id"
        " FROM policy.bindings o WHERE o.target_id = ANY ($1) AND o.version IS NOT NULL"
        " ORDER BY o.tenant_id, o.target_id FOR UPDATE) AS f"
        " WHERE b.tenant_id = f.tenant_id AND b.target_id = f.target_id"
        " RETURNING f.tenant_id, f.policy_id)"
        " SELECT DISTINCT e.tenant_id, e.policy_id FROM ended e ORDER BY 1, 2",
        list(target_ids),
    )
    return [(row["tenant_id"], row["policy_id"]) for row in rows]


async def count_bound(connection: Connection, tenant_id: UUID) -> int:
    """For how many groups and devices of an organisation something is in force."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM policy.bindings WHERE tenant_id = $1 AND version IS NOT NULL",
        tenant_id,
    )
    return found


async def is_bound(
    connection: Connection, tenant_id: UUID, targets: PolicyTargets, policy_id: UUID, version: int
) -> bool:
    """Whether a version is in force for groups and devices, and the policy for no others."""
    rows = await connection.fetch(
        "SELECT target_id, version FROM policy.bindings WHERE tenant_id = $1 AND policy_id = $2",
        tenant_id,
        policy_id,
    )
    return {(row["target_id"], row["version"]) for row in rows} == {
        (one, version) for one in targets.ids
    }


async def policies_of(
    connection: Connection, tenant_id: UUID, target_id: UUID
) -> list[tuple[UUID, str]]:
    """The policies that are in force for a group or a device, or come to it by a rollout, with
    their names; also what devices of a group get that fall short of its gate."""
    rows = await connection.fetch(
        "SELECT p.id, p.name FROM policy.policies p WHERE p.tenant_id = $1"
        " AND (p.id IN (SELECT b.policy_id FROM policy.bindings b WHERE b.tenant_id = $1"
        " AND b.target_id = $2 AND b.version IS NOT NULL)"
        " OR p.id IN (SELECT r.policy_id FROM policy.rollout r WHERE r.tenant_id = $1"
        " AND $2 = ANY (r.group_ids || r.device_ids) AND r.ended_at IS NULL)"
        " OR p.id IN (SELECT e.otherwise_policy_id FROM policy.gate e WHERE e.tenant_id = $1"
        " AND e.target_id = $2 AND e.mode = 'ENFORCE')) ORDER BY p.id",
        tenant_id,
        target_id,
    )
    return [(row["id"], row["name"]) for row in rows]


async def known_groups(
    connection: Connection, tenant_id: UUID, group_ids: Collection[UUID], *, to_keep: bool = True
) -> dict[UUID, Group]:
    """Groups of an organisation that are not deleted, by id.

    Args:
        to_keep: they are not deleted before the transaction ends, either.
    """
    rows = await connection.fetch(
        "SELECT id, tenant_id, name, alias, priority, deleted FROM policy.groups"
        " WHERE tenant_id = $1 AND id = ANY ($2) AND NOT deleted ORDER BY id"
        f"{' FOR SHARE' if to_keep else ''}",
        tenant_id,
        list(group_ids),
    )
    return {row["id"]: Group(**row) for row in rows}


async def gone(connection: Connection, tenant_id: UUID, targets: PolicyTargets) -> set[UUID]:
    """Which groups and devices an organisation does not have any more."""
    groups = await known_groups(connection, tenant_id, targets.group_ids)
    devices = await known_devices(connection, tenant_id, targets.device_ids)
    return {one for one in targets.ids if one not in groups and one not in devices}


async def known_devices(
    connection: Connection, tenant_id: UUID, device_ids: Collection[UUID], *, to_keep: bool = True
) -> set[UUID]:
    """Which devices an organisation has.

    Args:
        to_keep: it keeps them before the transaction ends, too.
    """
    rows = await connection.fetch(
        "SELECT device_id FROM policy.devices WHERE tenant_id = $1 AND device_id = ANY ($2)"
        f" ORDER BY device_id{' FOR SHARE' if to_keep else ''}",
        tenant_id,
        list(device_ids),
    )
    return {row["device_id"] for row in rows}


# What the registry tells


async def groups_of(connection: Connection, device_id: UUID) -> tuple[UUID, ...]:
    """The groups that a device is in."""
    found = await connection.fetchval(
        "SELECT group_ids FROM policy.memberships WHERE device_id = $1", device_id
    )
    return tuple(found or ())


async def write_memberships(connection: Connection, found: Sequence[Membership]) -> None:
    """Stores the groups of devices, unless newer ones are stored."""
    if not found:
        return
    rows = sorted(
        (
            one.device_id,
            one.tenant_id,
            f"{{{','.join(map(str, one.group_ids))}}}",
            one.revision,
            one.key_id or None,
        )
        for one in found
    )
    await connection.execute(
        "INSERT INTO policy.memberships AS m (device_id, tenant_id, group_ids, revision, key_id)"
        " SELECT r.device_id, r.tenant_id, r.group_ids::uuid[], r.revision, r.key_id FROM"
        " (SELECT u.device_id, u.tenant_id, u.group_ids, u.revision,"
        f" nullif(u.key_id, ({FIRST_KEY})) AS key_id"
        " FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::bigint[], $5::text[])"
        " AS u (device_id, tenant_id, group_ids, revision, key_id)) AS r"
        # Most devices are in no group, never were, and pin the first key.
        " WHERE r.group_ids <> '{}' OR r.key_id IS NOT NULL OR EXISTS"
        " (SELECT FROM policy.memberships k WHERE k.device_id = r.device_id)"
        " ON CONFLICT (device_id) DO UPDATE SET tenant_id = excluded.tenant_id,"
        " group_ids = excluded.group_ids, revision = excluded.revision, key_id = excluded.key_id,"
        " changed_xid = pg_current_xact_id() WHERE m.revision <= excluded.revision"
        " AND (m.tenant_id, m.group_ids, m.key_id)"
        " IS DISTINCT FROM (excluded.tenant_id, excluded.group_ids, excluded.key_id)",
        *columns(rows),
    )


async def memberships_since(
    connection: Connection, cursor: Cursor
) -> tuple[FeedPage, list[Membership]]:
    """Devices whose groups or keys changed since a cursor."""
    page = await read_page(
        connection,
        "SELECT m.changed_xid::text AS changed_xid, m.device_id AS key, m.tenant_id, m.group_ids,"
        " m.revision, m.key_id FROM policy.memberships m"
        " WHERE (m.changed_xid, m.device_id) > ($1::text::xid8, $2)"
        # By the column: the text of the same name would put 99 behind 100.
        " ORDER BY m.changed_xid, m.device_id LIMIT $3",
        cursor,
        _CHANGES_A_PAGE,
    )
    return page, [
        Membership(
            row["key"],
            row["tenant_id"],
            tuple(row["group_ids"]),
            row["revision"],
            row["key_id"] or "",
        )
        for row in page.rows
    ]


async def restricted_since(
    connection: Connection, cursor: Cursor, limit: int = _CHANGES_A_PAGE
) -> tuple[FeedPage, list[tuple[UUID, UUID, UUID | None]]]:
    """Device, organisation and gate of devices that got or lost another policy since a cursor."""
    page = await read_page(
        connection,
        "SELECT r.changed_xid::text AS changed_xid, r.device_id AS key, r.tenant_id, r.gate_id"
        " FROM policy.restricted_device r"
        " WHERE (r.changed_xid, r.device_id) > ($1::text::xid8, $2)"
        # By the column: the text of the same name would put 99 behind 100.
        " ORDER BY r.changed_xid, r.device_id LIMIT $3",
        cursor,
        limit,
    )
    return page, [(row["key"], row["tenant_id"], row["gate_id"]) for row in page.rows]


async def write_groups(connection: Connection, groups: Iterable[Group]) -> None:
    """Stores groups, each once, as the registry has them now."""
    rows = sorted(
        (one.id, one.tenant_id, one.name, one.alias, one.priority, one.deleted) for one in groups
    )
    if rows:
        await connection.execute(
            "INSERT INTO policy.groups AS g (id, tenant_id, name, alias, priority, deleted)"
            " SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::integer[],"
            " $6::boolean[]) ON CONFLICT (id) DO UPDATE SET name = excluded.name,"
            " alias = excluded.alias, priority = excluded.priority, deleted = excluded.deleted,"
            " changed_xid = pg_current_xact_id()"
            " WHERE (g.name, g.alias, g.priority, g.deleted) IS DISTINCT FROM"
            " (excluded.name, excluded.alias, excluded.priority, excluded.deleted)",
            *columns(rows),
        )


async def groups_cursor(connection: Connection) -> str:
    """How far the feed of groups was read; empty for not at all."""
    cursor: str | None = await connection.fetchval("SELECT cursor FROM policy.groups_cursor")
    return cursor or ""


async def write_groups_cursor(connection: Connection, cursor: str) -> None:
    """Stores how far the feed of groups was read."""
    await connection.execute(
        "INSERT INTO policy.groups_cursor (cursor) VALUES ($1)"
        " ON CONFLICT (only_row) DO UPDATE SET cursor = excluded.cursor",
        cursor,
    )
