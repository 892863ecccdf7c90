"""The SQL of rollouts, of what was seen of their devices, and of how tenants publish."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope
from servicekit.rpc.pagination import Page
from services.policy.rollouts.domain import (
    MOST_WATCHED,
    OPEN,
    Counts,
    DeviceState,
    Rollout,
    RolloutDevice,
    State,
    counts_of,
)
from services.policy.rollouts.outlook import Kind
from services.policy.rollouts.plans import Plan
from services.policy.rollouts.settings import Freeze, Settings
from services.policy.targets.domain import PolicyTargets

SILENT_AFTER: Final = timedelta(minutes=10)
"""A device is given so long to poll again; agents poll every five minutes."""
_ASK_AGAIN: Final = timedelta(minutes=5)
"""So often telemetry is asked for the failures of each device."""
_ANSWER_HOLDS: Final = timedelta(minutes=30)
"""An older answer is none."""
_ASKED_FOR: Final = timedelta(days=7)
"""So long after a delivery failures are asked for: later ones are hardly due to it."""
_WAITS: Final = timedelta(days=1)
"""So long after its last poll a device waits for its turn; then it is off."""
_PROFILES_KEPT: Final = timedelta(days=1)
MOST_DELIVERIES: Final = 3
"""A device that was given a version more often did not apply it."""
_OPEN: Final = tuple(one.value for one in OPEN)
_ROLLOUT: Final = (
    "r.id, r.tenant_id, r.policy_id, coalesce(p.name, '') AS policy_name, r.version, r.group_ids,"
    " r.device_ids, r.base, r.plan, r.note, r.urgent, r.salt, r.state, r.created_at, r.created_by,"
    " r.created_by_name, r.starts_at, r.reason, r.detail, r.batch, r.batch_opened_at,"
    " r.served_for, r.serving_since, r.suspected_at, r.approved_batch, r.below, r.open_groups,"
    " r.serves, r.holds, r.live, r.counts,"
    " r.approved_by, r.approved_by_name, r.ended_at, r.revision FROM policy.rollout r"
    " LEFT JOIN policy.policies p ON p.tenant_id = r.tenant_id AND p.id = r.policy_id"
)


def _rollout(row: asyncpg.Record) -> Rollout:
    found: dict[str, Any] = dict(row)
    targets = PolicyTargets(tuple(found.pop("group_ids")), tuple(found.pop("device_ids")))
    return Rollout(
        **found
        | {
            "targets": targets,
            "plan": Plan.read(found["plan"]),
            "state": State(found["state"]),
            "open_groups": frozenset(found["open_groups"]),
            "counts": counts_of(found["counts"]),
        }
    )


async def get(connection: Connection, scope: Scope, rollout_id: UUID) -> Rollout | None:
    """A rollout of a scope."""
    row = await connection.fetchrow(
        f"SELECT {_ROLLOUT} WHERE r.id = $1 AND ($2::uuid[] IS NULL OR r.tenant_id = ANY ($2))",
        rollout_id,
        scope.tenant_ids,
    )
    return None if row is None else _rollout(row)


async def lock(connection: Connection, rollout: Rollout) -> Rollout | None:
    """A rollout as nobody else changes it; its policy and the org's counter are locked first."""
    await connection.execute(
        "SELECT FROM policy.policies WHERE tenant_id = $1 AND id = $2 FOR UPDATE",
        rollout.tenant_id,
        rollout.policy_id,
    )
    await connection.execute(
        "SELECT FROM policy.version_counters WHERE tenant_id = $1 FOR UPDATE", rollout.tenant_id
    )
    await connection.execute("SELECT FROM policy.rollout WHERE id = $1 FOR UPDATE", rollout.id)
    return await get(connection, Scope.of(rollout.tenant_id), rollout.id)


