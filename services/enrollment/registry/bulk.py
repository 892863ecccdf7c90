"""Many devices at once, by serial number: each row has its result, and all are done or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from uuid import UUID

from contract.events.enrollment import DeviceExpected, DeviceLabelsChanged
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database
from servicekit.errors import DomainError, failed_precondition, invalid_field, not_found
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.rules import is_uuid
from servicekit.serials import serial_key
from services.enrollment.groups import members as group_members
from services.enrollment.groups import membership
from services.enrollment.groups import store as group_store
from services.enrollment.groups.domain import (
    MOST_MEMBERS,
    Group,
    members_changed,
    not_listed,
    too_many,
)
from services.enrollment.registry import expected, locks
from services.enrollment.registry import store as device_store
from services.enrollment.registry.domain import Device, Status, describe
from services.enrollment.registry.labels import Details, clean_details
from services.enrollment.serials import clean_listed


class What(Enum):
    """What became of a row."""

    ADDED = "ADDED"
    CHANGED = "CHANGED"
    UNCHANGED = "UNCHANGED"
    REFUSED = "REFUSED"


@dataclass(frozen=True, slots=True)
class Row:
    """What is to be changed of one device.

    `device` is a serial number or an id, `line` the caller's own number of the row; groups are
    named by their aliases.
    """

    line: int
    device: str
    details: Details
    add_groups: tuple[str, ...] = ()
    remove_groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a row; the last three are of a refused one."""

    line: int
    serial: str
    what: What
    id: UUID | None = None
    field: str = ""
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of all rows, and whether it was done."""

    results: Sequence[Result]
    applied: bool


@dataclass(slots=True)
class _Plan:
    """What a batch is to do, as far as its rows are not refused."""

    results: list[Result] = field(default_factory=list)
    added: list[Device] = field(default_factory=list)
    changed: list[tuple[Device, Device]] = field(default_factory=list)
    listed: dict[Group, dict[str, str]] = field(default_factory=dict)
    """Group → key → serial number that it is to list."""
    unlisted: dict[Group, dict[str, str]] = field(default_factory=dict)
    devices: dict[str, UUID] = field(default_factory=dict)
    """Key → device that is known, of those whose groups change."""


class Bulk:
    """The use cases around many devices."""

    def __init__(
        self, database: Database, outbox: Outbox, tenants: TenantDirectory, clock: Clock
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._clock = clock

    async def update(
        self,
        call: Call,
        org_id: UUID,
        rows: Sequence[Row],
        *,
        validate_only: bool,
        skip_refused: bool,
    ) -> Batch:
        """Changes known devices.

        Raises:
            DomainError: NOT_FOUND for the organisation.
        """
        has_groups = any(row.add_groups or row.remove_groups for row in rows)
        return await self._work(
            call, org_id, rows, validate_only, skip_refused, imports=False, alone=has_groups
        )

    async def import_(
        self,
        call: Call,
        org_id: UUID,
        rows: Sequence[Row],
        *,
        validate_only: bool,
        skip_refused: bool,
    ) -> Batch:
        """Changes known devices, and expects the others.

        Raises:
            DomainError: NOT_FOUND for the organisation; FAILED_PRECONDITION when it expects too
                many devices.
        """
        return await self._work(
            call, org_id, rows, validate_only, skip_refused, imports=True, alone=True
        )

    async def _work(
        self,
        call: Call,
        org_id: UUID,
        rows: Sequence[Row],
        validate_only: bool,
        skip_refused: bool,
        *,
        imports: bool,
        alone: bool,
    ) -> Batch:
        org = await self._tenants.require_org(call.caller, org_id, to_add=True)
        async with self._database.transaction(self._tenants.scope(org.id)) as connection:
            if alone:
                await membership.hold_alone(connection, org.id)
            else:
                await membership.hold(connection, [org.id])
            at = self._clock() if imports else None
            plan = await _planned(connection, org.id, rows, at)
            is_refused = any(result.what is What.REFUSED for result in plan.results)
            applied = not validate_only and (skip_refused or not is_refused)
            if applied:
                await self._apply(connection, call, org.id, plan)
        return Batch(plan.results, applied)

    async def _apply(self, connection: Connection, call: Call, org_id: UUID, plan: _Plan) -> None:
        enrolled = [after for _, after in plan.changed if after.status is not Status.EXPECTED]
        await device_store.update_devices(connection, enrolled)
        waiting = [after for _, after in plan.changed if after.status is Status.EXPECTED]
        await expected.store(connection, [*waiting, *plan.added])
        if plan.added and await expected.count(connection, org_id) > expected.MOST_EXPECTED:
            raise failed_precondition(
                "TOO_MANY_EXPECTED",
                f"an organisation expects at most {expected.MOST_EXPECTED} devices",
            )
        await group_members.add_members(
            connection,
            org_id,
            [(g.id, serial, key) for g, of in plan.listed.items() for key, serial in of.items()],
            call.caller.name,
            self._clock(),
        )
        await group_members.remove_members(
            connection, [(g.id, key) for g, of in plan.unlisted.items() for key in of]
        )
        for group in plan.listed:
            if await group_members.count_listed(connection, group.id) > MOST_MEMBERS:
                raise too_many("members in a group", MOST_MEMBERS)
        touched = {after.id for after in enrolled} | set(plan.devices.values())
        settled = await membership.settle(connection, {org_id: touched})
        added = [
            CloudEvent(DeviceExpected(id=after.id, after=after.details()), org_id)
            for after in plan.added
        ]
        labels = [
            CloudEvent(
                DeviceLabelsChanged(id=after.id, before=before.details(), after=after.details()),
                org_id,
            )
            for before, after in plan.changed
        ]
        members = [
            CloudEvent(
                members_changed(
                    group,
                    plan.listed.get(group, {}).values(),
                    plan.unlisted.get(group, {}).values(),
                ),
                org_id,
            )
            for group in dict.fromkeys([*plan.listed, *plan.unlisted])
        ]
        await self._outbox.append(
            connection, *added, *labels, *members, *membership.events_of(settled.moved)
        )


async def _planned(
    connection: Connection, org_id: UUID, rows: Sequence[Row], at: datetime | None
) -> _Plan:
    """Looks at all rows, and locks their devices.

    Args:
        at: since when devices that are not known are expected; `None` to refuse them.
    """
    serials = {serial_key(row.device) for row in rows if not is_uuid(row.device)}
    ids = {UUID(row.device) for row in rows if is_uuid(row.device)}
    devices = await locks.lock_named(connection, org_id, ids, serials)
    unknown = serials - {locks.name_of(device)[1] for device in devices}
    devices += (await expected.lock(connection, {(org_id, key) for key in unknown})).values()
    devices += await expected.lock_ids(connection, org_id, ids - {d.id for d in devices})
    aliases = {alias for row in rows for alias in (*row.add_groups, *row.remove_groups)}
    groups = await group_store.groups_by_alias(connection, org_id, aliases) if aliases else {}
    keys = serials | {locks.name_of(device)[1] for device in devices}
    known_members = {
        group.id: await group_members.listed_among(connection, group.id, keys)
        for group in groups.values()
        if group.is_listed
    }
    by_id = {device.id: device for device in devices}
    by_key = {locks.name_of(device)[1]: device for device in devices}
    plan, seen = _Plan(), dict[UUID, int]()
    for number, row in enumerate(rows, 1):
        try:
            before, is_new = _found(row, org_id, by_id, by_key, at)
            if (first := seen.setdefault(before.id, number)) != number:
                where = f"line {rows[first - 1].line}" if rows[first - 1].line else f"row {first}"
                raise invalid_field("serial" if at else "device", f"is also on {where}")
            after = describe(before, clean_details(row.details))
            adding, removing = _groups_of(row, groups, "groups" if at else "addGroups")
        except DomainError as refused:
            plan.results.append(_refused(row, refused))
            continue
        key = locks.name_of(before)[1]
        moves = False
        for group in adding:
            if key not in known_members[group.id]:
                plan.listed.setdefault(group, {})[key] = before.serial
                moves = True
        for group in removing:
            if key in known_members[group.id]:
                plan.unlisted.setdefault(group, {})[key] = before.serial
                moves = True
        if is_new:
            plan.added.append(after)
        elif after != before:
            plan.changed.append((before, after))
        if moves and after.status is not Status.EXPECTED:
            plan.devices[key] = before.id
        what = What.CHANGED if moves or after != before else What.UNCHANGED
        what = What.ADDED if is_new else what
        plan.results.append(Result(row.line, before.serial, what, before.id))
    return plan


def _found(
    row: Row,
    org_id: UUID,
    by_id: dict[UUID, Device],
    by_key: dict[str, Device],
    at: datetime | None,
) -> tuple[Device, bool]:
    """The device of a row; and whether it is a new one."""
    if at is None and is_uuid(row.device):
        device = by_id.get(UUID(row.device))
        if device is None:
            raise _unknown(row.device)
        return device, False
    serial = clean_listed(row.device, "device" if at is None else "serial")
    device = by_key.get(serial_key(serial))
    if device is not None:
        return device, False
    if at is None:
        raise _unknown(row.device)
    device = expected.expected(new_id(), org_id, serial, "", at)
    # A second row for it finds it.
    by_key[serial_key(serial)] = device
    return device, True


def _unknown(name: str) -> DomainError:
    error = not_found("device", name)
    return DomainError(
        error.code,
        "DEVICE_NOT_FOUND",
        "no device of the organisation has this serial number; it is matched whole"
        if not is_uuid(name)
        else "no device of the organisation has this id",
    )


def _groups_of(row: Row, groups: dict[str, Group], adds: str) -> tuple[list[Group], list[Group]]:
    if both := set(row.add_groups) & set(row.remove_groups):
        raise invalid_field("removeGroups", f"{min(both)} is to be added, too")
    found: dict[str, list[Group]] = {}
    for name, aliases in ((adds, row.add_groups), ("removeGroups", row.remove_groups)):
        for index, alias in enumerate(aliases):
            group = groups.get(alias)
            if group is None:
                raise invalid_field(f"{name}[{index}]", f"no group has the alias {alias[:63]}")
            if not group.is_listed:
                error = not_listed()
                raise failed_precondition(error.reason, f"{name}[{index}]: {error.message}")
            found.setdefault(name, []).append(group)
    return found.get(adds, []), found.get("removeGroups", [])


def _refused(row: Row, error: DomainError) -> Result:
    violation = error.violations[0] if error.violations else None
    return Result(
        row.line,
        row.device,
        What.REFUSED,
        field=violation.field if violation else "",
        reason=error.reason,
        message=violation.rule if violation else error.message,
    )
