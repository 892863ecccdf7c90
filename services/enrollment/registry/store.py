"""The registry: the devices, and what changes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope, columns
from servicekit.data.quarantine import place, readable
from servicekit.feeds.feed import Cursor, FeedPage, read_page
from servicekit.rpc.pagination import Page
from servicekit.serials import serial_key
from services.enrollment.groups.domain import Membership
from services.enrollment.groups.filter_sql import FilterSql
from services.enrollment.groups.filters import parse
from services.enrollment.registry.domain import Device, DeviceFilter, Hardware, Status

_FEED: Final = place("enrollment", "feed_devices")
MOST_FOUND: Final = 5_000
"""Devices of one look-up: each name may be in several organisations."""
DEVICE: Final = (
    "d.id, d.tenant_id, d.serial, d.model, d.cpu_model, d.cpu_count, d.total_ram_bytes,"
    " d.has_tpm, d.status, d.token_version, d.enrollment_token_id, d.fingerprint, d.created_at,"
    " d.enrolled_at, d.decommissioned_at, d.reenrollment_allowed_until,"
    " d.reenrollment_refused_at, d.refusal_told_at, d.archived_status,"
    " d.deleted_at, d.deleted_by, d.serial_key, d.reported_serial, d.enrolled_from, d.claimed_at,"
    " d.labels, d.asset_tag, d.note, d.group_ids, d.membership_revision,"
    " d.groups_computed_at IS NOT NULL AS groups_are_known, d.policy_key_id"
)


def device_of(row: asyncpg.Record) -> Device:
    """A device of a row with the columns `DEVICE`."""
    return Device(
        id=row["id"],
        tenant_id=row["tenant_id"],
        serial=row["serial"],
        hardware=Hardware(
            model=row["model"],
            cpu_model=row["cpu_model"],
            cpu_count=row["cpu_count"],
            total_ram_bytes=int(row["total_ram_bytes"]),
            has_tpm=row["has_tpm"],
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
        archived_status=Status(row["archived_status"]) if row["archived_status"] else None,
        deleted_at=row["deleted_at"],
        deleted_by=row["deleted_by"],
        serial_key=row["serial_key"],
        reported_serial=row["reported_serial"],
        enrolled_from=row["enrolled_from"],
        claimed_at=row["claimed_at"],
        labels=json.loads(row["labels"]),
        asset_tag=row["asset_tag"],
        note=row["note"],
        group_ids=tuple(row["group_ids"]),
        revision=row["membership_revision"],
        groups_are_known=row["groups_are_known"],
        policy_key_id=row["policy_key_id"] or "",
    )


def with_groups(device: Device, memberships: Mapping[UUID, Membership]) -> Device:
    """The device with the groups that were computed for it."""
    found = memberships.get(device.id)
    if found is None:
        return device
    return replace(
        device, group_ids=found.group_ids, revision=found.revision, groups_are_known=True
    )


async def device(
    connection: Connection, scope: Scope, device_id: UUID, *, for_update: bool = False
) -> Device | None:
    """One device of the scope."""
    lock = " FOR NO KEY UPDATE" if for_update else ""
    row = await connection.fetchrow(
        f"SELECT {DEVICE} FROM enrollment.device d"
        f" WHERE d.id = $1 AND ($2::uuid[] IS NULL OR d.tenant_id = ANY ($2)){lock}",
        device_id,
        scope.tenant_ids,
    )
    return device_of(row) if row else None


def _conditions(wanted: DeviceFilter, parameters: list[Any], first: int) -> str:
    """More conditions on `d`, and their parameters, of which the first has a number."""
    found = ""

    def parameter(value: Any) -> str:
        parameters.append(value)
        return f"${first + len(parameters) - 1}"

    if key := serial_key(wanted.serial):
        # With the one that is kept apart because it is the same in another spelling.
        k = parameter(key)
        found += (
            f" AND (d.serial_key = {k}"
            f" OR (d.serial_key > {k} || E'\\n' AND d.serial_key < {k} || E'\\v'))"
        )
    if wanted.group_id is not None:
        found += f" AND d.group_ids @> ARRAY[{parameter(wanted.group_id)}::uuid]"
    if wanted.asset_tag:
        found += f" AND d.asset_tag <> '' AND d.asset_tag = {parameter(wanted.asset_tag)}"
    if wanted.filter:
        filters = FilterSql(f"${first + len(parameters)}")
        found += f" AND {filters.condition(parse(wanted.filter))}"
        parameters.append(list(filters.values))
    return found


async def list_devices(
    connection: Connection,
    scope: Scope,
    before: UUID | None,
    limit: int,
    wanted: DeviceFilter,
    source: str = "enrollment.device",
) -> Page[Device, UUID]:
    """Devices of the scope that are wanted, newest first.

    Args:
        source: where they are read from, with the columns of `enrollment.device`.
    """
    parameters: list[Any] = []
    conditions = _conditions(wanted, parameters, 6)
    rows = await connection.fetch(
        f"SELECT {DEVICE} FROM {source} d"
        " WHERE ($1::uuid[] IS NULL OR d.tenant_id = ANY ($1)) AND ($2 = '' OR d.status = $2)"
        " AND ($3::uuid IS NULL OR d.id < $3) AND ($5 OR d.deleted_at IS NULL)"
        f"{conditions} ORDER BY d.id DESC LIMIT $4",
        scope.tenant_ids,
        wanted.status,
        before,
        limit + 1,
        wanted.deleted,
        *parameters,
    )
    return Page.of([device_of(row) for row in rows], limit, lambda device: device.id)


async def find(
    connection: Connection,
    scope: Scope,
    keys: Sequence[str],
    asset_tags: Sequence[str],
    ids: Sequence[UUID],
    source: str,
) -> list[Device]:
    """Devices of the scope by keys of serial numbers, asset tags or ids; deleted ones are not."""
    found: dict[UUID, Device] = {}
    for column, values in (
        ("d.serial_key", keys),
        ("d.asset_tag <> '' AND d.asset_tag", asset_tags),
        ("d.id", ids),
    ):
        if values:
            rows = await connection.fetch(
                f"SELECT {DEVICE} FROM {source} d WHERE {column} = ANY ($1)"
                " AND ($2::uuid[] IS NULL OR d.tenant_id = ANY ($2)) AND d.deleted_at IS NULL"
                " ORDER BY d.id LIMIT $3",
                list(values),
                scope.tenant_ids,
                MOST_FOUND,
            )
            found |= {row["id"]: device_of(row) for row in rows}
    return list(found.values())


GROUP_BYTES: Final = 38
"""Of a group's id in a message."""
CHANGING: Final = "SELECT changed_xid FROM enrollment.device"
"""What the feed of devices tells of (`servicekit.feeds.changes`)."""