async def of_policies(
    connection: Connection,
    scope: Scope,
    policy_id: UUID | None,
    before: UUID | None,
    limit: int,
    *,
    only_open: bool,
) -> Page[Rollout, UUID]:
    """The rollouts of a scope, or of one policy, the newest first."""
    rows = await connection.fetch(
        f"SELECT {_ROLLOUT} WHERE ($1::uuid[] IS NULL OR r.tenant_id = ANY ($1))"
        " AND ($2::uuid IS NULL OR r.policy_id = $2) AND ($3::uuid IS NULL OR r.id < $3)"
        " AND (NOT $4 OR r.state = ANY ($5)) ORDER BY r.id DESC LIMIT $6",
        scope.tenant_ids,
        policy_id,
        before,
        only_open,
        _OPEN,
        limit + 1,
    )
    return Page.of([_rollout(row) for row in rows], limit, lambda one: one.id)


async def concerned(
    connection: Connection, tenant_id: UUID, policy_id: UUID, targets: PolicyTargets | None
) -> list[Rollout]:
    """The rollouts of a policy, and those for the same groups and devices, locked, oldest first.

    Args:
        connection: the org's counter is locked.
        tenant_id: the organisation.
        policy_id: the policy.
        targets: for which others count; `None` for those of the policy alone.
    """
    rows = await connection.fetch(
        f"SELECT {_ROLLOUT} WHERE r.tenant_id = $1 AND (r.live OR r.state = ANY ($4))"
        " AND (r.policy_id = $2 OR ($3::uuid[] = '{}' AND r.group_ids || r.device_ids = '{}')"
        " OR (r.group_ids || r.device_ids) && $3) ORDER BY r.id FOR UPDATE OF r",
        tenant_id,
        policy_id,
        None if targets is None else list(targets.ids),
        _OPEN,
    )
    return [_rollout(row) for row in rows]


async def live(connection: Connection, tenant_id: UUID) -> list[Rollout]:
    """The rollouts of an organisation that are open or that deliveries look at, locked."""
    rows = await connection.fetch(
        f"SELECT {_ROLLOUT} WHERE r.tenant_id = $1 AND (r.live OR r.state = ANY ($2))"
        " ORDER BY r.id FOR UPDATE OF r",
        tenant_id,
        _OPEN,
    )
    return [_rollout(row) for row in rows]


async def insert(connection: Connection, rollout: Rollout) -> None:
    """Stores a new rollout."""
    await connection.execute(
        "INSERT INTO policy.rollout (id, tenant_id, policy_id, version, group_ids, device_ids,"
        " base, plan, note, urgent, salt, state, created_at, created_by, created_by_name,"
        " starts_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15,"
        " $16)",
        rollout.id,
        rollout.tenant_id,
        rollout.policy_id,
        rollout.version,
        list(rollout.targets.group_ids),
        list(rollout.targets.device_ids),
        rollout.base,
        rollout.plan.text(),
        rollout.note,
        rollout.urgent,
        rollout.salt,
        rollout.state,
        rollout.created_at,
        rollout.created_by,
        rollout.created_by_name,
        rollout.starts_at,
    )


async def update(connection: Connection, changed: Rollout) -> None:
    """Stores what became of a rollout; the row has to be locked."""
    await connection.execute(
        "UPDATE policy.rollout SET state = $3, reason = $4, detail = $5, batch = $6,"
        " batch_opened_at = $7, approved_batch = $8, below = $9, open_groups = $10, serves = $11,"
        " holds = $12, live = $13, counts = $14, approved_by = $15, approved_by_name = $16,"
        " ended_at = $17, revision = $18, served_for = $19, serving_since = $20,"
        " suspected_at = $21, changed_xid = pg_current_xact_id()"
        " WHERE id = $1 AND tenant_id = $2",
        changed.id,
        changed.tenant_id,
        changed.state,
        changed.reason,
        changed.detail,
        changed.batch,
        changed.batch_opened_at,
        changed.approved_batch,
        changed.below,
        list(changed.open_groups),
        changed.serves,
        changed.holds,
        changed.live,
        None if changed.counts is None else json.dumps(asdict(changed.counts)),
        changed.approved_by,
        changed.approved_by_name,
        changed.ended_at,
        changed.revision,
        changed.served_for,
        changed.serving_since,
        changed.suspected_at,
    )


