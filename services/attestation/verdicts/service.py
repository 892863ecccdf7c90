"""Lists, files and counts of verdicts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from prometheus_client import Gauge

from contract.events.attestation import AttestationsExported
from contract.events.base import Export
from servicekit.admission.fair import Shares
from servicekit.call import Call
from servicekit.data.postgres import Database
from servicekit.errors import exhausted, not_found
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.observability.logs import Repeated, brief
from servicekit.peers.devices import DeviceAccess
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import MAX_SIZE, Page
from services.attestation.grades import VERDICTS
from services.attestation.verdicts import store
from services.attestation.verdicts.domain import Attested, BootVerdict, Wanted

log = logs.get(__name__)

DEVICES: Final = Gauge(
    "evergreen_attestation_devices", "Devices in use, by their latest verdict.", ["verdict"]
)
STALE: Final = Gauge(
    "evergreen_attestation_stale_devices", "Devices in use whose latest evidence is too old."
)
_COUNT_SECONDS: Final = 60.0
_REFRESH_SECONDS: Final = 1.0
_MOST_EXPORTS: Final = 4
_RETRY_AFTER: Final = 30.0


class Verdicts:
    """The verdicts as administrators see them."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        devices: DeviceAccess,
        stale_after: timedelta,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._devices = devices
        self._stale_after = stale_after
        self._clock = clock
        self._exports = Shares(_MOST_EXPORTS)

    def stale_before(self) -> datetime:
        """Evidence from before this time is stale."""
        return self._clock() - self._stale_after

    async def list_devices(
        self, call: Call, org_id: UUID | None, wanted: Wanted, after: UUID | None, limit: int
    ) -> Page[Attested, UUID]:
        """The devices of the caller's subtree, or of one org in it, by id.

        Raises:
            DomainError: NOT_FOUND for an org that is not in the subtree.
        """
        scope = await self._tenants.query_scope(call.caller, org_id)
        await self._refresh()
        async with self._database.transaction(scope) as connection:
            return await store.list_devices(connection, scope, wanted, after, limit)

    async def get_device(self, call: Call, device_id: UUID) -> Attested:
        """The latest verdict of a device of the caller's subtree.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._tenants.query_scope(call.caller)
        await self._refresh()
        async with self._database.transaction(scope) as connection:
            found = await store.get_device(connection, scope, device_id)
        if found is None:
            raise not_found("device", device_id)
        return found

    async def list_verdicts(
        self, call: Call, device_id: UUID, before: UUID | None, limit: int
    ) -> Page[BootVerdict, UUID]:
        """The verdicts of a device of the caller's subtree, the newest first.

        Raises:
            DomainError: NOT_FOUND.
        """
        await self.get_device(call, device_id)
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            return await store.list_verdicts(connection, scope, device_id, before, limit)

    async def export(
        self, call: Call, org_id: UUID | None, wanted: Wanted, file_format: str
    ) -> AsyncGenerator[Sequence[Attested], None]:
        """The devices, by id, each as it was when its page was read.

        There is always a first page, be it empty. The audit log hears of it when it begins.

        Raises:
            DomainError: NOT_FOUND for an org that is not in the subtree; RESOURCE_EXHAUSTED.
        """
        scope = await self._tenants.query_scope(call.caller, org_id)
        tenant_id = org_id or UUID(call.caller.tenant_id)
        if not self._exports.take(call.caller.tenant_id):
            raise exhausted(
                "TOO_MANY_EXPORTS",
                "too many exports at once; try again when one has ended",
                retry_after=_RETRY_AFTER,
            )
        try:
            await self._refresh()
            asked = {
                "verdict": wanted.verdict,
                "reason": wanted.reason,
                "stale": wanted.older_than is not None,
            }
            given = {name: value for name, value in asked.items() if value}
            event = AttestationsExported(
                id=tenant_id, after=Export(format=file_format, filter=given)
            )
            async with self._database.transaction(scope) as connection:
                await self._outbox.append(connection, CloudEvent(event, tenant_id))
            after: UUID | None = None
            begun = False
            while not begun or after is not None:
                async with self._database.transaction(scope) as connection:
                    page = await store.list_devices(connection, scope, wanted, after, MAX_SIZE)
                yield page.items
                after, begun = page.after, True
        finally:
            self._exports.give_back(call.caller.tenant_id)

    async def watch(self) -> None:
        """Counts devices once a minute, for as long as the service lives."""
        outage = Repeated(log, "verdicts are not counted")
        while True:
            try:
                await self.count()
                outage.worked()
            except Exception as error:
                outage.failed(error)
            await asyncio.sleep(_COUNT_SECONDS)

    async def count(self) -> None:
        """Counts the devices of the installation for the metrics."""
        async with self._database.system_transaction("the metric counts all tenants") as connection:
            counts = await store.count(connection, self.stale_before())
        for verdict in VERDICTS:
            DEVICES.labels(verdict).set(counts.by_verdict.get(verdict, 0))
        STALE.set(counts.stale)

    async def _refresh(self) -> None:
        """Asks the registry once more: who has just admitted a device looks for it in the list."""
        try:
            async with asyncio.timeout(_REFRESH_SECONDS):
                await self._devices.follower.refresh()
        except Exception as error:
            log.debug("lists served from last known state", error=brief(error))
