"""The registry: the devices, and what changes them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import asyncpg

from servicekit.feed import Cursor, Page, read_page
from servicekit.postgres import Connection, Scope, columns
from services.enrollment.domain.types import Device, Hardware, Status

_DEVICE: Final = (
    "d.id, d.tenant_id, d.serial, d.model, d.cpu_model, d.cpu_count, d.total_ram_bytes,"
    " d.has_tpm, d.status, d.token_version, d.enrollment_token_id, d.fingerprint, d.created_at,"
    " d.enrolled_at, d.decommissioned_at, d.reenrollment_allowed_until,"
    " d.reenrollment_refused_at, d.refusal_told_at"
)


def _device(row: asyncpg.Record) -> Device:
    return Device(
        id=row["id"],
        tenant_id=row["tenant_id"],
        serial=row["serial"],
        hardware=Hardware(
            row["model"],
            row["cpu_model"],
            row["cpu_count"],
            int(row["total_ram_bytes"]),
            row["has_tpm"],
        ),
        status=Status(row["status"]),
        token_version=row["token_version"],
        enrollment_token_id=row["enrollment_token_id"],
        fingerprint=row["fingerprint"],
        created_at=row["created_at"],
        enrolled_at=row["enrolled_at"],
        decommissioned_at=row["decommissioned_at"],
        reenrollment_allowed_until=row["reenrollment_allowed_until"],
        reenrollment_refused_at=row["reenrollment_refused_at"],
        refusal_told_at=row["refusal_told_at"],
    )


async def device(
    connection: Connection, scope: Scope, device_id: UUID, *, for_update: bool = False
) -> Device | None:
    """One device of the scope."""
    lock = " FOR NO KEY UPDATE" if for_update else ""
    row = await connection.fetchrow(
        f"SELECT {_DEVICE} FROM enrollment.device d"
        f" WHERE d.id = $1 AND ($2::uuid[] IS NULL OR d.tenant_id = ANY ($2)){lock}",
        device_id,
        scope.tenant_ids,
    )
    return _device(row) if row else None


async def list_devices(
    connection: Connection, scope: Scope, status: str, before: UUID | None, limit: int
) -> list[Device]:
    """Devices of the scope (with a status, unless it is empty), newest first."""
    rows = await connection.fetch(
        f"SELECT {_DEVICE} FROM enrollment.device d"
        " WHERE ($1::uuid[] IS NULL OR d.tenant_id = ANY ($1)) AND ($2 = '' OR d.status = $2)"
        " AND ($3::uuid IS NULL OR d.id < $3) ORDER BY d.id DESC LIMIT $4",
        scope.tenant_ids,
        status,
        before,
        limit,
    )
    return [_device(row) for row in rows]


CHANGING: Final = "SELECT changed_xid FROM enrollment.device"
"""What the feed of devices tells of (`servicekit.changes`)."""


async def changed_devices(
    connection: Connection, cursor: Cursor, limit: int, *, restricted_only: bool
) -> tuple[Page, list[Device]]:
    """The feed of devices; restricted ones are those of which some token is refused."""
    # The words of the partial index `device_restrictions`.
    restricted = (
        " AND (d.status IN ('decommissioned', 'rejected') OR d.token_version > 1)"
        if restricted_only
        else ""
    )
    page = await read_page(
        connection,
        f"SELECT d.changed_xid::text AS changed_xid, d.id AS key, {_DEVICE}"
        " FROM enrollment.device d"
        f" WHERE (d.changed_xid, d.id) > ($1::text::xid8, $2){restricted}"
        " ORDER BY d.changed_xid, d.id LIMIT $3",
        cursor,
        limit,
    )
    return page, [_device(row) for row in page.rows]


async def activate_prepared(
    connection: Connection, called: Sequence[tuple[UUID, int]], at: datetime
) -> list[Device]:
    """Makes active those that are prepared of the devices that called.

    `called` names devices with the generations of their tokens; a token from before a device was
    prepared again does not count. Answers the devices that became active.
    """
    rows = await connection.fetch(
        "UPDATE enrollment.device d SET status = 'active', enrolled_at = $3"
        " FROM unnest($1::uuid[], $2::integer[]) AS u(id, token_version)"
        " WHERE d.id = u.id AND d.status = 'prepared' AND d.token_version <= u.token_version"
        f" RETURNING {_DEVICE}",
        *columns(called),
        at,
    )
    return [_device(row) for row in rows]


async def recover(
    connection: Connection, called: Sequence[tuple[UUID, UUID, int]], at: datetime
) -> list[Device]:
    """Registers devices that called and are not known; answers those.

    `called` names each device once, with its organisation and its token's generation. A token of a
    higher generation than is known ends the lower ones. Either comes from before a restore.
    """
    rows = await connection.fetch(
        "SELECT u.id, u.tenant_id, u.token_version, d.id IS NULL AS missing"
        " FROM unnest($1::uuid[], $2::uuid[], $3::integer[]) AS u(id, tenant_id, token_version)"
        " LEFT JOIN enrollment.device d ON d.id = u.id"
        " WHERE d.id IS NULL OR d.token_version < u.token_version ORDER BY u.id",
        *columns(called),
    )
    known = [(row["id"], row["token_version"]) for row in rows if not row["missing"]]
    if known:
        await connection.execute(
            "UPDATE enrollment.device d"
            " SET token_version = greatest(d.token_version, u.token_version)"
            " FROM unnest($1::uuid[], $2::integer[]) AS u(id, token_version) WHERE d.id = u.id",
            *columns(known),
        )
    devices = [
        Device(
            id=row["id"],
            tenant_id=row["tenant_id"],
            # The device says its own only when it enrolls.
            serial=f"recovered:{row['id']}",
            hardware=Hardware(),
            status=Status.ACTIVE,
            token_version=row["token_version"],
            enrollment_token_id=None,
            fingerprint=None,
            created_at=at,
            enrolled_at=at,
        )
        for row in rows
        if row["missing"]
    ]
    await insert_devices(connection, devices)
    return devices


async def applied_cursor(connection: Connection) -> str:
    """How far policy's feed was read; empty for not at all."""
    cursor: str | None = await connection.fetchval("SELECT cursor FROM enrollment.applied_cursor")
    return cursor or ""


