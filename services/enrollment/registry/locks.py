"""The devices that applications are about, locked until these are decided."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

from servicekit.data.postgres import Connection, columns
from servicekit.serials import serial_key
from services.enrollment.registry.domain import Device
from services.enrollment.registry.store import DEVICE, device_of

Name: TypeAlias = tuple[UUID, str]
"""What names a device: its organisation, and the key of its serial number."""


def name_of(device: Device) -> Name:
    """What names a device that has a serial number."""
    return device.tenant_id, device.serial_key or serial_key(device.serial)


async def lock_devices(
    connection: Connection, serials: Collection[tuple[UUID, str]]
) -> dict[tuple[UUID, str], Device]:
    """The devices with these (organisation, serial number), locked.

    In whatever spelling. Where several spellings are devices of their own, because they enrolled
    before spellings were compared, it is the one that is spelled so.
    """
    if not serials:
        return {}
    asked = [(tenant_id, serial, serial_key(serial)) for tenant_id, serial in serials]
    found = await _lock(
        connection,
        " JOIN unnest($1::uuid[], $2::text[]) AS u(tenant_id, key)"
        " ON d.tenant_id = u.tenant_id AND d.serial_key = u.key",
        list({(tenant_id, key) for tenant_id, _, key in asked}),
    )
    named = {name_of(device): device for device in found}
    answer = {
        (tenant_id, serial): device
        for tenant_id, serial, key in asked
        if (device := named.get((tenant_id, key))) is not None
    }
    others = [name for name, device in answer.items() if device.serial != name[1]]
    if others:
        found = await _lock(
            connection,
            " JOIN unnest($1::uuid[], $2::text[]) AS u(tenant_id, serial)"
            " ON d.tenant_id = u.tenant_id AND d.serial = u.serial",
            others,
        )
        answer |= {(device.tenant_id, device.serial): device for device in found}
    return answer


async def lock_named(
    connection: Connection, tenant_id: UUID, ids: Collection[UUID], keys: Collection[str]
) -> list[Device]:
    """Devices of an organisation by id, or by the key of the serial number, locked."""
    rows = await connection.fetch(
        f"SELECT {DEVICE} FROM enrollment.device d WHERE d.tenant_id = $1"
        " AND (d.id = ANY ($2) OR d.serial_key = ANY ($3)) ORDER BY d.id FOR NO KEY UPDATE",
        tenant_id,
        list(ids),
        list(keys),
    )
    return [device_of(row) for row in rows]


async def _lock(
    connection: Connection, which: str, names: Sequence[tuple[UUID, Any]], *more: Any
) -> list[Device]:
    rows = await connection.fetch(
        f"SELECT {DEVICE} FROM enrollment.device d{which} ORDER BY d.id FOR NO KEY UPDATE OF d",
        *columns(names),
        *more,
    )
    return [device_of(row) for row in rows]


async def lock_unnamed(
    connection: Connection, machines: Collection[tuple[UUID, bytes]], at: datetime
) -> list[Device]:
    """What is open to machines without serial numbers (organisation, fingerprint), locked.

    Those that wait or were refused, were approved and not handed out, or may enroll again.
    """
    if not machines:
        return []
    return await _lock(
        connection,
        " JOIN unnest($1::uuid[], $2::bytea[]) AS u(tenant_id, fingerprint)"
        " ON d.tenant_id = u.tenant_id AND d.fingerprint = u.fingerprint"
        " AND d.reported_serial IS NOT NULL AND (d.status IN ('pending', 'rejected')"
        " OR (d.status = 'active' AND d.claimed_at IS NULL) OR d.reenrollment_allowed_until > $3)",
        list(machines),
        at,
    )


async def give_back(connection: Connection, device: Device) -> None:
    """Makes an identity that was not answered after all free for the next attempt."""
    await connection.execute(
        "UPDATE enrollment.device SET claimed_at = NULL WHERE id = $1 AND claimed_at = $2",
        device.id,
        device.claimed_at,
    )