async def write_look(connection: Connection, looked: Rollout) -> None:
    """Stores what was counted, which is no change of the rollout."""
    await connection.execute(
        "UPDATE policy.rollout SET counts = $3, suspected_at = $4 WHERE id = $1 AND tenant_id = $2",
        looked.id,
        looked.tenant_id,
        None if looked.counts is None else json.dumps(asdict(looked.counts)),
        looked.suspected_at,
    )


async def base_of(connection: Connection, tenant_id: UUID, targets: PolicyTargets) -> str:
    """Which versions are in force where a version is to come, as text."""
    rows = await connection.fetch(
        "SELECT b.target_id AS whose, b.version FROM policy.bindings b WHERE b.tenant_id = $1"
        " AND b.target_id = ANY ($2) AND b.version IS NOT NULL"
        " UNION ALL SELECT a.tenant_id, a.version FROM policy.assignments a"
        " WHERE a.tenant_id = $1 AND $2::uuid[] = '{}' AND a.version IS NOT NULL"
        " ORDER BY whose",
        tenant_id,
        list(targets.ids),
    )
    return json.dumps([[str(row["whose"]), row["version"]] for row in rows])


# The worker


async def take(connection: Connection, seconds: float) -> list[Rollout]:
    """Those rollouts that nobody looked at for some seconds; others leave them alone then.

    Those at their end, whose devices keep what they have, need a look in ten minutes only.
    """
    rows = await connection.fetch(
        "WITH taken AS (UPDATE policy.rollout SET looked_at = now() WHERE id IN (SELECT t.id"
        " FROM policy.rollout t WHERE (t.live OR t.state = ANY ($1))"
        " AND t.looked_at <= now() - CASE WHEN t.state = ANY ($1) OR t.state = 'ROLLED_BACK'"
        " THEN $2::interval ELSE interval '10 minutes' END"
        " ORDER BY t.looked_at LIMIT 1000 FOR UPDATE SKIP LOCKED) RETURNING id)"
        f" SELECT {_ROLLOUT} WHERE r.id IN (SELECT t.id FROM taken t) ORDER BY r.id",
        _OPEN,
        timedelta(seconds=seconds),
    )
    return [_rollout(row) for row in rows]


_IN_USE: Final = (
    " JOIN policy.devices d ON d.device_id = o.device_id AND d.tenant_id = o.tenant_id"
    " AND d.status IN ('active', 'prepared')"
    # One that falls short of a gate gets something else.
    " AND NOT EXISTS (SELECT FROM policy.restricted_device x"
    " WHERE x.device_id = o.device_id AND x.gate_id IS NOT NULL)"
)
_FAILED: Final = (
    "o.delivered_at IS NOT NULL AND o.applied_at IS NULL"
    f" AND (o.deliveries > {MOST_DELIVERIES} OR o.deliveries > 1 AND o.online >= $3::interval)"
)
_SINCE: Final = "greatest(o.met_at, o.delivered_at)"
_POLLED: Final = f"o.seen_at >= {_SINCE} + interval '1 minute'"
_SILENT: Final = (
    f"o.seen_at < $4::timestamptz AND (NOT {_POLLED} OR o.seen_at < $4 - interval '1 day')"
)
"""Of devices with a version, and of those without it alike."""
_STATE: Final = (
    "CASE WHEN o.delivered_at IS NULL THEN 'WAITING'"
    " WHEN o.returned_at IS NOT NULL THEN 'RETURNED'"
    f" WHEN {_SILENT} THEN 'LOST'"
    f" WHEN {_FAILED} THEN 'FAILED'"
    " WHEN o.applied_at IS NOT NULL THEN 'APPLIED' ELSE 'DELIVERED' END"
)


