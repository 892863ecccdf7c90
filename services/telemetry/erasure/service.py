"""What telemetry erases of organisations and devices that are deleted."""

from __future__ import annotations

import asyncio
from typing import Final
from uuid import UUID

from servicekit.data.postgres import Connection, Database, Scope
from servicekit.data.quarantine import ROW_ERRORS, note, place
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from servicekit.peers.closing import ROWS, TenantWork
from servicekit.peers.tenants import TenantNode
from services.telemetry.erasure import store

log = logs.get(__name__)

_PLACE: Final = place("telemetry", "deleted_devices")
_LOOK_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.02
_PAGE: Final = 100
_NIL: Final = UUID(int=0)


async def _erase(connection: Connection, org: TenantNode) -> int:
    return await store.erase_events(connection, org.id, ROWS)


async def _waits_for(connection: Connection, tenant_id: UUID) -> str:
    left = await store.has_events(connection, tenant_id)
    return "events that are not published yet" if left else ""


WORK = TenantWork(erase=_erase, waits_for=_waits_for)
"""The part of telemetry; events that are not published yet stay until they are."""


class DeletedDevices:
    """Erases the events of devices that the registry deleted."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def run(self) -> None:
        """Erases what there is, for as long as the service lives."""
        outage = Repeated(log, "events of deleted devices wait")
        while True:
            try:
                await self.once()
                outage.worked()
            except Exception as error:
                outage.failed(error)
            await asyncio.sleep(_LOOK_SECONDS)

    async def once(self) -> None:
        """Erases all that is published of each device; one that fails is left for later."""
        after = _NIL
        while True:
            async with self._database.system_transaction(
                "devices of all tenants are deleted"
            ) as connection:
                page = await store.deleted_devices(connection, after, _PAGE)
            for device in page:
                try:
                    await self._erase(device)
                except ROW_ERRORS as error:
                    note(_PLACE, device.id, error)
            if len(page) < _PAGE:
                return
            after = page[-1].id

    async def _erase(self, device: store.DeletedDevice) -> None:
        rows = 1
        while rows:
            async with self._database.transaction(Scope.of(device.tenant_id)) as connection:
                rows = await store.erase_device(connection, device, ROWS)
                if rows == 0:
                    await store.settle_deleted(connection, device)
            await asyncio.sleep(_PAUSE_SECONDS)