_FED: Final = (
    f"SELECT d.changed_xid::text AS changed_xid, d.id AS key, {DEVICE} FROM enrollment.device d"
    " WHERE (d.changed_xid, d.id) > ($1::text::xid8, $2)"
)
# The words of the partial index `device_restrictions`.
_RESTRICTED: Final = "d.status IN ('decommissioned', 'rejected') OR d.token_version > 1"


async def changed_devices(
    connection: Connection, cursor: Cursor, limit: int, *, restricted_only: bool
) -> tuple[FeedPage, list[Device]]:
    """The feed of devices; restricted ones are those of which some token is refused.

    Those are told, too, that came back with their organisation: no token of theirs is any more.
    """
    if not restricted_only:
        sql = f"{_FED} ORDER BY d.changed_xid, d.id LIMIT $3"
    else:
        # Each part has its index; one statement for both would read all devices.
        parts = (_RESTRICTED, f"d.restored_at IS NOT NULL AND NOT ({_RESTRICTED})")
        both = " UNION ALL ".join(
            f"({_FED} AND ({part}) ORDER BY d.changed_xid, d.id LIMIT $3)" for part in parts
        )
        sql = f"SELECT * FROM ({both}) AS fed ORDER BY fed.changed_xid::xid8, fed.key LIMIT $3"
    page = await read_page(
        connection,
        sql,
        cursor,
        limit,
        size_of=lambda row: len(row["labels"].encode()) + GROUP_BYTES * len(row["group_ids"]),
    )
    return page, readable(_FEED, page.rows, device_of, lambda row: row["key"])


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
        f" RETURNING {DEVICE}",
        *columns(called),
        at,
    )
    return [device_of(row) for row in rows]


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


async def devices_by_prefix(connection: Connection, prefix: str) -> list[Device]:
    """Devices of all organisations by the beginning of their serial numbers, locked."""
    rows = await connection.fetch(
        f"SELECT {DEVICE} FROM enrollment.device d WHERE starts_with(d.serial, $1)"
        " AND d.deleted_at IS NULL ORDER BY d.id FOR NO KEY UPDATE",
        prefix,
    )
    return [device_of(row) for row in rows]


