"""The registry of devices: what administrators see of it, and decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

from contract.events.enrollment import (
    DeviceApproved,
    DeviceDecommissioned,
    DeviceDeleted,
    DevicePrepared,
    DeviceRejected,
    ReenrollmentAllowed,
)
from servicekit.call import Call
from servicekit.data.postgres import Database
from servicekit.errors import DomainError, aborted, not_found
from servicekit.etags import check_etag
from servicekit.feeds.feed import Cursor, FeedPage
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import Page, TimePosition
from servicekit.serials import as_printed
from services.enrollment.registry import locks
from services.enrollment.registry import store as device_store
from services.enrollment.registry.domain import (
    Device,
    Hardware,
    Status,
    allow_reenrollment,
    approve,
    decommission,
    delete,
    prepare,
    reject,
)
from services.enrollment.registry.peers import Issued, Peers
from services.enrollment.registry.refusals import Refusal, list_refusals
from services.enrollment.registry.serials import names_device, refuse_reserved, unnamed

_Decision: TypeAlias = (
    DeviceApproved | DeviceRejected | ReenrollmentAllowed | DeviceDecommissioned | DeviceDeleted
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A device that was registered ahead of its first start, and what it starts with."""

    device: Device
    issued: Issued


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
        status: str,
        before: UUID | None,
        limit: int,
        *,
        deleted: bool,
        serial: str = "",
    ) -> Page[Device, UUID]:
        """Devices of the caller's subtree, newest first, behind a position.

        Args:
            deleted: whether to list what stays of deleted ones, too.
        """
        scope = await self._tenants.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            return await device_store.list_devices(
                connection, scope, status, before, limit, deleted=deleted, serial=serial
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

    async def _change(
        self,
        call: Call,
        device_id: UUID,
        event: type[_Decision],
        change: Callable[[Device], Device],
        *,
        validate_only: bool = False,
    ) -> Device:
        """Changes a device; a change that is made already is no second event."""
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            before = await device_store.device(connection, scope, device_id, for_update=True)
            if before is None:
                raise not_found("device", device_id)
            check_etag(before.etag)
            after = change(before)
            if after != before and not validate_only:
                await device_store.update_devices(connection, [after])
                happened = event(id=after.id, before=before.snapshot(), after=after.snapshot())
                await self._outbox.append(connection, CloudEvent(happened, after.tenant_id))
        return after

    async def prepare(self, call: Call, org_id: UUID, serial: str, model: str) -> Prepared:
        """Registers a device ahead of its first start.

        A machine without a serial number of its own may be registered, too, by what its firmware
        says in place of one: the file is its name.
        Token and policy are fetched before the device is registered: what fails leaves no
        device behind whose file nobody has.

        Raises:
            DomainError: NOT_FOUND for the organisation; ALREADY_EXISTS when the serial number is
                known; UNAVAILABLE when identity or policy is away.
        """
        org = await self._tenants.require_org(call.caller, org_id, to_add=True)
        scope = self._tenants.scope(org.id)
        at = self._clock()
        device_id = new_id()
        has_name = names_device(serial)
        if not has_name:
            refuse_reserved(serial)
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
        )
        key = (org.id, fresh.serial)
        async with self._database.transaction(scope) as connection:
            known = (await locks.lock_devices(connection, {key})).get(key)
        issued = await self._peers.issue(prepare(known, fresh, at))
        async with self._database.transaction(scope) as connection:
            before = (await locks.lock_devices(connection, {key})).get(key)
            if before != known:
                raise _changed_meanwhile()
            device = prepare(before, fresh, at)
            try:
                if before is None:
                    await device_store.insert_devices(connection, [device])
                else:
                    await device_store.update_devices(connection, [device])
            except device_store.SerialTakenError as taken:
                raise _changed_meanwhile() from taken
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


def _changed_meanwhile() -> DomainError:
    return aborted("DEVICE_CHANGED", "the device changed meanwhile; try again")
