"""All of enrollment's SQL."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import asyncpg

from servicekit.errors import already_exists
from servicekit.feed import Cursor, Page, read_page
from servicekit.postgres import Connection, Scope, columns
from services.enrollment.domain.types import Device, EnrollmentToken, Hardware, Status

_TOKEN: Final = (
    "id, tenant_id, name, created_at, expires_at, max_uses, uses, serial_count, require_approval,"
    " last_used_at, revoked_at"
)
_DEVICE: Final = (
    "d.id, d.tenant_id, d.serial, d.model, d.cpu_model, d.cpu_count, d.total_ram_bytes,"
    " d.has_tpm, d.status, d.token_version, d.enrollment_token_id, d.fingerprint, d.created_at,"
    " d.enrolled_at, d.decommissioned_at, d.reenrollment_allowed_until,"
    " d.reenrollment_refused_at, d.refusal_told_at"
)


def _token(row: asyncpg.Record) -> EnrollmentToken:
    return EnrollmentToken(
        row["id"],
        row["tenant_id"],
        row["name"],
        row["created_at"],
        row["expires_at"],
        row["max_uses"],
        row["uses"],
        row["serial_count"],
        row["require_approval"],
        row["last_used_at"],
        row["revoked_at"],
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


# Enrollment tokens


async def insert_token(
    connection: Connection, token: EnrollmentToken, secret_hash: bytes, serials: Sequence[str]
) -> None:
    """Adds a token, with the serial numbers that it is limited to.

    Raises:
        DomainError: ALREADY_EXISTS when there is a token with this secret.
    """
    try:
        await connection.execute(
            "INSERT INTO enrollment.token (id, tenant_id, name, secret_hash, created_at,"
            " expires_at, max_uses, uses, serial_count, require_approval)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, 0, $8, $9)",
            token.id,
            token.tenant_id,
            token.name,
            secret_hash,
            token.created_at,
            token.expires_at,
            token.max_uses,
            len(serials),
            token.require_approval,
        )
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name == "token_secret":
            raise already_exists("SECRET_TAKEN", "there is a token with this secret") from error
        raise
    if serials:
        await connection.execute(
            "INSERT INTO enrollment.token_serial (token_id, serial, tenant_id)"
            " SELECT $1, serial, $2 FROM unnest($3::text[]) AS serial",
            token.id,
            token.tenant_id,
            serials,
        )


async def token(
    connection: Connection, scope: Scope, token_id: UUID, *, for_update: bool = False
) -> EnrollmentToken | None:
    """One token of the scope."""
    lock = " FOR NO KEY UPDATE" if for_update else ""
    row = await connection.fetchrow(
        f"SELECT {_TOKEN} FROM enrollment.token"
        f" WHERE id = $1 AND ($2::uuid[] IS NULL OR tenant_id = ANY ($2)){lock}",
        token_id,
        scope.tenant_ids,
    )
    return _token(row) if row else None


async def list_tokens(
    connection: Connection, scope: Scope, before: UUID | None, limit: int
) -> list[EnrollmentToken]:
    """Tokens of the scope, newest first, behind a position."""
    rows = await connection.fetch(
        f"SELECT {_TOKEN} FROM enrollment.token"
        " WHERE ($1::uuid[] IS NULL OR tenant_id = ANY ($1)) AND ($2::uuid IS NULL OR id < $2)"
        " ORDER BY id DESC LIMIT $3",
        scope.tenant_ids,
        before,
        limit,
    )
    return [_token(row) for row in rows]


async def serials_of(
    connection: Connection, scope: Scope, token_ids: Collection[UUID]
) -> dict[UUID, list[str]]:
    """The serial numbers that tokens are limited to, in order."""
    rows = await connection.fetch(
        "SELECT token_id, serial FROM enrollment.token_serial"
        " WHERE token_id = ANY ($1) AND ($2::uuid[] IS NULL OR tenant_id = ANY ($2))"
        " ORDER BY token_id, serial",
        list(token_ids),
        scope.tenant_ids,
    )
    found: dict[UUID, list[str]] = {}
    for row in rows:
        found.setdefault(row["token_id"], []).append(row["serial"])
    return found


async def revoke_token(connection: Connection, token_id: UUID, at: datetime) -> None:
    """Revokes a token."""
    await connection.execute(
        "UPDATE enrollment.token SET revoked_at = $2 WHERE id = $1", token_id, at
    )


# Admission, many devices in one statement


async def lock_tokens(
    connection: Connection, hashes: Collection[bytes]
) -> dict[bytes, EnrollmentToken]:
    """The tokens with these secrets, by hash; locked, so that their uses are counted one by one."""
    rows = await connection.fetch(
        f"SELECT {_TOKEN}, secret_hash FROM enrollment.token WHERE secret_hash = ANY ($1)"
        # One order of locks for all processes.
        " ORDER BY id FOR NO KEY UPDATE",
        list(hashes),
    )
    return {row["secret_hash"]: _token(row) for row in rows}


async def listed(
    connection: Connection, pairs: Collection[tuple[UUID, str]]
) -> set[tuple[UUID, str]]:
    """Those of the pairs (token, serial) that are on the tokens' lists."""
    if not pairs:
        return set()
    rows = await connection.fetch(
        "SELECT t.token_id, t.serial FROM enrollment.token_serial t"
        " JOIN unnest($1::uuid[], $2::text[]) AS u(token_id, serial)"
        " ON t.token_id = u.token_id AND t.serial = u.serial",
        *columns(list(pairs)),
    )
    return {(row["token_id"], row["serial"]) for row in rows}


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


async def count_uses(connection: Connection, uses: Mapping[UUID, int], at: datetime) -> None:
    """Adds to the tokens' uses (0 for a device that was counted before)."""
    if uses:
        await connection.execute(
            "UPDATE enrollment.token t SET uses = t.uses + u.more, last_used_at = $3"
            " FROM unnest($1::uuid[], $2::integer[]) AS u(id, more) WHERE t.id = u.id",
            *columns(list(uses.items())),
            at,
        )


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


# The registry


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


# The first start


async def first_token_made(connection: Connection) -> bool:
    """Whether the first start's token was made, once."""
    made: bool = await connection.fetchval("SELECT EXISTS (SELECT FROM enrollment.first_start)")
    return made


async def note_first_token(connection: Connection, token_id: UUID) -> None:
    """Notes that the first start's token was made."""
    await connection.execute("INSERT INTO enrollment.first_start (token_id) VALUES ($1)", token_id)


async def lock_first_start(connection: Connection) -> None:
    """Makes processes that start at the same time take turns."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('enrollment:first-start'))")