async def count(connection: Connection, rollout: Rollout, now: datetime) -> Counts:
    """What was seen of the devices of a rollout that are in use."""
    row = await connection.fetchrow(
        "WITH o AS (SELECT o.*, o.delivered_at IS NOT NULL AND NOT o.excused AS served,"
        f" o.seen_at >= $5 AND {_SINCE} < $4 AS is_recent, {_SILENT} AS is_silent,"
        f" o.applied_at IS NOT NULL OR {_POLLED} AS polled"
        f" FROM policy.rollout_device o{_IN_USE} WHERE o.rollout_id = $1 AND o.tenant_id = $2)"
        " SELECT count(*) FILTER (WHERE o.served) AS served,"
        " count(*) FILTER (WHERE o.served AND o.applied_at IS NOT NULL) AS applied,"
        f" count(*) FILTER (WHERE o.served AND {_FAILED}) AS failed,"
        " count(*) FILTER (WHERE o.served AND o.trouble) AS trouble,"
        " count(*) FILTER (WHERE o.served AND o.is_silent) AS lost,"
        " count(*) FILTER (WHERE o.served AND o.polled) AS polled,"
        " count(*) FILTER (WHERE o.served AND o.is_recent) AS recent,"
        " count(*) FILTER (WHERE o.served AND o.is_recent AND o.is_silent) AS recent_lost,"
        " count(*) FILTER (WHERE o.delivered_at IS NULL AND o.is_recent) AS control,"
        " count(*) FILTER (WHERE o.delivered_at IS NULL AND o.is_recent AND o.is_silent)"
        " AS control_lost, count(*) FILTER (WHERE o.excused) AS excused,"
        " count(*) FILTER (WHERE o.delivered_at IS NULL AND o.seen_at >= $8) AS waiting,"
        " count(*) FILTER (WHERE o.returned_at IS NOT NULL AND o.delivered_at IS NOT NULL)"
        " AS returned, NOT bool_or(o.served AND NOT o.trouble AND o.delivered_at > $6"
        " AND (o.asked_at IS NULL OR o.asked_at < $7)) AS trouble_known FROM o",
        rollout.id,
        rollout.tenant_id,
        rollout.plan.health.confirm_within,
        now - SILENT_AFTER,
        rollout.batch_opened_at or now,
        now - _ASKED_FOR,
        now - _ANSWER_HOLDS,
        now - _WAITS,
    )
    assert row is not None
    # With no device there is nothing to know.
    return Counts(**dict(row) | {"trouble_known": row["trouble_known"] is not False})


async def devices(
    connection: Connection,
    rollout: Rollout,
    now: datetime,
    state: str,
    after: UUID | None,
    limit: int,
) -> Page[RolloutDevice, UUID]:
    """How devices of a rollout do that are in use, by their ids.

    Args:
        state: only those in it; all when empty.
    """
    rows = await connection.fetch(
        "SELECT f.* FROM (SELECT o.device_id, o.trouble, o.seen_at, o.delivered_at, o.applied_at,"
        f" {_STATE} AS state FROM policy.rollout_device o{_IN_USE}"
        " WHERE o.rollout_id = $1 AND o.tenant_id = $2) AS f"
        " WHERE ($5 = '' OR f.state = $5) AND ($6::uuid IS NULL OR f.device_id > $6)"
        " ORDER BY f.device_id LIMIT $7",
        rollout.id,
        rollout.tenant_id,
        rollout.plan.health.confirm_within,
        now - SILENT_AFTER,
        state,
        after,
        limit + 1,
    )
    found = [RolloutDevice(**dict(row) | {"state": DeviceState(row["state"])}) for row in rows]
    return Page.of(found, limit, lambda one: one.device_id)


