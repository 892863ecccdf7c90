"""The SQL of what reports ask of devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from servicekit.data.postgres import Connection, columns

_ERROR_CHARACTERS: Final = 500
"""Of a last error; devices may report 64 Ki of them."""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a device reported last; before its first state most is not known."""

    id: UUID
    hostname: str
    last_seen_at: datetime | None
    policy_version: str
    update_status: str
    state_received_at: datetime | None
    health: str
    disk_free_percent: float | None
    battery_percent: float | None
    last_error: str


@dataclass(frozen=True, slots=True)
class Failures:
    """The failures that a device told of, on the day before a moment and since."""

    device_id: UUID
    before: int
    since: int


async def failures(
    connection: Connection, tenant_id: UUID, devices: Sequence[tuple[UUID, datetime]]
) -> list[Failures]:
    """The failures that devices of an organisation told of, of those that told of any.

    A device's clock tells when something occurred; when it arrived is what counts.
    """
    if not devices:
        return []
    rows = await connection.fetch(
        "SELECT u.device_id, count(*) FILTER (WHERE e.received_at < u.since) AS before,"
        " count(*) FILTER (WHERE e.received_at >= u.since) AS since"
        " FROM unnest($2::uuid[], $3::timestamptz[]) AS u (device_id, since)"
        " JOIN telemetry.event e ON e.device_id = u.device_id AND e.tenant_id = $1"
        " AND e.occurred_at >= u.since - interval '2 days'"
        " AND e.received_at >= u.since - interval '1 day' AND e.type LIKE '%.failure'"
        " GROUP BY u.device_id ORDER BY u.device_id",
        tenant_id,
        *columns(devices),
    )
    return [Failures(**row) for row in rows]


async def devices(
    connection: Connection, tenant_id: UUID, ids: Sequence[UUID], *, with_last_error: bool
) -> list[DeviceFacts]:
    """What some devices of an organisation reported, by id."""
    rows = await connection.fetch(
        "SELECT id, name, contact_at, policy_version, update_status, state_received_at, health,"
        " CASE WHEN disk_total_bytes > 0"
        " THEN (disk_free_bytes * 100 / disk_total_bytes)::double precision END AS disk_free,"
        " battery_percent, CASE WHEN $3 THEN left(last_error, $4) ELSE '' END AS last_error"
        " FROM telemetry.device WHERE tenant_id = $1 AND id = ANY ($2) ORDER BY id",
        tenant_id,
        ids,
        with_last_error,
        _ERROR_CHARACTERS,
    )
    return [
        DeviceFacts(
            id=row["id"],
            hostname=row["name"],
            last_seen_at=row["contact_at"],
            policy_version=row["policy_version"],
            update_status=row["update_status"],
            state_received_at=row["state_received_at"],
            health=row["health"],
            disk_free_percent=row["disk_free"],
            battery_percent=row["battery_percent"] if row["state_received_at"] else None,
            last_error=row["last_error"],
        )
        for row in rows
    ]
