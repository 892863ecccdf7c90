"""The fleet: what the feeds tell of it, and the queries of administrators."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope, columns
from servicekit.serials import serial_key
from services.telemetry.inventory import search
from services.telemetry.inventory.domain import (
    DECOMMISSIONED,
    AppliedVersion,
    BootGate,
    BootVerdict,
    DeviceDetail,
    DeviceFilter,
    DevicePage,
    DeviceSummary,
    NamePosition,
    RegisteredDevice,
    Restricted,
)
from services.telemetry.inventory.query import DeviceQuery
from services.telemetry.where import HIDDEN, NOT_DELETED, Where

_SUMMARY_COLUMNS: Final = tuple(
    field.name for field in fields(DeviceSummary) if field.name not in {"falls_short", "restricted"}
)
_SUMMARY: Final = ", ".join(_SUMMARY_COLUMNS)
_LAST_SEEN: Final = "coalesce(contact_at, registered_at)"


async def read_cursor(connection: Connection, feed: str) -> str:
    """How far a feed was read; empty for not at all."""
    cursor: str | None = await connection.fetchval(
        "SELECT cursor FROM telemetry.feed_cursor WHERE feed = $1", feed
    )
    return cursor or ""


async def store_cursor(connection: Connection, cursor: str, feed: str) -> None:
    """Stores how far a feed was read."""
    await connection.execute(
        "INSERT INTO telemetry.feed_cursor (feed, cursor) VALUES ($1, $2)"
        " ON CONFLICT (feed) DO UPDATE SET cursor = excluded.cursor",
        feed,
        cursor,
    )


async def store_registered(connection: Connection, devices: Sequence[RegisteredDevice]) -> None:
    """Stores devices, each once, as the registry has them."""
    rows = sorted(
        (
            device.id,
            device.tenant_id,
            device.status,
            device.serial,
            device.model,
            device.registered_at,
            device.enrolled_at,
        )
        for device in devices
    )
    await connection.execute(
        "INSERT INTO telemetry.device AS d"
        " (id, tenant_id, registry_status, name, serial, model, registered_at, enrolled_at,"
        " contact_at, seen_day)"
        " SELECT r.id, r.tenant_id, r.status, coalesce(nullif(r.serial, ''), r.id::text),"
        " r.serial, r.model, r.registered_at, r.enrolled_at, r.enrolled_at,"
        " coalesce((r.enrolled_at AT TIME ZONE 'UTC')::date, '-infinity')"
        " FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[],"
        " $6::timestamptz[], $7::timestamptz[])"
        " AS r (id, tenant_id, status, serial, model, registered_at, enrolled_at)"
        " ON CONFLICT (id) DO UPDATE SET tenant_id = excluded.tenant_id,"
        " registry_status = excluded.registry_status, name = excluded.name,"
        " serial = excluded.serial, model = excluded.model,"
        " registered_at = excluded.registered_at, enrolled_at = excluded.enrolled_at,"
        # A device that enrolls again is one machine.
        " clone_suspected_at = CASE WHEN excluded.enrolled_at > d.clone_suspected_at THEN NULL"
        " ELSE d.clone_suspected_at END,"
        " contact_at = greatest(d.contact_at, excluded.contact_at),"
        " seen_day = greatest(d.seen_day, excluded.seen_day)",
        *columns(rows),
    )


async def store_memberships(connection: Connection, devices: Sequence[RegisteredDevice]) -> None:
    """Stores the labels and groups of devices that are stored, as far as they are known."""
    rows = sorted(
        (
            device.id,
            json.dumps(dict(device.membership.labels), ensure_ascii=False),
            f"{{{','.join(map(str, device.membership.group_ids))}}}",
        )
        for device in devices
        if device.membership is not None
    )
    if rows:
        await connection.execute(
            "UPDATE telemetry.device d SET labels = r.labels, group_ids = r.group_ids::uuid[]"
            " FROM unnest($1::uuid[], $2::jsonb[], $3::text[]) AS r (id, labels, group_ids)"
            " WHERE d.id = r.id"
            " AND (d.labels, d.group_ids) IS DISTINCT FROM (r.labels, r.group_ids::uuid[])",
            *columns(rows),
        )


async def store_applied(connection: Connection, versions: Sequence[AppliedVersion]) -> None:
    """Stores the policy versions that devices, each once, applied."""
    rows = sorted((v.device_id, v.tenant_id, v.version, v.reported_at) for v in versions)
    await connection.execute(
        "INSERT INTO telemetry.device AS d"
        " (id, tenant_id, name, registered_at, contact_at, policy_version, seen_day)"
        " SELECT r.id, r.tenant_id, r.id::text, r.reported_at, r.reported_at, r.version,"
        " (r.reported_at AT TIME ZONE 'UTC')::date"
        " FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::timestamptz[])"
        " AS r (id, tenant_id, version, reported_at)"
        f" WHERE {NOT_DELETED.format('r.id')}"
        " ON CONFLICT (id) DO UPDATE SET policy_version = excluded.policy_version,"
        " contact_at = greatest(d.contact_at, excluded.contact_at),"
        " seen_day = greatest(d.seen_day, excluded.seen_day)",
        *columns(rows),
    )


async def store_verdicts(connection: Connection, verdicts: Sequence[BootVerdict]) -> None:
    """Stores the verdicts over the latest boots of devices, each once."""
    rows = sorted((v.device_id, v.tenant_id, v.verdict, v.attested_at) for v in verdicts)
    await connection.execute(
        "INSERT INTO telemetry.device AS d (id, tenant_id, name, registered_at, contact_at,"
        " attestation_verdict, attested_at, seen_day)"
        " SELECT r.id, r.tenant_id, r.id::text, r.attested_at, r.attested_at, r.verdict,"
        " r.attested_at, (r.attested_at AT TIME ZONE 'UTC')::date"
        " FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::timestamptz[])"
        " AS r (id, tenant_id, verdict, attested_at)"
        f" WHERE {NOT_DELETED.format('r.id')}"
        " ON CONFLICT (id) DO UPDATE SET attestation_verdict = excluded.attestation_verdict,"
        " attested_at = excluded.attested_at,"
        " contact_at = greatest(d.contact_at, excluded.contact_at),"
        " seen_day = greatest(d.seen_day, excluded.seen_day)",
        *columns(rows),
    )


async def store_gates(connection: Connection, gates: Sequence[BootGate]) -> None:
    """Stores what organisations, each once, ask of their devices' boots."""
    silent = [gate.tenant_id for gate in gates if not gate.below]
    await connection.execute(
        "DELETE FROM telemetry.attestation_gate WHERE tenant_id = ANY ($1)", silent
    )
    await connection.executemany(
        "INSERT INTO telemetry.attestation_gate (tenant_id, below, grace) VALUES ($1, $2, $3)"
        " ON CONFLICT (tenant_id) DO UPDATE SET below = excluded.below, grace = excluded.grace",
        [(gate.tenant_id, gate.below, gate.grace) for gate in gates if gate.below],
    )


