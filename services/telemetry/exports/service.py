"""Exports: whole lists as files, a page at a time, a bounded number of them at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Final
from uuid import UUID

from contract.events.base import Export
from contract.events.telemetry import DevicesExported, EventsExported, QuarantinedEventExported
from servicekit.admission.fair import Shares
from servicekit.call import Call, Caller
from servicekit.data.postgres import Database
from servicekit.errors import exhausted, not_found
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import TimePosition
from servicekit.times import format_rfc3339
from services.telemetry.events import store as event_store
from services.telemetry.events.domain import EventFilter, StoredEvent
from services.telemetry.inventory import store as device_store
from services.telemetry.inventory.domain import DeviceFilter, DeviceSummary, NamePosition
from services.telemetry.inventory.query import DeviceQuery
from services.telemetry.inventory.service import Inventory

EXPORT_PAGE: Final = 500
_CONTENT_PAGE: Final = 1 << 20
"""Characters."""
_RETRY_AFTER: Final = 30.0


class Exports:
    """Reads lists to their end.

    Each page is a transaction of its own, and the next one is read when the one before was sent:
    a slow reader holds neither a connection nor old rows, and an export holds one page in memory.
    An export that its reader gives up ends at the next page. The audit log hears of each when it
    begins.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        inventory: Inventory,
        most: int,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._inventory = inventory
        self._places = Shares(most)

    @contextmanager
    def _place(self, caller: Caller) -> Iterator[None]:
        if not self._places.take(caller.tenant_id):
            raise exhausted(
                "TOO_MANY_EXPORTS",
                "too many exports at once; try again when one has ended",
                retry_after=_RETRY_AFTER,
            )
        try:
            yield
        finally:
            self._places.give_back(caller.tenant_id)

    async def events(
        self, call: Call, org_id: UUID | None, wanted: EventFilter, limit: int, file_format: str
    ) -> AsyncGenerator[Sequence[StoredEvent], None]:
        """The events that are stored when it begins, newest first.

        `limit` bounds their number, 0 does not. There is always a first page, be it empty.

        Raises:
            DomainError: NOT_FOUND for an org that is not in the subtree; RESOURCE_EXHAUSTED.
        """
        scope = await self._tenants.query_scope(call.caller, org_id)
        tenant_id = org_id or UUID(call.caller.tenant_id)
        with self._place(call.caller):
            async with self._database.transaction(scope) as connection:
                asked = _export(
                    file_format,
                    deviceId=wanted.device_id,
                    action=wanted.type,
                    severity=wanted.severity,
                    search=wanted.search,
                    occurredAfter=wanted.occurred_from,
                    occurredBefore=wanted.occurred_before,
                    receivedAfter=wanted.received_from,
                    receivedBefore=wanted.received_before,
                    limit=limit,
                )
                event = EventsExported(id=tenant_id, after=asked)
                await self._outbox.append(connection, CloudEvent(event, tenant_id))
                wanted = replace(wanted, as_of=await event_store.snapshot(connection))
            position: TimePosition | None = None
            left = limit
            begun = False
            while True:
                size = min(EXPORT_PAGE, left) if limit else EXPORT_PAGE
                async with self._database.transaction(scope) as connection:
                    page = await event_store.list_events(connection, scope, wanted, position, size)
                if page.items or not begun:
                    yield page.items
                    begun = True
                left -= len(page.items)
                position = page.after
                if position is None or (limit and left <= 0):
                    return

    async def quarantined(self, call: Call, event_id: UUID) -> AsyncGenerator[tuple[str], None]:
        """The whole content of a quarantined event, in parts.

        Raises:
            DomainError: NOT_FOUND; RESOURCE_EXHAUSTED.
        """
        scope = await self._tenants.query_scope(call.caller)
        position = 0
        with self._place(call.caller):
            while True:
                async with self._database.transaction(scope) as connection:
                    part = await event_store.quarantined_content(
                        connection, scope, event_id, position, _CONTENT_PAGE
                    )
                    if part is None and not position:
                        raise not_found("quarantined event", event_id)
                    if not position:
                        event = QuarantinedEventExported(id=event_id, after=_export("txt"))
                        await self._outbox.append(
                            connection, CloudEvent(event, UUID(call.caller.tenant_id))
                        )
                if part or not position:
                    yield (part or "",)
                if part is None or len(part) < _CONTENT_PAGE:
                    return
                position += len(part)

    async def devices(
        self, call: Call, org_id: UUID | None, wanted: DeviceFilter, file_format: str
    ) -> AsyncGenerator[Sequence[DeviceSummary], None]:
        """The devices, by name. Each is as it was when its page was read.

        There is always a first page, be it empty.

        Raises:
            DomainError: as `events`.
        """
        scope = await self._tenants.query_scope(call.caller, org_id)
        tenant_id = org_id or UUID(call.caller.tenant_id)
        with self._place(call.caller):
            await self._inventory.refresh()
            async with self._database.transaction(scope) as connection:
                asked = _export(
                    file_format,
                    status=wanted.status,
                    health=wanted.health,
                    search=wanted.search,
                    serial=wanted.serial,
                    cloneSuspected=wanted.clone_suspected,
                    attestationVerdict=wanted.attestation_verdict,
                    fallsShort=wanted.falls_short,
                    restricted=wanted.restricted,
                    lastSeenAfter=wanted.seen_after,
                    lastSeenBefore=wanted.seen_before,
                )
                event = DevicesExported(id=tenant_id, after=asked)
                await self._outbox.append(connection, CloudEvent(event, tenant_id))
            since = self._inventory.online_since()
            position: NamePosition | None = None
            begun = False
            while True:
                async with self._database.transaction(scope) as connection:
                    page = await device_store.list_devices(
                        connection,
                        DeviceQuery(
                            scope, wanted, position, EXPORT_PAGE, since, self._inventory.now()
                        ),
                    )
                if page.items or not begun:
                    yield page.items
                    begun = True
                position = page.after
                if position is None:
                    return


def _export(file_format: str, /, **filters: object) -> Export:
    """What the audit log says of an export: of its filters those that say something."""
    given = {
        name: value if isinstance(value, int) else _text(value)
        for name, value in filters.items()
        if value
    }
    return Export(format=file_format, filter=given)


def _text(value: object) -> str:
    return format_rfc3339(value) if isinstance(value, datetime) else str(value)
