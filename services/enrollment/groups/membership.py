"""Which groups devices are in: computed in the transaction that changes a device or a group.

A change of a device takes its organisation's lock shared (`hold`), writes, and computes
(`settle`). A change of groups takes it alone (`hold_alone`), so that no device is computed by
the groups of before and committed after their change. The lock comes before any lock of a row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from contract.events.enrollment import DeviceGroupsChanged, MovedDevice, MovedDevices
from servicekit.call import Call
from servicekit.data.postgres import Connection
from servicekit.messaging.events import CloudEvent
from services.enrollment.groups.domain import Membership, Moved
from services.enrollment.groups.filter_sql import FilterSql
from services.enrollment.groups.filters import parse

_TOLD: Final = 500
"""Devices that one event tells of."""
_TOLD_MOVES: Final = 10_000
"""Groups that came or went, of all devices of one event, which NATS would not take if larger."""
IN_GROUPS: Final = "d.status IN ('pending', 'prepared', 'active') AND d.deleted_at IS NULL"
"""Devices that are locked out are in no group."""
KEY: Final = "split_part(d.serial_key, E'\\n', 1)"
"""The key of a device's serial number, without what keeps a second spelling apart."""
_LOCK: Final = "hashtextextended('enrollment:groups:' || u.tenant_id::text, 0)"


async def hold(connection: Connection, tenant_ids: Collection[UUID]) -> None:
    """Keeps the groups of organisations as they are until the transaction ends."""
    if tenant_ids:
        await connection.execute(
            f"SELECT pg_advisory_xact_lock_shared({_LOCK})"
            " FROM (SELECT unnest($1::uuid[]) AS tenant_id ORDER BY 1) AS u",
            list(tenant_ids),
        )


async def hold_of(connection: Connection, device_id: UUID) -> None:
    """As `hold`, for the organisation of a device, as far as the transaction sees it."""
    await connection.execute(
        f"SELECT pg_advisory_xact_lock_shared({_LOCK}) FROM enrollment.device AS u WHERE u.id = $1",
        device_id,
    )


async def hold_alone(connection: Connection, tenant_id: UUID) -> None:
    """Keeps everybody from changing devices and groups of an organisation meanwhile."""
    await connection.execute(
        f"SELECT pg_advisory_xact_lock({_LOCK}) FROM (SELECT $1::uuid AS tenant_id) AS u", tenant_id
    )


@dataclass(slots=True)
class Settled:
    """What devices' groups were computed to be."""

    memberships: dict[UUID, Membership] = field(default_factory=dict)
    moved: list[Moved] = field(default_factory=list)


async def settle(connection: Connection, devices: Mapping[UUID, Collection[UUID]]) -> Settled:
    """Computes the groups of devices that this transaction wrote.

    Args:
        devices: organisation → its devices.
    """
    settled = Settled()
    for tenant_id, ids in sorted(devices.items()):
        if ids:
            await _settle(connection, tenant_id, ids, settled)
    return settled


async def _settle(
    connection: Connection, tenant_id: UUID, ids: Collection[UUID], settled: Settled
) -> None:
    groups = await connection.fetch(
        "SELECT g.id, g.filter FROM enrollment.device_group g"
        " WHERE g.tenant_id = $1 AND g.deleted_at IS NULL ORDER BY g.id",
        tenant_id,
    )
    filters = FilterSql("$3")
    found = [
        f"CASE WHEN {filters.condition(parse(group['filter']))}"
        f" THEN {filters.value(str(group['id']))}::uuid END"
        for group in groups
        if group["filter"] is not None
    ]
    by_filter = f"ARRAY[{', '.join(found)}]::uuid[]" if found else "'{}'::uuid[]"
    wanted = "'{}'::uuid[]"
    if groups:
        wanted = (
            f"CASE WHEN {IN_GROUPS} THEN ARRAY(SELECT DISTINCT g.id FROM unnest({by_filter}"
            " || ARRAY(SELECT m.group_id FROM enrollment.group_member m"
            " JOIN enrollment.device_group l ON l.id = m.group_id AND l.deleted_at IS NULL"
            f" WHERE m.tenant_id = d.tenant_id AND m.serial_key = {KEY})) AS g (id)"
            " WHERE g.id IS NOT NULL ORDER BY g.id) ELSE '{}'::uuid[] END"
        )
    rows = await connection.fetch(
        "UPDATE enrollment.device AS x SET group_ids = w.wanted,"
        " groups_computed_at = clock_timestamp()"
        f" FROM (SELECT d.id, d.group_ids AS before, {wanted} AS wanted FROM enrollment.device AS d"
        " WHERE d.tenant_id = $1 AND d.id = ANY ($2)) AS w"
        " WHERE x.id = w.id"
        " RETURNING x.id, x.serial, w.before, x.group_ids, x.membership_revision",
        tenant_id,
        list(ids),
        *([list(filters.values)] if found else []),
    )
    for row in rows:
        before, after = tuple(row["before"]), tuple(row["group_ids"])
        settled.memberships[row["id"]] = Membership(after, row["membership_revision"])
        if before != after:
            settled.moved.append(Moved(row["id"], tenant_id, row["serial"], before, after))


def events_of(moved: Iterable[Moved], call: Call | None = None) -> Iterator[CloudEvent]:
    """Events about devices that came into groups or left some, each of many devices.

    Args:
        call: what made it happen, where that is not the running call.
    """
    by_org: dict[UUID, list[Moved]] = {}
    for one in moved:
        by_org.setdefault(one.tenant_id, []).append(one)
    for tenant_id, some in by_org.items():
        some.sort(key=lambda one: one.serial)
        for told in _portions(some):
            event = DeviceGroupsChanged(
                id=tenant_id,
                after=MovedDevices(count=len(told), devices=tuple(map(_told, told))),
            )
            yield (
                CloudEvent(event, tenant_id)
                if call is None
                else CloudEvent(event, tenant_id, call=call)
            )


def _portions(moved: Iterable[Moved]) -> Iterator[list[Moved]]:
    portion: list[Moved] = []
    moves = 0
    for one in moved:
        more = len(set(one.before) ^ set(one.after))
        if portion and (len(portion) == _TOLD or moves + more > _TOLD_MOVES):
            yield portion
            portion, moves = [], 0
        portion.append(one)
        moves += more
    if portion:
        yield portion


def _told(one: Moved) -> MovedDevice:
    before, after = set(one.before), set(one.after)
    return MovedDevice(
        id=one.device_id,
        serial=one.serial,
        joined=tuple(sorted(after - before)),
        left=tuple(sorted(before - after)),
    )


def by_tenant(devices: Iterable[tuple[UUID, UUID]]) -> dict[UUID, list[UUID]]:
    """Pairs of organisation and device, as `settle` takes them."""
    found: dict[UUID, list[UUID]] = {}
    for tenant_id, device_id in devices:
        found.setdefault(tenant_id, []).append(device_id)
    return found