async def keep_applied_cursor(connection: Connection, cursor: str) -> None:
    """Notes how far policy's feed was read."""
    await connection.execute(
        "INSERT INTO enrollment.applied_cursor (cursor) VALUES ($1)"
        " ON CONFLICT (only_row) DO UPDATE SET cursor = excluded.cursor",
        cursor,
    )


# Admission, many devices in one statement


async def lock_devices(
    connection: Connection, pairs: Collection[tuple[UUID, str]]
) -> dict[tuple[UUID, str], Device]:
    """The devices with these (organisation, serial), locked."""
    if not pairs:
        return {}
    rows = await connection.fetch(
        f"SELECT {_DEVICE} FROM enrollment.device d"
        " JOIN unnest($1::uuid[], $2::text[]) AS u(tenant_id, serial)"
        " ON d.tenant_id = u.tenant_id AND d.serial = u.serial"
        " ORDER BY d.id FOR NO KEY UPDATE OF d",
        *columns(list(pairs)),
    )
    return {(device.tenant_id, device.serial): device for device in map(_device, rows)}


_WRITTEN: Final = (
    ("id", "uuid"),
    ("tenant_id", "uuid"),
    ("serial", "text"),
    ("model", "text"),
    ("cpu_model", "text"),
    ("cpu_count", "integer"),
    ("total_ram_bytes", "numeric"),
    ("has_tpm", "boolean"),
    ("status", "text"),
    ("token_version", "integer"),
    ("enrollment_token_id", "uuid"),
    ("fingerprint", "bytea"),
    ("created_at", "timestamptz"),
    ("enrolled_at", "timestamptz"),
    ("decommissioned_at", "timestamptz"),
    ("reenrollment_allowed_until", "timestamptz"),
    ("reenrollment_refused_at", "timestamptz"),
    ("refusal_told_at", "timestamptz"),
)
_NAMES: Final = ", ".join(name for name, _ in _WRITTEN)
_UNNEST: Final = ", ".join(f"${n}::{kind}[]" for n, (_, kind) in enumerate(_WRITTEN, 1))
_CHANGES: Final = ", ".join(f"{name} = u.{name}" for name, _ in _WRITTEN[3:])


def _values(device: Device) -> tuple[Any, ...]:
    hardware = device.hardware
    return (
        device.id,
        device.tenant_id,
        device.serial,
        hardware.model,
        hardware.cpu_model,
        hardware.cpu_count,
        Decimal(hardware.total_ram_bytes),
        hardware.has_tpm,
        device.status.value,
        device.token_version,
        device.enrollment_token_id,
        device.fingerprint,
        device.created_at,
        device.enrolled_at,
        device.decommissioned_at,
        device.reenrollment_allowed_until,
        device.reenrollment_refused_at,
        device.refusal_told_at,
    )


class SerialTakenError(Exception):
    """Another transaction has just registered one of the serial numbers; read again."""


async def insert_devices(connection: Connection, devices: Sequence[Device]) -> None:
    """Adds devices.

    Raises:
        SerialTakenError: when a serial number was registered since it was looked for.
    """
    if not devices:
        return
    try:
        await connection.execute(
            f"INSERT INTO enrollment.device ({_NAMES})"
            f" SELECT {_NAMES} FROM unnest({_UNNEST}) AS u({_NAMES})"
            # Two processes that meet wait for each other in one order.
            " ORDER BY u.tenant_id, u.serial",
            *columns([_values(device) for device in devices]),
        )
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name == "device_serial":
            raise SerialTakenError from error
        raise


async def update_devices(connection: Connection, devices: Sequence[Device]) -> None:
    """Writes all of known devices but what names them."""
    if devices:
        await connection.execute(
            f"UPDATE enrollment.device d SET {_CHANGES}"
            f" FROM unnest({_UNNEST}) AS u({_NAMES}) WHERE d.id = u.id",
            *columns([_values(device) for device in devices]),
        )