async def store_restricted(connection: Connection, devices: Sequence[Restricted]) -> None:
    """Stores which devices, each once, have the other policy of a gate."""
    await connection.execute(
        "DELETE FROM telemetry.restricted_device WHERE device_id = ANY ($1)",
        [one.device_id for one in devices if not one.restricted],
    )
    rows = sorted((one.device_id, one.tenant_id) for one in devices if one.restricted)
    if rows:
        await connection.execute(
            "INSERT INTO telemetry.restricted_device (device_id, tenant_id) SELECT r.*"
            " FROM unnest($1::uuid[], $2::uuid[]) AS r (id, tenant_id)"
            f" WHERE {NOT_DELETED.format('r.id')}"
            " ON CONFLICT (device_id) DO UPDATE SET tenant_id = excluded.tenant_id",
            *columns(rows),
        )


async def _judged_by_gates(
    connection: Connection, found: Sequence[DeviceSummary], at: datetime
) -> list[DeviceSummary]:
    """Devices with whether each falls short of what its organisation asks for, and whether it has
    another policy for that."""
    rows = await connection.fetch(
        "SELECT tenant_id, below, grace FROM telemetry.attestation_gate WHERE tenant_id = ANY ($1)",
        list({device.tenant_id for device in found}),
    )
    gates = {
        row["tenant_id"]: BootGate(row["tenant_id"], tuple(row["below"]), row["grace"])
        for row in rows
    }
    restricted = {
        row["device_id"]
        for row in await connection.fetch(
            "SELECT device_id FROM telemetry.restricted_device WHERE device_id = ANY ($1)",
            [device.id for device in found],
        )
    }
    return [
        replace(
            device,
            falls_short=(gate := gates.get(device.tenant_id)) is not None
            and device.is_short_of(gate, at),
            restricted=device.id in restricted,
        )
        for device in found
    ]


