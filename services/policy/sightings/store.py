"""The SQL of what is seen of devices while something is rolled out to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from servicekit.data.postgres import Connection, columns
from services.policy.deleted_devices import DELETED


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of a device since it was last written."""

    rollout_id: UUID
    device_id: UUID
    tenant_id: UUID
    seen_at: datetime
    deliveries: int
    applied: bool
    returned: bool


async def write_seen(connection: Connection, seen: Sequence[Seen]) -> None:
    """Stores what was seen of devices that are not deleted, in rollouts that are looked at."""
    # Of a rollout that was taken back only the devices matter that have it.
    await DELETED.keep_out(connection)
    await connection.execute(
        "INSERT INTO policy.rollout_device AS o (rollout_id, device_id, tenant_id, seen_at,"
        " met_at, delivered_at, deliveries, applied_at, returned_at)"
        " SELECT u.rollout_id, u.device_id, u.tenant_id, u.seen_at, u.seen_at,"
        " CASE WHEN u.applied OR u.deliveries > 0 THEN u.seen_at END, u.deliveries,"
        " CASE WHEN u.applied THEN u.seen_at END,"
        " CASE WHEN u.returned AND NOT r.holds THEN u.seen_at END"
        " FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::timestamptz[], $5::integer[],"
        " $6::boolean[], $7::boolean[]) AS u (rollout_id, device_id, tenant_id, seen_at,"
        " deliveries, applied, returned)"
        " JOIN policy.rollout r ON r.id = u.rollout_id AND r.tenant_id = u.tenant_id AND r.live"
        " AND (r.state <> 'ROLLED_BACK' OR EXISTS (SELECT FROM policy.rollout_device h"
        " WHERE h.rollout_id = r.id AND h.device_id = u.device_id AND h.delivered_at NOTNULL))"
        f" WHERE {DELETED.condition('u.device_id')} ORDER BY u.rollout_id, u.device_id"
        " ON CONFLICT (rollout_id, device_id) DO UPDATE SET"
        " seen_at = greatest(o.seen_at, excluded.seen_at),"
        " met_at = CASE WHEN o.met_at >= (SELECT coalesce(r.serving_since, '-infinity')"
        " FROM policy.rollout r WHERE r.id = o.rollout_id) THEN o.met_at ELSE excluded.seen_at END,"
        " online = o.online + CASE WHEN o.delivered_at NOTNULL AND o.applied_at IS NULL"
        " AND excluded.seen_at - o.seen_at BETWEEN '0' AND interval '10 minutes'"
        " AND (SELECT r.serves FROM policy.rollout r WHERE r.id = o.rollout_id)"
        " THEN excluded.seen_at - o.seen_at ELSE '0' END,"
        " delivered_at = coalesce(o.delivered_at, excluded.delivered_at),"
        " deliveries = o.deliveries + excluded.deliveries,"
        " applied_at = coalesce(o.applied_at, excluded.applied_at),"
        # One that got it again has it again.
        " returned_at = CASE WHEN excluded.delivered_at IS NOT NULL THEN NULL"
        " ELSE coalesce(o.returned_at, excluded.returned_at) END",
        *columns(
            [
                (
                    one.rollout_id,
                    one.device_id,
                    one.tenant_id,
                    one.seen_at,
                    one.deliveries,
                    one.applied,
                    one.returned,
                )
                for one in seen
            ]
        ),
    )


async def was_given(
    connection: Connection, tenant_id: UUID, rollout_id: UUID, device_id: UUID
) -> bool:
    """Whether a device was given what a rollout brings."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM policy.rollout_device WHERE rollout_id = $1 AND device_id = $2"
        " AND tenant_id = $3 AND delivered_at IS NOT NULL)",
        rollout_id,
        device_id,
        tenant_id,
    )
    return found


async def take_turn(
    connection: Connection, tenant_id: UUID, rollout_id: UUID, minute: datetime, most: int
) -> bool:
    """Takes one of the turns of a rollout in a minute; answers whether one was left.

    A process whose clock is behind counts into the latest minute that any of them began.
    """
    taken: bool | None = await connection.fetchval(
        "INSERT INTO policy.rollout_pace AS p (rollout_id, tenant_id, minute, taken)"
        " VALUES ($1, $2, $3, 1) ON CONFLICT (rollout_id) DO UPDATE SET"
        " minute = greatest(p.minute, excluded.minute),"
        " taken = CASE WHEN p.minute < excluded.minute THEN 1 ELSE p.taken + 1 END"
        " WHERE p.tenant_id = excluded.tenant_id AND (p.minute < excluded.minute OR p.taken < $4)"
        " RETURNING true",
        rollout_id,
        tenant_id,
        minute,
        most,
    )
    return taken is not None
