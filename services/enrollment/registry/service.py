"""The registry of devices: what administrators see of it, and decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias
from uuid import UUID

from contract.events.enrollment import (
    DeviceApproved,
    DeviceDecommissioned,
    DeviceDeleted,
    DeviceLabelsChanged,
    DevicePrepared,
    DeviceRejected,
    ExpectedDeviceRemoved,
    ReenrollmentAllowed,
)
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database
from servicekit.errors import DomainError, aborted, failed_precondition, not_found
from servicekit.etags import check_etag
from servicekit.feeds.feed import Cursor, FeedPage
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import PAGE_BYTES, Page, TimePosition
from servicekit.serials import as_printed, serial_key
from services.enrollment.groups import membership
from services.enrollment.groups.filters import parse
from services.enrollment.registry import expected, locks
from services.enrollment.registry import store as device_store
from services.enrollment.registry.domain import (
    Device,
    DeviceFilter,
    Hardware,
    Status,
    allow_reenrollment,
    approve,
    decommission,
    delete,
    describe,
    prepare,
    reject,
)
from services.enrollment.registry.expected import AS_DEVICE as EXPECTED
from services.enrollment.registry.labels import Details, clean_details
from services.enrollment.registry.peers import Issued, Peers
from services.enrollment.registry.refusals import Refusal, list_refusals
from services.enrollment.serials import names_device, refuse_reserved, unnamed

_Decision: TypeAlias = (
    DeviceApproved | DeviceRejected | ReenrollmentAllowed | DeviceDecommissioned | DeviceDeleted
)
_Change: TypeAlias = _Decision | DeviceLabelsChanged


@dataclass(frozen=True, slots=True)
class Prepared:
    """A device that was registered ahead of its first start, and what it starts with."""

    device: Device
    issued: Issued


@dataclass(frozen=True, slots=True)
class Found:
    """Devices that were looked for by what names them; and what of that nobody has."""

    devices: Sequence[Device]
    missing_serials: Sequence[str]
    missing_asset_tags: Sequence[str]
    missing_ids: Sequence[UUID]


_REGISTERED: Final = "enrollment.device"


def _sources(wanted: DeviceFilter) -> Sequence[str]:
    """Where wanted devices are looked for."""
    if wanted.status == Status.EXPECTED.value:
        return [EXPECTED]
    # What is expected is in no group yet.
    both = not wanted.status and wanted.group_id is None
    return [_REGISTERED, EXPECTED] if both else [_REGISTERED]


def _size(device: Device) -> int:
    """About how much a page has of a device, beyond what each has."""
    labels = sum(len(key) + len(value) for key, value in device.labels.items())
    return labels + device_store.GROUP_BYTES * len(device.group_ids)


class Registry:
    """The use cases around registered devices."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        peers: Peers,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._peers = peers
        self._clock = clock

    async def list(
        self,
        call: Call,
        org_id: UUID | None,
        wanted: DeviceFilter,
        before: UUID | None,
        limit: int,
    ) -> Page[Device, UUID]:
        """Devices of the caller's subtree, newest first, behind a position.

        Raises:
            DomainError: NOT_FOUND for the organisation; INVALID_ARGUMENT for the filter.
        """
        if wanted.filter:
            parse(wanted.filter)
        scope = await self._tenants.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            pages = [
                await device_store.list_devices(connection, scope, before, limit, wanted, source)
                for source in _sources(wanted)
            ]
        page = pages[0]
        if len(pages) > 1:
            found = [device for page in pages for device in page.items]
            found.sort(key=lambda device: device.id, reverse=True)
            more = any(page.after is not None for page in pages)
            page = Page.of(found, limit, lambda device: device.id, more=more and bool(found))
        return page.within(_size, lambda device: device.id, PAGE_BYTES)

    async def find(
        self,
        call: Call,
        org_id: UUID | None,
        serials: Sequence[str],
        asset_tags: Sequence[str],
        ids: Sequence[UUID],
    ) -> Found:
        """Devices by exactly what names them; and what of that nobody has.

        Raises:
            DomainError: NOT_FOUND for the organisation.
        """
        scope = await self._tenants.query_scope(call.caller, org_id)
        keys = {serial_key(serial): serial for serial in serials}
        async with self._database.transaction(scope) as connection:
            devices = [
                device
                for source in (_REGISTERED, EXPECTED)
                for device in await device_store.find(
                    connection, scope, list(keys), asset_tags, ids, source
                )
            ]
        have_keys = {locks.name_of(device)[1].partition("\n")[0] for device in devices}
        have_tags = {device.asset_tag for device in devices}
        have_ids = {device.id for device in devices}
        return Found(
            sorted(devices, key=lambda device: device.serial),
            [serial for key, serial in keys.items() if key not in have_keys],
            [tag for tag in dict.fromkeys(asset_tags) if tag not in have_tags],
            [id_ for id_ in dict.fromkeys(ids) if id_ not in have_ids],
        )

    async def refusals(
        self,
        call: Call,
        org_id: UUID | None,
        serial: str,
        before: TimePosition | None,
        limit: int,
    ) -> Page[Refusal, TimePosition]:
        """Refused attempts to enroll in the caller's subtree, the latest first."""
        scope = await self._tenants.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            return await list_refusals(connection, scope, serial, before, limit)

    async def get(self, call: Call, device_id: UUID) -> Device:
        """One device of the caller's subtree.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            device = await device_store.device(connection, scope, device_id)
            device = device or await expected.one(connection, scope, device_id)
        if device is None:
            raise not_found("device", device_id)
        return device

    async def approve(self, call: Call, device_id: UUID) -> Device:
        """Admits a device that waits; its next attempt to enroll succeeds.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION when it does not wait.
        """
        at = self._clock()
        return await self._change(
            call, device_id, DeviceApproved, lambda device: approve(device, at)
        )

    async def reject(self, call: Call, device_id: UUID) -> Device:
        """Refuses a device that waits.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION when it does not wait.
        """
        return await self._change(call, device_id, DeviceRejected, reject)

    async def allow_reenrollment(self, call: Call, device_id: UUID) -> Device:
        """Lets a device enroll again, once.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION when it waits for approval.
        """
        at = self._clock()
        return await self._change(
            call,
            device_id,
            ReenrollmentAllowed,
            lambda device: allow_reenrollment(device, at),
        )

    async def decommission(
        self, call: Call, device_id: UUID, *, validate_only: bool = False
    ) -> Device:
        """Locks a device out; the other services hear of it through the feed.

        Raises:
            DomainError: NOT_FOUND.
        """
        at = self._clock()
        return await self._change(
            call,
            device_id,
            DeviceDecommissioned,
            lambda device: decommission(device, at),
            validate_only=validate_only,
        )

    async def delete(self, call: Call, device_id: UUID, *, validate_only: bool = False) -> Device:
        """Deletes a device that is locked out; answers what stays of it.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION when it is not locked out.
        """
        at = self._clock()
        return await self._change(
            call,
            device_id,
            DeviceDeleted,
            lambda device: delete(device, call.caller.name, at),
            validate_only=validate_only,
        )

    async def update(self, call: Call, device_id: UUID, details: Details) -> Device:
        """Changes what administrators say of a device.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT with the field; FAILED_PRECONDITION when it
                was deleted.
        """
        details = clean_details(details)
        return await self._change(
            call, device_id, DeviceLabelsChanged, lambda device: describe(device, details)
        )

    async def _change(
        self,
        call: Call,
        device_id: UUID,
        event: type[_Change],
        change: Callable[[Device], Device],
        *,
        validate_only: bool = False,
    ) -> Device:
        """Changes a device; a change that is made already is no second event."""
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            await membership.hold_of(connection, device_id)
            before = await device_store.device(connection, scope, device_id, for_update=True)
            before = before or await expected.one(connection, scope, device_id, for_update=True)
            if before is None:
                raise not_found("device", device_id)
            check_etag(before.etag)
            after = change(before)
            if after == before or validate_only:
                return after
            if before.status is Status.EXPECTED:
                await self._change_expected(connection, before, after)
            else:
                await device_store.update_devices(connection, [after])
                settled = await membership.settle(connection, {after.tenant_id: [after.id]})
                after = device_store.with_groups(after, settled.memberships)
                await self._outbox.append(
                    connection,
                    CloudEvent(happened(event, before, after), after.tenant_id),
                    *membership.events_of(settled.moved),
                )
        return after

    async def _change_expected(self, connection: Connection, before: Device, after: Device) -> None:
        event: DeviceLabelsChanged | ExpectedDeviceRemoved
        if after.deleted_at is not None:
            await expected.remove(connection, [after.id])
            event = ExpectedDeviceRemoved(id=after.id, before=before.details())
        else:
            await expected.store(connection, [after])
            event = DeviceLabelsChanged(id=after.id, before=before.details(), after=after.details())
        await self._outbox.append(connection, CloudEvent(event, after.tenant_id))

    async def prepare(
        self, call: Call, org_id: UUID, serial: str, model: str, policy_key_id: str
    ) -> Prepared:
        """Registers a device ahead of its first start.

        A machine without a serial number of its own may be registered, too, by what its firmware
        says in place of one: the file is its name.
        Token and policy are fetched before the device is registered: what fails leaves no
        device behind whose file nobody has.

        Args:
            policy_key_id: the key for policies that it pins; empty for the active one.

        Raises:
            DomainError: NOT_FOUND for the organisation; ALREADY_EXISTS when the serial number is
                known; INVALID_ARGUMENT for a key that it may not have; UNAVAILABLE when identity
                or policy is away.
        """
        org = await self._tenants.require_org(call.caller, org_id, to_add=True)
        scope = self._tenants.scope(org.id)
        at = self._clock()
        device_id = new_id()
        has_name = names_device(serial)
        if not has_name:
            refuse_reserved(serial)
        key_id, _ = await self._peers.token_key(org.id, policy_key_id)
        fresh = Device(
            id=device_id,
            tenant_id=org.id,
            serial=as_printed(serial) if has_name else unnamed(device_id),
            reported_serial=None if has_name else as_printed(serial),
            hardware=Hardware(model=model),
            status=Status.PREPARED,
            token_version=1,
            enrollment_token_id=None,
            fingerprint=None,
            created_at=at,
            policy_key_id=key_id,
            groups_are_known=False,
        )
        key = (org.id, fresh.serial)
        name = locks.name_of(fresh)
        async with self._database.transaction(scope) as connection:
            known = (await locks.lock_devices(connection, {key})).get(key)
            waiting = (await expected.lock(connection, {name})).get(name)
        if known is None:
            fresh = expected.arriving(fresh, waiting)
        issued = await self._peers.issue(prepare(known, fresh, at))
        async with self._database.transaction(scope) as connection:
            await membership.hold(connection, [org.id])
            before = (await locks.lock_devices(connection, {key})).get(key)
            if before != known or (await expected.lock(connection, {name})).get(name) != waiting:
                raise _changed_meanwhile()
            device = prepare(before, fresh, at)
            try:
                if before is None:
                    await device_store.insert_devices(connection, [device])
                    await expected.remove(connection, [device.id])
                else:
                    await device_store.update_devices(connection, [device])
            except device_store.SerialTakenError as taken:
                raise _changed_meanwhile() from taken
            settled = await membership.settle(connection, {org.id: [device.id]})
            device = device_store.with_groups(device, settled.memberships)
            await self._outbox.append(
                connection,
                CloudEvent(
                    DevicePrepared(
                        id=device.id,
                        before=before.snapshot() if before else None,
                        after=device.snapshot(),
                    ),
                    org.id,
                ),
                *membership.events_of(settled.moved),
            )
        if not await self._peers.admits(org.id, key_id):
            # Retired between the two: policy may not have counted this device.
            raise failed_precondition(
                "POLICY_KEY_RETIRED",
                "the policy key was retired at this moment; let the device enroll again, and"
                " prepare it with another one",
            )
        return Prepared(device, issued)

    async def changes(
        self, cursor: str, limit: int, *, restricted_only: bool
    ) -> tuple[FeedPage, Sequence[Device]]:
        """The feed of devices for the other services."""
        async with self._database.system_transaction("the feed tells of all tenants") as connection:
            return await device_store.changed_devices(
                connection, Cursor.parse(cursor), limit, restricted_only=restricted_only
            )


def happened(event: type[_Change], before: Device, after: Device) -> _Change:
    """The event of a change."""
    if event is DeviceLabelsChanged:
        return DeviceLabelsChanged(id=after.id, before=before.details(), after=after.details())
    return event(id=after.id, before=before.snapshot(), after=after.snapshot())  # type: ignore[arg-type]  # not the one above


def _changed_meanwhile() -> DomainError:
    return aborted("DEVICE_CHANGED", "the device changed meanwhile; try again")