async def list_devices(connection: Connection, query: DeviceQuery) -> DevicePage:
    """One page of the fleet's list."""
    page = await _list(connection, query)
    return DevicePage(await _judged_by_gates(connection, page.items, query.at), page.after)


async def _list(connection: Connection, query: DeviceQuery) -> DevicePage:
    """One page of the fleet's list.

    The first devices of the list are read, which finds what is frequent. If that is not enough for
    a page, an index finds what is rare.
    """
    if not search.is_indexed(query.wanted):
        return await _walk(connection, query)
    page, _ = await _read(connection, query, query.scan // 10 or 1)
    # Mostly all that the index finds are wanted, and the first try is enough.
    for most in (query.limit * 2, query.scan):
        if query.is_answered(page):
            break
        rest = query.rest(page)
        found = await search.find(connection, rest, most)
        if found is None:
            return _joined(page, await _walk(connection, rest))
        page = _joined(page, await _among(connection, rest, found))
    return page


async def _walk(connection: Connection, query: DeviceQuery) -> DevicePage:
    """The devices that are wanted among the next ones of the list."""
    page, worth = await _read(connection, query, query.scan)
    if query.is_answered(page) or worth < 2 * query.scan:
        return page
    more, _ = await _read(connection, query.rest(page), worth)
    return _joined(page, more)


async def _read(connection: Connection, query: DeviceQuery, scan: int) -> tuple[DevicePage, int]:
    """As `_walk`, once and among `scan` devices; and what more reading is worth."""
    where = _wanted(query)
    sql = where.page(_SUMMARY, "telemetry.device", "name", query.limit + 1, scan, down=False)
    rows = await connection.fetch(sql, *where.parameters)
    found = [_summary(row) for row in rows if row["wanted"]]
    if len(found) > query.limit:
        return _full(found, query.limit), 0
    if not rows or not rows[-1]["last"]:
        return DevicePage(found, None), 0
    last = rows[-1]
    return DevicePage(found, NamePosition(last["name"], last["id"])), last["worth"]


async def _among(connection: Connection, query: DeviceQuery, some: search.Found) -> DevicePage:
    """The devices that are wanted among some of them."""
    where = _wanted(query)
    where.add("id = ANY (?)", some.ids)
    rows = await connection.fetch(
        f"SELECT {_SUMMARY} FROM telemetry.device {where.sql_with_filters}"
        f" ORDER BY name, id LIMIT {where.parameter(query.limit + 1)}",
        *where.parameters,
    )
    found = [_summary(row) for row in rows]
    return _full(found, query.limit) if len(found) > query.limit else DevicePage(found, some.last)


def _full(found: list[DeviceSummary], limit: int) -> DevicePage:
    return DevicePage.of(found, limit, lambda device: device.position)


def _joined(page: DevicePage, more: DevicePage) -> DevicePage:
    return DevicePage([*page.items, *more.items], more.after)


def _wanted(query: DeviceQuery) -> Where:
    """The devices that a query's filter lets through, behind its position."""
    wanted, where = query.wanted, _fleet(query.scope)
    if query.after is not None:
        where.add("(name, id) > (?, ?)", query.after.name, query.after.id)
    # As the indexes of those that are retired, and of those that are not well, say it.
    if wanted.status == DECOMMISSIONED:
        where.add("registry_status = 'decommissioned'")
    elif wanted.status:
        where.filter("registry_status <> ?", DECOMMISSIONED)
        if wanted.status == "online":
            where.filter("coalesce(contact_at >= ?, false)", query.online_since)
        else:
            where.filter("coalesce(contact_at < ?, true)", query.online_since)
    _judged(where, wanted, query.at)
    _grouped(where, wanted)
    if wanted.seen_after is not None:
        where.filter(f"{_LAST_SEEN} > ?", wanted.seen_after)
    if wanted.seen_before is not None:
        where.filter(f"{_LAST_SEEN} < ?", wanted.seen_before)
    if wanted.serial:
        # A function that keeps to the scope: with row security no index of keys would be used.
        where.add(
            "id = ANY ((SELECT telemetry.devices_with_serial(?))::uuid[])",
            serial_key(wanted.serial),
        )
    if wanted.clone_suspected:
        where.add("clone_suspected_at IS NOT NULL")
    if wanted.search:
        where.contains(("name", "serial", "model", "id::text"), wanted.search)
    return where


def _judged(where: Where, wanted: DeviceFilter, at: datetime) -> None:
    """Adds what is wanted of a device's health and of its latest boot."""
    if wanted.health == "healthy":
        where.filter("health = ?", wanted.health)
    elif wanted.health:
        where.add("(health <> 'healthy' AND health = ?)", wanted.health)
    if wanted.attestation_verdict:
        where.filter("attestation_verdict = ?", wanted.attestation_verdict)
    if wanted.restricted:
        where.add(
            "EXISTS (SELECT FROM telemetry.restricted_device r WHERE r.device_id = device.id"
            " AND r.tenant_id = device.tenant_id)"
        )
    if wanted.falls_short:
        # As `DeviceSummary.is_short_of` says it.
        where.add("registry_status = 'active'")
        where.filter(
            "EXISTS (SELECT FROM telemetry.attestation_gate g WHERE g.tenant_id = device.tenant_id"
            " AND device.attestation_verdict = ANY (g.below)"
            " AND (device.attestation_verdict <> 'NONE' OR device.enrolled_at + g.grace <= ?))",
            at,
        )


def _grouped(where: Where, wanted: DeviceFilter) -> None:
    """Adds what is wanted of a device's labels and groups."""
    if wanted.group_id is not None:
        where.filter("group_ids @> ARRAY[?::uuid]", wanted.group_id)
    key, equals, value = wanted.label.partition("=")
    if equals:
        where.filter("coalesce(labels ->> ? = ?, false)", key, value)
    elif key:
        where.filter("labels ->> ? IS NOT NULL", key)


async def get_device(
    connection: Connection, scope: Scope, device_id: UUID, at: datetime
) -> DeviceDetail | None:
    """One device of a scope, as it is at a time."""
    where = _fleet(scope)
    where.add("id = ?", device_id)
    row = await connection.fetchrow(
        f"SELECT {_SUMMARY}, installed_apps, update_status, last_error,"
        f" disk_health, battery_health FROM telemetry.device {where.sql}",
        *where.parameters,
    )
    if row is None:
        return None
    (summary,) = await _judged_by_gates(connection, [_summary(row)], at)
    return DeviceDetail(
        summary=summary,
        installed_apps=row["installed_apps"],
        update_status=row["update_status"],
        last_error=row["last_error"],
        disk_health=row["disk_health"],
        battery_health=row["battery_health"],
    )


def _fleet(scope: Scope) -> Where:
    where = Where(scope)
    where.add("registry_status <> ALL (?)", list(HIDDEN))
    return where


def _summary(row: asyncpg.Record) -> DeviceSummary:
    values = {name: row[name] for name in _SUMMARY_COLUMNS}
    return DeviceSummary(**{**values, "labels": json.loads(row["labels"])})