async def unwell(
    connection: Connection, rollout: Rollout, now: datetime, limit: int
) -> tuple[UUID, ...]:
    """Devices of a rollout that failed, are lost or tell of trouble, by their ids."""
    rows = await connection.fetch(
        f"SELECT o.device_id FROM policy.rollout_device o{_IN_USE}"
        " WHERE o.rollout_id = $1 AND o.tenant_id = $2 AND NOT o.excused"
        f" AND ({_STATE} IN ('FAILED', 'LOST') OR o.trouble AND o.delivered_at IS NOT NULL)"
        " ORDER BY o.device_id LIMIT $5",
        rollout.id,
        rollout.tenant_id,
        rollout.plan.health.confirm_within,
        now - SILENT_AFTER,
        limit,
    )
    return tuple(row["device_id"] for row in rows)


async def to_ask(
    connection: Connection, rollout: Rollout, now: datetime, limit: int
) -> list[tuple[UUID, datetime]]:
    """Devices whose failures are to be asked for, with when they got the version.

    Those come first that were never asked for, or the longest time ago.
    """
    rows = await connection.fetch(
        "SELECT o.device_id, o.delivered_at FROM policy.rollout_device o"
        " WHERE o.rollout_id = $1 AND o.tenant_id = $2 AND o.delivered_at > $3"
        " AND NOT o.trouble AND NOT o.excused AND (o.asked_at IS NULL OR o.asked_at < $4)"
        " ORDER BY o.asked_at NULLS FIRST LIMIT $5",
        rollout.id,
        rollout.tenant_id,
        now - _ASKED_FOR,
        now - _ASK_AGAIN,
        limit,
    )
    return [(row["device_id"], row["delivered_at"]) for row in rows]


async def note_answers(
    connection: Connection,
    rollout: Rollout,
    asked: Collection[UUID],
    troubled: Collection[UUID],
    now: datetime,
) -> None:
    """Notes of devices that were asked for which of them tell of failures since."""
    await connection.execute(
        "UPDATE policy.rollout_device SET asked_at = $5, trouble = device_id = ANY ($4)"
        " WHERE rollout_id = $1 AND tenant_id = $2 AND device_id = ANY ($3)",
        rollout.id,
        rollout.tenant_id,
        list(asked),
        list(troubled),
        now,
    )


async def excuse(connection: Connection, rollout: Rollout) -> None:
    """Lets all that devices did so far count no more."""
    await connection.execute(
        "UPDATE policy.rollout_device SET excused = true WHERE rollout_id = $1"
        " AND tenant_id = $2 AND delivered_at IS NOT NULL",
        rollout.id,
        rollout.tenant_id,
    )


async def registered(
    connection: Connection, tenant_id: UUID, after: UUID | None, limit: int
) -> list[tuple[UUID, tuple[UUID, ...]]]:
    """Devices of an organisation that are in use, with their groups, by their ids."""
    rows = await connection.fetch(
        "SELECT d.device_id, coalesce(m.group_ids, '{}') AS group_ids FROM policy.devices d"
        " LEFT JOIN policy.memberships m ON m.device_id = d.device_id"
        " WHERE d.tenant_id = $1 AND d.status IN ('active', 'prepared')"
        " AND NOT EXISTS (SELECT FROM policy.restricted_device x"
        " WHERE x.device_id = d.device_id AND x.gate_id IS NOT NULL)"
        " AND ($2::uuid IS NULL OR d.device_id > $2) ORDER BY d.device_id LIMIT $3",
        tenant_id,
        after,
        limit,
    )
    return [(row["device_id"], tuple(row["group_ids"])) for row in rows]


