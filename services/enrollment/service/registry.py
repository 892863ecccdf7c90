"""The registry of devices: what administrators see of it, and decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from servicekit.call import Call
from servicekit.errors import DomainError, aborted, not_found
from servicekit.events import Event
from servicekit.feed import Cursor, Page
from servicekit.ids import Clock, new_id
from servicekit.outbox import Outbox
from servicekit.postgres import Database
from servicekit.tenants import TenantDirectory
from services.enrollment.domain.keys import clean_serial
from services.enrollment.domain.registry import (
    allow_reenrollment,
    approve,
    decommission,
    prepare,
    reject,
)
from services.enrollment.domain.types import Device, Hardware, Status
from services.enrollment.service.peers import Issued, Peers
from services.enrollment.store import devices as device_store


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
        self, call: Call, org_id: str, status: str, before: UUID | None, limit: int
    ) -> list[Device]:
        """Devices of the caller's subtree, newest first, behind a position."""
        scope = await self._tenants.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            return await device_store.list_devices(connection, scope, status, before, limit)

    async def get(self, call: Call, device_id: str) -> Device:
        """One device of the caller's subtree.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._tenants.query_scope(call.caller, "")
        async with self._database.transaction(scope) as connection:
            device = await device_store.device(connection, scope, UUID(device_id))
        if device is None:
            raise not_found("device", device_id)
        return device

    async def approve(self, call: Call, device_id: str) -> Device:
        """Admits a device that waits; its next attempt to enroll succeeds.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION when it does not wait.
        """
        at = self._clock()
        return await self._change(
            call, device_id, "enrollment.device_approved", lambda device: approve(device, at)
        )

    async def reject(self, call: Call, device_id: str) -> Device:
        """Refuses a device that waits.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION when it does not wait.
        """
        return await self._change(call, device_id, "enrollment.device_rejected", reject)

    async def allow_reenrollment(self, call: Call, device_id: str) -> Device:
        """Lets a device enroll again, once.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION when it waits for approval.
        """
        at = self._clock()
        return await self._change(
            call,
            device_id,
            "enrollment.reenrollment_allowed",
            lambda device: allow_reenrollment(device, at),
        )

    async def decommission(self, call: Call, device_id: str) -> Device:
        """Locks a device out; the other services hear of it through the feed.

        Raises:
            DomainError: NOT_FOUND.
        """
        at = self._clock()
        return await self._change(
            call,
            device_id,
            "enrollment.device_decommissioned",
            lambda device: decommission(device, at),
        )

    async def _change(
        self, call: Call, device_id: str, event: str, change: Callable[[Device], Device]
    ) -> Device:
        """Changes a device; a change that is made already is no second event."""
        scope = await self._tenants.query_scope(call.caller, "")
        async with self._database.transaction(scope) as connection:
            before = await device_store.device(connection, scope, UUID(device_id), for_update=True)
            if before is None:
                raise not_found("device", device_id)
            after = change(before)
            if after != before:
                await device_store.update_devices(connection, [after])
                await self._outbox.append(connection, _event(event, after, before))
        return after

    async def prepare(self, call: Call, org_id: str, serial: str, model: str) -> Prepared:
        """Registers a device ahead of its first start.

        Its token and policy are fetched before the device is registered: what fails leaves no
        device behind whose file nobody has.

        Raises:
            DomainError: NOT_FOUND for the organisation; ALREADY_EXISTS when the serial number is
                known; UNAVAILABLE when identity or policy is away.
        """
        org = await self._tenants.require_org(call.caller, org_id)
        scope = self._tenants.scope(org.id)
        at = self._clock()
        fresh = Device(
            id=new_id(),
            tenant_id=org.id,
            serial=clean_serial(serial),
            hardware=Hardware(model=model),
            status=Status.PREPARED,
            token_version=1,
            enrollment_token_id=None,
            fingerprint=None,
            created_at=at,
        )
        key = (org.id, fresh.serial)
        async with self._database.transaction(scope) as connection:
            known = (await device_store.lock_devices(connection, {key})).get(key)
        issued = await self._peers.issue(prepare(known, fresh, at))
        async with self._database.transaction(scope) as connection:
            before = (await device_store.lock_devices(connection, {key})).get(key)
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
                connection, _event("enrollment.device_prepared", device, before)
            )
        return Prepared(device, issued)

    async def changes(
        self, cursor: str, limit: int, *, restricted_only: bool
    ) -> tuple[Page, Sequence[Device]]:
        """The feed of devices for the other services."""
        async with self._database.transaction() as connection:
            return await device_store.changed_devices(
                connection, Cursor.parse(cursor), limit, restricted_only=restricted_only
            )


def _changed_meanwhile() -> DomainError:
    return aborted("DEVICE_CHANGED", "the device changed meanwhile; try again")


def _event(name: str, after: Device, before: Device | None) -> Event:
    return Event(
        name,
        after.tenant_id,
        f"devices/{after.id}",
        before=before.audit() if before else None,
        after=after.audit(),
    )