# An organisation as a whole


async def devices_to_archive(connection: Connection, tenant_id: UUID, limit: int) -> list[Device]:
    """Devices of an organisation that are not decommissioned, locked."""
    rows = await connection.fetch(
        f"SELECT {DEVICE} FROM enrollment.device d WHERE d.tenant_id = $1"
        " AND d.status <> 'decommissioned' ORDER BY d.id LIMIT $2 FOR NO KEY UPDATE",
        tenant_id,
        limit,
    )
    return [device_of(row) for row in rows]


async def devices_to_restore(connection: Connection, tenant_id: UUID, limit: int) -> list[Device]:
    """Devices of an organisation that were decommissioned with it, locked."""
    rows = await connection.fetch(
        f"SELECT {DEVICE} FROM enrollment.device d WHERE d.tenant_id = $1"
        " AND d.archived_status IS NOT NULL AND d.status = 'decommissioned'"
        " ORDER BY d.id LIMIT $2 FOR NO KEY UPDATE",
        tenant_id,
        limit,
    )
    return [device_of(row) for row in rows]


async def note_restored(connection: Connection, devices: Sequence[Device], at: datetime) -> None:
    """Has the feed of restrictions tell of devices that came back."""
    await connection.execute(
        "UPDATE enrollment.device SET restored_at = $2 WHERE id = ANY ($1)",
        [device.id for device in devices],
        at,
    )


async def count(connection: Connection, tenant_ids: Sequence[UUID]) -> int:
    """How many devices organisations have."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM enrollment.device WHERE tenant_id = ANY ($1) AND deleted_at IS NULL",
        tenant_ids,
    )
    return found


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


# Many devices in one statement


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
    ("reported_serial", "text"),
    ("enrolled_from", "text"),
    ("claimed_at", "timestamptz"),
    ("labels", "jsonb"),
    ("asset_tag", "text"),
    ("note", "text"),
    ("policy_key_id", "text"),
)
"""What a new device has."""
_CHANGED: Final = (
    *_WRITTEN,
    ("archived_status", "text"),
    ("deleted_at", "timestamptz"),
    ("deleted_by", "text"),
)
_NAMES: Final = ", ".join(name for name, _ in _WRITTEN)
_UNNEST: Final = ", ".join(f"${n}::{kind}[]" for n, (_, kind) in enumerate(_WRITTEN, 1))
_ALL_NAMES: Final = ", ".join(name for name, _ in _CHANGED)
_UNNEST_ALL: Final = ", ".join(f"${n}::{kind}[]" for n, (_, kind) in enumerate(_CHANGED, 1))
_CHANGES: Final = ", ".join(f"{name} = u.{name}" for name, _ in _CHANGED[3:])


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
        device.reported_serial,
        device.enrolled_from,
        device.claimed_at,
        json.dumps(dict(device.labels), ensure_ascii=False),
        device.asset_tag,
        device.note,
        device.policy_key_id or None,
    )


class SerialTakenError(Exception):
    """Another transaction has just registered one of the serial numbers; read again."""


_TAKEN: Final = frozenset({"device_serial", "device_serial_key"})


async def insert_devices(connection: Connection, devices: Sequence[Device]) -> None:
    """Adds devices.

    Raises:
        SerialTakenError: when a serial number was registered since it was looked for.
    """
    if not devices:
        return
    try:
        await connection.execute(
            f"INSERT INTO enrollment.device ({_NAMES}, serial_key)"
            f" SELECT {_NAMES}, serial_key"
            f" FROM unnest({_UNNEST}, ${len(_WRITTEN) + 1}::text[]) AS u({_NAMES}, serial_key)"
            # Two processes that meet wait for each other in one order.
            " ORDER BY u.tenant_id, u.serial_key",
            *columns([(*_values(device), serial_key(device.serial)) for device in devices]),
        )
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name in _TAKEN:
            raise SerialTakenError from error
        raise


async def update_devices(connection: Connection, devices: Sequence[Device]) -> None:
    """Writes all of known devices but what names them."""
    if devices:
        await connection.execute(
            f"UPDATE enrollment.device d SET {_CHANGES}"
            f" FROM unnest({_UNNEST_ALL}) AS u({_ALL_NAMES}) WHERE d.id = u.id",
            *columns(
                [
                    (
                        *_values(device),
                        device.archived_status.value if device.archived_status else None,
                        device.deleted_at,
                        device.deleted_by,
                    )
                    for device in devices
                ]
            ),
        )
