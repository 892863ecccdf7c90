"""Has devices apply their policy again: who was asked to, and who was served since."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from contract.events.policy import DeviceSyncRequested, RequestedSync
from evergreen.v1 import enrollment_pb2
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.data.quarantine import place, write_readable
from servicekit.errors import DomainError, failed_precondition, not_found, unavailable
from servicekit.feeds.changes import Changes
from servicekit.feeds.feed import Cursor
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.peers.devices import DeviceAccess, Mirror
from servicekit.peers.tenants import TenantDirectory
from services.policy.syncs import store
from services.policy.syncs.store import RegisteredDevice, Sync
from services.policy.targets.service import Ending
from services.policy.targets.store import Membership, write_memberships

log = logs.get(__name__)

_PLACE: Final = place("policy", "write_syncs")
_IN_USE: Final = frozenset({"active", "prepared"})


def _device(change: enrollment_pb2.DeviceChange) -> RegisteredDevice:
    enrolled = change.HasField("enrolled_at")
    return RegisteredDevice(
        device_id=UUID(change.device_id),
        tenant_id=UUID(change.tenant_id),
        status=change.status,
        enrolled_at=change.enrolled_at.ToDatetime(tzinfo=UTC) if enrolled else None,
        deleted=change.deleted,
        archived=change.archived,
        membership=_membership(change),
    )


def _membership(change: enrollment_pb2.DeviceChange) -> Membership | None:
    if not change.HasField("membership"):
        return None
    return Membership(
        UUID(change.device_id),
        UUID(change.tenant_id),
        tuple(sorted(map(UUID, change.membership.group_ids))),
        change.membership.revision,
        change.membership.policy_key_id,
    )


_DEVICES: Final = place("policy", "follow_devices")


def mirror(end: Ending) -> Mirror[RegisteredDevice]:
    """What policy keeps of the registry: which device belongs to which organisation, since when,
    and in which groups it is.

    Args:
        end: is told of devices that are deleted.
    """

    async def write(connection: Connection, devices: Sequence[RegisteredDevice]) -> None:
        if staying := [device for device in devices if not device.deleted]:
            await store.write_devices(connection, staying)
            await write_memberships(
                connection, [one.membership for one in staying if one.membership is not None]
            )
        gone = [device for device in devices if device.deleted]
        await store.delete_devices(connection, gone)
        await end(connection, [device.device_id for device in gone])

    return Mirror(
        place=_DEVICES,
        make=_device,
        device_of=lambda device: device.device_id,
        write=write,
        read_position=store.devices_cursor,
        write_position=store.write_devices_cursor,
    )


class Syncs:
    """The wishes that devices apply their policy again. Its feed is run by the service."""

    def __init__(
        self,
        database: Database,
        changes: Changes,
        outbox: Outbox,
        tenants: TenantDirectory,
        devices: DeviceAccess,
        clock: Clock,
    ) -> None:
        self._database = database
        self._changes = changes
        self._outbox = outbox
        self._tenants = tenants
        self._devices = devices
        self._clock = clock
        self._asked: dict[str, datetime] = {}
        self._served: dict[str, Sync] = {}
        self.follower = changes.follower("device syncs", self._fetch)
        devices.on_deleted.append(self._forget)

    @property
    def asked(self) -> Mapping[str, datetime]:
        """The devices that are to be served again, and since when; always the same mapping."""
        return self._asked

    async def request(self, call: Call, device_id: UUID) -> datetime:
        """Has a device apply its policy again at its next poll.

        Raises:
            DomainError: NOT_FOUND when the caller's subtree has no such device;
                FAILED_PRECONDITION when it is not in use; UNAVAILABLE when the registry cannot be
                asked.
        """
        scope = await self._tenants.query_scope(call.caller)
        org_id = await self._org_of_active(scope, device_id)
        now = self._clock()
        async with self._database.transaction(scope) as connection:
            await store.insert(connection, device_id, org_id, now)
            await self._outbox.append(
                connection,
                CloudEvent(
                    DeviceSyncRequested(id=device_id, after=RequestedSync(requested_at=now)),
                    org_id,
                ),
            )
        await self._changes.catch_up()
        return now

    def serve(self, device_id: str, now: datetime) -> None:
        """Notes that a device gets its policy again."""
        requested_at = self._asked.pop(device_id, None)
        if requested_at is None:
            # Another poll of the device was served meanwhile.
            return
        self._served[device_id] = Sync(UUID(device_id), requested_at, now)

    @property
    def has_served(self) -> bool:
        """Whether wishes were fulfilled that the feed does not tell of yet."""
        return bool(self._served)

    async def flush(self) -> None:
        """Writes which wishes were fulfilled; they wait in memory while the database is away."""
        served = list(self._served.values())
        if not served:
            return

        async def write(some: Sequence[Sync]) -> None:
            async with self._database.system_transaction("a batch spans tenants") as connection:
                await store.write_served(connection, some)

        try:
            await write_readable(_PLACE, served, write, lambda sync: sync.device_id)
        except DomainError as away:
            log.info("served syncs wait to be written", waiting=len(served), error=away.message)

    def _forget(self, device_ids: Collection[UUID]) -> None:
        for device_id in device_ids:
            self._asked.pop(str(device_id), None)

    async def _org_of_active(self, scope: Scope, device_id: UUID) -> UUID:
        """The org of a device in the scope that may pull policies.

        Before it refuses, it asks the registry: the device may have been admitted a moment ago.
        """
        found = await self._find(scope, device_id)
        if found is None or found[1] not in _IN_USE:
            try:
                await self._devices.follower.refresh()
            except Exception as error:
                raise unavailable("the device registry is not available; try again") from error
            found = await self._find(scope, device_id)
        if found is None:
            raise not_found("device", str(device_id))
        org_id, status = found
        if status not in _IN_USE:
            raise failed_precondition("DEVICE_NOT_ACTIVE", f"the device is {status}")
        return org_id

    async def _find(self, scope: Scope, device_id: UUID) -> tuple[UUID, str] | None:
        async with self._database.transaction(scope) as connection:
            return await store.device_tenant(connection, scope, device_id)

    async def _fetch(self, cursor: str) -> tuple[str, bool]:
        async with self._database.system_transaction("the cache has all tenants") as connection:
            page, found = await store.read_since(connection, Cursor.parse(cursor))
        self._apply(found)
        return str(page.cursor), page.more

    def _apply(self, syncs: Iterable[Sync]) -> None:
        for sync in syncs:
            device_id = str(sync.device_id)
            served = self._served.get(device_id)
            if served is not None and served.requested_at == sync.requested_at:
                # Served here; the row is about to say so, or says so already.
                if sync.served_at is not None:
                    del self._served[device_id]
                continue
            self._served.pop(device_id, None)
            if sync.served_at is None:
                self._asked[device_id] = sync.requested_at
            else:
                self._asked.pop(device_id, None)
