"""Erasure in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from servicekit.data.postgres import STATEMENT_SECONDS, Connection, columns

MOST_COUNTED: Final = 100_000
_REPORTS_END_SECONDS: Final = 2 * STATEMENT_SECONDS


async def erase_events(connection: Connection, tenant_id: UUID, most: int) -> int:
    """Deletes some published events of an organisation that is being deleted; answers how many."""
    rows: int = await connection.fetchval(
        "SELECT telemetry.erase_events($1, NULL, $2)", tenant_id, most
    )
    return rows


async def has_events(connection: Connection, tenant_id: UUID) -> bool:
    """Whether an organisation has any events."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM telemetry.event WHERE tenant_id = $1)", tenant_id
    )
    return found


@dataclass(frozen=True, slots=True)
class DeletedDevice:
    """A device that was deleted and may still have events here."""

    id: UUID
    tenant_id: UUID


async def note_deleted(connection: Connection, devices: Sequence[tuple[UUID, UUID]]) -> None:
    """Deletes the state of devices (id, organisation), and notes that their events go next.

    From then on nothing of them is stored (`where.NOT_DELETED`); reports that are being written are
    found later.
    """
    rows = columns(devices)
    await connection.execute(
        "INSERT INTO telemetry.deleted_device AS d (device_id, tenant_id)"
        " SELECT * FROM unnest($1::uuid[], $2::uuid[]) ON CONFLICT (device_id) DO UPDATE"
        " SET tenant_id = excluded.tenant_id, heard_at = now(), back_at = NULL, erased_at = NULL"
        " WHERE d.back_at IS NOT NULL",
        *rows,
    )
    await connection.execute("DELETE FROM telemetry.device WHERE id = ANY ($1)", rows[0])
    await connection.execute("DELETE FROM telemetry.storage_use WHERE subject = ANY ($1)", rows[0])
    await connection.execute(
        "DELETE FROM telemetry.restricted_device WHERE device_id = ANY ($1)", rows[0]
    )


async def note_back(connection: Connection, device_ids: Sequence[UUID], at: datetime) -> None:
    """Lets the service store what devices report that may have been deleted before."""
    await connection.execute(
        "UPDATE telemetry.deleted_device SET back_at = $2"
        " WHERE device_id = ANY ($1) AND back_at IS NULL AND erased_at IS NULL",
        device_ids,
        at,
    )
    await connection.execute(
        "DELETE FROM telemetry.deleted_device WHERE device_id = ANY ($1) AND erased_at IS NOT NULL",
        device_ids,
    )


async def deleted_devices(connection: Connection, after: UUID, limit: int) -> list[DeletedDevice]:
    """Some devices that may still have events, by their ids."""
    rows = await connection.fetch(
        "SELECT device_id, tenant_id FROM telemetry.deleted_device"
        " WHERE erased_at IS NULL AND device_id > $1"
        " ORDER BY device_id LIMIT $2",
        after,
        limit,
    )
    return [DeletedDevice(row["device_id"], row["tenant_id"]) for row in rows]


async def erase_device(connection: Connection, device: DeletedDevice, most: int) -> int:
    """Deletes some events of a device, quarantined ones too, and its state; answers how many."""
    # Locked, so that it does not come back meanwhile.
    row = await connection.fetchrow(
        "SELECT back_at FROM telemetry.deleted_device WHERE device_id = $1 FOR UPDATE", device.id
    )
    if row is None:
        return 0
    if row["back_at"] is None:
        await connection.execute("DELETE FROM telemetry.device WHERE id = $1", device.id)
        await connection.execute("DELETE FROM telemetry.storage_use WHERE subject = $1", device.id)
        await connection.execute(
            "DELETE FROM telemetry.restricted_device WHERE device_id = $1", device.id
        )
    rows: int = await connection.fetchval(
        "SELECT telemetry.erase_events($1, $2, $3)", device.tenant_id, device.id, most
    )
    if rows:
        return rows
    done: str = await connection.execute(
        "DELETE FROM telemetry.quarantined_event WHERE id IN (SELECT q.id"
        " FROM telemetry.quarantined_event q JOIN telemetry.deleted_device d USING (device_id)"
        " WHERE q.device_id = $1 AND q.tenant_id = $2"
        " AND q.received_at <= coalesce(d.back_at, 'infinity') LIMIT $3) AND device_id = $1",
        device.id,
        device.tenant_id,
        most,
    )
    return int(done.rsplit(" ", 1)[1])


async def settle_deleted(connection: Connection, device: DeletedDevice) -> None:
    """Notes that a deleted device has no events any more, if that is so; forgets one that is back.

    Not before reports have ended that were being written when the service heard of the deletion.
    """
    await connection.execute(
        "UPDATE telemetry.deleted_device d SET erased_at = now() WHERE d.device_id = $1"
        f" AND d.heard_at < now() - interval '{_REPORTS_END_SECONDS} seconds' AND NOT EXISTS"
        " (SELECT FROM telemetry.event e WHERE e.device_id = $1 AND e.tenant_id = $2"
        " AND e.received_at <= coalesce(d.back_at, 'infinity'))",
        device.id,
        device.tenant_id,
    )
    await connection.execute(
        "DELETE FROM telemetry.deleted_device"
        " WHERE device_id = $1 AND erased_at IS NOT NULL AND back_at IS NOT NULL",
        device.id,
    )


async def count_events(connection: Connection, tenant_ids: Sequence[UUID]) -> int:
    """How many events organisations have, up to `MOST_COUNTED`."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM"
        " (SELECT FROM telemetry.event WHERE tenant_id = ANY ($1) LIMIT $2) AS e",
        tenant_ids,
        MOST_COUNTED,
    )
    return found