async def kinds(connection: Connection, tenant_id: UUID, targets: PolicyTargets) -> list[Kind]:
    """The devices of an organisation in use that something is for, by their groups; those that fall
    short of an enforced gate are not among them.

    Args:
        targets: the groups and devices; none for all devices.
    """
    rows = await connection.fetch(
        "SELECT coalesce(m.group_ids, '{}') AS group_ids, count(*) AS devices"
        " FROM policy.devices d LEFT JOIN policy.memberships m"
        " ON m.device_id = d.device_id AND m.tenant_id = d.tenant_id"
        " WHERE d.tenant_id = $1 AND d.status IN ('active', 'prepared')"
        " AND NOT EXISTS (SELECT FROM policy.restricted_device x"
        " WHERE x.device_id = d.device_id AND x.gate_id IS NOT NULL)"
        " AND ($2::uuid[] = '{}' OR d.device_id = ANY ($2) OR m.group_ids && $2)"
        " GROUP BY 1 ORDER BY 1",
        tenant_id,
        list(targets.ids),
    )
    return [Kind(frozenset(row["group_ids"]), row["devices"]) for row in rows]


async def forget_devices(connection: Connection, now: datetime) -> None:
    """Forgets what was seen of devices long after a rollout ended, and how fast they got it."""
    await connection.execute(
        "DELETE FROM policy.rollout_pace o USING policy.rollout r WHERE r.id = o.rollout_id"
        " AND NOT r.live"
    )
    await connection.execute(
        "DELETE FROM policy.rollout_device o USING policy.rollout r WHERE r.id = o.rollout_id"
        " AND NOT r.live AND r.ended_at < $1",
        now - 3 * MOST_WATCHED,
    )


async def forget_profiles(connection: Connection, now: datetime) -> None:
    """Forgets what was put together for rollouts that deliveries do not look at any more.

    The numbers stay what they stand for: devices keep them.
    """
    await connection.execute(
        "DELETE FROM policy.profiles p USING policy.rollout r WHERE r.tenant_id = p.tenant_id"
        " AND r.id = ANY (p.targets) AND NOT r.live AND r.ended_at < $1",
        now - _PROFILES_KEPT,
    )


async def count_states(connection: Connection) -> dict[str, int]:
    """How many rollouts are in which state, of those that are not at their end."""
    rows = await connection.fetch(
        "SELECT r.state, count(*) AS found FROM policy.rollout r WHERE r.state = ANY ($1)"
        " GROUP BY r.state",
        _OPEN,
    )
    return {row["state"]: row["found"] for row in rows}


# How tenants publish


async def settings(connection: Connection, tenant_ids: Sequence[UUID]) -> dict[UUID, Settings]:
    """What tenants said of publishing."""
    rows = await connection.fetch(
        "SELECT s.tenant_id, s.time_zone, s.require_approval, s.freezes, s.default_plan,"
        " s.updated_at"
        " FROM policy.setting s WHERE s.tenant_id = ANY ($1)",
        list(tenant_ids),
    )
    return {row["tenant_id"]: _settings(row) for row in rows}


def _settings(row: Mapping[str, Any]) -> Settings:
    return Settings(
        row["tenant_id"],
        row["time_zone"],
        row["require_approval"],
        tuple(Freeze.read(one) for one in json.loads(row["freezes"])),
        Plan.read(row["default_plan"]) if row["default_plan"] else None,
        row["updated_at"],
    )


async def lock_settings(connection: Connection, tenant_id: UUID) -> Settings:
    """What a tenant said of publishing, as nobody else changes it."""
    # There may be no row to lock.
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtext('policy:setting'), hashtext($1))", str(tenant_id)
    )
    return (await settings(connection, [tenant_id])).get(tenant_id, Settings(tenant_id))


async def write_settings(connection: Connection, found: Settings) -> None:
    """Stores what a tenant said of publishing."""
    await connection.execute(
        "INSERT INTO policy.setting (tenant_id, time_zone, require_approval, freezes, updated_at,"
        " default_plan) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (tenant_id) DO UPDATE"
        " SET time_zone = excluded.time_zone, require_approval = excluded.require_approval,"
        " freezes = excluded.freezes, updated_at = excluded.updated_at,"
        " default_plan = excluded.default_plan",
        found.tenant_id,
        found.time_zone,
        found.require_approval,
        json.dumps([one.stored() for one in found.freezes]),
        found.updated_at,
        "" if found.default_plan is None else found.default_plan.text(),
    )
