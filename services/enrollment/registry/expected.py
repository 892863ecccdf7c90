"""Devices that are expected: administrators know them, and they have not enrolled yet.

They have no identity, so that no other service hears of them. When a machine with the serial number
enrolls in their organisation, it takes over their id and what is said of them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from servicekit.data.postgres import Connection, Scope, columns
from servicekit.serials import serial_key
from services.enrollment.registry.domain import Device, Hardware, Status
from services.enrollment.registry.labels import MOST_LABELS
from services.enrollment.registry.store import DEVICE, device_of

MOST_EXPECTED: Final = 100_000
"""Of an organisation."""
AS_DEVICE: Final = (
    "(SELECT e.id, e.tenant_id, e.serial, e.model, ''::text AS cpu_model, 0 AS cpu_count,"
    " 0::numeric AS total_ram_bytes, false AS has_tpm, 'expected'::text AS status,"
    " 1 AS token_version, NULL::uuid AS enrollment_token_id, NULL::bytea AS fingerprint,"
    " e.created_at, NULL::timestamptz AS enrolled_at, NULL::timestamptz AS decommissioned_at,"
    " NULL::timestamptz AS reenrollment_allowed_until,"
    " NULL::timestamptz AS reenrollment_refused_at, NULL::timestamptz AS refusal_told_at,"
    " NULL::text AS archived_status, NULL::timestamptz AS deleted_at, NULL::text AS deleted_by,"
    " e.serial_key, NULL::text AS reported_serial, NULL::text AS enrolled_from,"
    " NULL::timestamptz AS claimed_at, e.labels, e.asset_tag, e.note, '{}'::uuid[] AS group_ids,"
    " 1::bigint AS membership_revision, e.created_at AS groups_computed_at,"
    " NULL::text AS policy_key_id"
    " FROM enrollment.expected_device e)"
)
"""Expected devices with the columns of registered ones."""


def expected(device_id: UUID, tenant_id: UUID, serial: str, model: str, at: datetime) -> Device:
    """A device that is expected from now on."""
    return Device(
        id=device_id,
        tenant_id=tenant_id,
        serial=serial,
        hardware=Hardware(model=model),
        status=Status.EXPECTED,
        token_version=1,
        enrollment_token_id=None,
        fingerprint=None,
        created_at=at,
    )


def arriving(device: Device, known: Device | None) -> Device:
    """A device that has just come, with what was said of it when it was expected."""
    if known is None:
        return device
    return replace(
        device,
        id=known.id,
        labels=labelled(known.labels, device.labels),
        asset_tag=known.asset_tag,
        note=known.note,
        hardware=replace(device.hardware, model=device.hardware.model or known.hardware.model),
    )


def labelled(labels: Any, below: Any) -> dict[str, str]:
    """Labels, and under them those that others give, as far as there is room."""
    found = dict(labels)
    for key, value in sorted(below.items()):
        if len(found) < MOST_LABELS:
            found.setdefault(key, value)
    return dict(sorted(found.items()))


async def one(
    connection: Connection, scope: Scope, device_id: UUID, *, for_update: bool = False
) -> Device | None:
    """One expected device of the scope."""
    if for_update:
        await connection.execute(
            "SELECT FROM enrollment.expected_device WHERE id = $1 FOR UPDATE", device_id
        )
    row = await connection.fetchrow(
        f"SELECT {DEVICE} FROM {AS_DEVICE} AS d"
        " WHERE d.id = $1 AND ($2::uuid[] IS NULL OR d.tenant_id = ANY ($2))",
        device_id,
        scope.tenant_ids,
    )
    return device_of(row) if row else None


async def lock(
    connection: Connection, names: Collection[tuple[UUID, str]]
) -> dict[tuple[UUID, str], Device]:
    """Expected devices by organisation and key of the serial number, locked."""
    if not names:
        return {}
    asked = columns(list(names))
    await connection.execute(
        "SELECT FROM enrollment.expected_device e"
        " JOIN unnest($1::uuid[], $2::text[]) AS u (tenant_id, key)"
        " ON e.tenant_id = u.tenant_id AND e.serial_key = u.key ORDER BY e.id FOR UPDATE OF e",
        *asked,
    )
    rows = await connection.fetch(
        f"SELECT {DEVICE} FROM {AS_DEVICE} AS d"
        " JOIN unnest($1::uuid[], $2::text[]) AS u (tenant_id, key)"
        " ON d.tenant_id = u.tenant_id AND d.serial_key = u.key",
        *asked,
    )
    found = map(device_of, rows)
    return {(device.tenant_id, serial_key(device.serial)): device for device in found}


async def lock_ids(connection: Connection, tenant_id: UUID, ids: Collection[UUID]) -> list[Device]:
    """Expected devices of an organisation by id, locked."""
    if not ids:
        return []
    await connection.execute(
        "SELECT FROM enrollment.expected_device WHERE tenant_id = $1 AND id = ANY ($2)"
        " ORDER BY id FOR UPDATE",
        tenant_id,
        list(ids),
    )
    rows = await connection.fetch(
        f"SELECT {DEVICE} FROM {AS_DEVICE} AS d WHERE d.tenant_id = $1 AND d.id = ANY ($2)",
        tenant_id,
        list(ids),
    )
    return [device_of(row) for row in rows]


async def count(connection: Connection, tenant_id: UUID) -> int:
    """How many devices an organisation expects."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM enrollment.expected_device WHERE tenant_id = $1", tenant_id
    )
    return found


async def store(connection: Connection, devices: Sequence[Device]) -> None:
    """Adds expected devices, or writes all of those that are known."""
    if devices:
        await connection.execute(
            "INSERT INTO enrollment.expected_device AS e (id, tenant_id, serial, serial_key,"
            " model, labels, asset_tag, note, created_at)"
            " SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[],"
            " $6::jsonb[], $7::text[], $8::text[], $9::timestamptz[])"
            " ON CONFLICT (id) DO UPDATE SET model = excluded.model, labels = excluded.labels,"
            " asset_tag = excluded.asset_tag, note = excluded.note",
            *columns(
                [
                    (
                        device.id,
                        device.tenant_id,
                        device.serial,
                        serial_key(device.serial),
                        device.hardware.model,
                        json.dumps(dict(device.labels), ensure_ascii=False),
                        device.asset_tag,
                        device.note,
                        device.created_at,
                    )
                    for device in devices
                ]
            ),
        )


async def remove(connection: Connection, ids: Collection[UUID]) -> None:
    """Forgets expected devices: they have come, or come no more."""
    if ids:
        await connection.execute(
            "DELETE FROM enrollment.expected_device WHERE id = ANY ($1)", list(ids)
        )
