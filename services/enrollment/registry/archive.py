"""The devices of an organisation that is archived or restored."""

from __future__ import annotations

from typing import Final

from contract.events.enrollment import DeviceDecommissioned, DeviceRestored
from servicekit.data.postgres import Connection
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.closing import TenantWork
from servicekit.peers.tenants import TenantNode
from services.enrollment.groups import membership
from services.enrollment.registry import domain, store

_DEVICES: Final = 200
"""Devices that a step changes, each with its event."""


class ArchivedDevices:
    """Decommissions the devices of an archived organisation, and brings them back with it."""

    def __init__(self, outbox: Outbox, clock: Clock) -> None:
        self._outbox = outbox
        self._clock = clock

    @property
    def work(self) -> TenantWork:
        """The part of enrollment."""
        return TenantWork(archive=self.archive, restore=self.restore)

    async def archive(self, connection: Connection, org: TenantNode) -> int:
        """Decommissions some devices; answers how many."""
        await membership.hold(connection, [org.id])
        found = await store.devices_to_archive(connection, org.id, _DEVICES)
        at = self._clock()
        await self._change(
            connection,
            DeviceDecommissioned,
            [(device, domain.archive(device, at)) for device in found],
            org.closed_by,
        )
        return len(found)

    async def restore(self, connection: Connection, org: TenantNode) -> int:
        """Brings back some devices that the archive decommissioned; answers how many."""
        await membership.hold(connection, [org.id])
        found = await store.devices_to_restore(connection, org.id, _DEVICES)
        await store.note_restored(connection, found, self._clock())
        await self._change(
            connection,
            DeviceRestored,
            [(device, domain.restore(device)) for device in found],
        )
        return len(found)

    async def _change(
        self,
        connection: Connection,
        event: type[DeviceDecommissioned | DeviceRestored],
        changes: list[tuple[domain.Device, domain.Device]],
        actor: str = "",
    ) -> None:
        if not changes:
            return
        await store.update_devices(connection, [after for _, after in changes])
        settled = await membership.settle(
            connection, membership.by_tenant([(after.tenant_id, after.id) for _, after in changes])
        )
        await self._outbox.append(
            connection,
            *(
                CloudEvent(
                    event(id=after.id, before=before.snapshot(), after=after.snapshot()),
                    after.tenant_id,
                    actor=actor,
                )
                for before, after in changes
            ),
            *membership.events_of(settled.moved),
        )
