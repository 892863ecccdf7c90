"""Exports: whole lists as files, a page at a time, a bounded number of them at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Final
from uuid import UUID

from servicekit.call import Caller
from servicekit.errors import exhausted, not_found
from servicekit.events import Event
from servicekit.fair import Shares
from servicekit.outbox import Outbox
from servicekit.postgres import Connection, Database
from servicekit.tenants import TenantDirectory
from services.telemetry.domain.times import format_time
from services.telemetry.domain.views import (
    DeviceFilter,
    DeviceSummary,
    EventFilter,
    EventPosition,
    NamePosition,
    StoredEvent,
)
from services.telemetry.service.inventory import Inventory
from services.telemetry.store import events as event_store
from services.telemetry.store import inventory as device_store
from services.telemetry.store.query import DeviceQuery

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
        self, caller: Caller, org_id: str, wanted: EventFilter, limit: int, file_format: str
    ) -> AsyncGenerator[list[StoredEvent], None]:
        """The events that are stored when it begins, newest first.

        `limit` bounds their number, 0 does not. There is always a first page, be it empty.

        Raises:
            DomainError: NOT_FOUND for an org that is not in the subtree; RESOURCE_EXHAUSTED.
        """
        scope = await self._tenants.query_scope(caller, org_id)
        tenant_id = UUID(org_id or caller.tenant_id)
        with self._place(caller):
            async with self._database.transaction() as connection:
                await self._tell(
                    connection,
                    "telemetry.events_exported",
                    f"tenants/{tenant_id}/events",
                    tenant_id,
                    file_format,
                    deviceId=wanted.device_id,
                    action=wanted.type,
                    severity=wanted.severity,
                    search=wanted.search,
                    occurredAfter=wanted.occurred_from,
                    occurredBefore=wanted.occurred_before,
                    limit=limit,
                )
                wanted = replace(wanted, as_of=await event_store.snapshot(connection))
            position: EventPosition | None = None
            left = limit
            begun = False
            while True:
                size = min(EXPORT_PAGE, left) if limit else EXPORT_PAGE
                async with self._database.transaction(scope) as connection:
                    page = await event_store.list_events(connection, scope, wanted, position, size)
                if page.events or not begun:
                    yield page.events
                    begun = True
                left -= len(page.events)
                position = page.after
                if position is None or (limit and left <= 0):
                    return

    async def quarantined(self, caller: Caller, event_id: UUID) -> AsyncGenerator[str, None]:
        """The whole content of a quarantined event, in parts.

        Raises:
            DomainError: NOT_FOUND; RESOURCE_EXHAUSTED.
        """
        scope = await self._tenants.query_scope(caller, "")
        position = 0
        with self._place(caller):
            while True:
                async with self._database.transaction(scope) as connection:
                    part = await event_store.quarantined_content(
                        connection, scope, event_id, position, _CONTENT_PAGE
                    )
                    if part is None and not position:
                        raise not_found("quarantined event", str(event_id))
                    if not position:
                        await self._tell(
                            connection,
                            "telemetry.quarantined_event_exported",
                            f"quarantined-events/{event_id}",
                            UUID(caller.tenant_id),
                            "txt",
                        )
                if part or not position:
                    yield part or ""
                if part is None or len(part) < _CONTENT_PAGE:
                    return
                position += len(part)

    async def devices(
        self, caller: Caller, org_id: str, wanted: DeviceFilter, file_format: str
    ) -> AsyncGenerator[list[DeviceSummary], None]:
        """The devices, by name. Each is as it was when its page was read.

        There is always a first page, be it empty.

        Raises:
            DomainError: as `events`.
        """
        scope = await self._tenants.query_scope(caller, org_id)
        tenant_id = UUID(org_id or caller.tenant_id)
        with self._place(caller):
            await self._inventory.refresh()
            async with self._database.transaction() as connection:
                await self._tell(
                    connection,
                    "telemetry.devices_exported",
                    f"tenants/{tenant_id}/devices",
                    tenant_id,
                    file_format,
                    status=wanted.status,
                    health=wanted.health,
                    search=wanted.search,
                    lastSeenAfter=wanted.seen_after,
                    lastSeenBefore=wanted.seen_before,
                )
            since = self._inventory.online_since()
            position: NamePosition | None = None
            begun = False
            while True:
                async with self._database.transaction(scope) as connection:
                    page = await device_store.list_devices(
                        connection, DeviceQuery(scope, wanted, position, EXPORT_PAGE, since)
                    )
                if page.devices or not begun:
                    yield page.devices
                    begun = True
                position = page.after
                if position is None:
                    return

    async def _tell(
        self,
        connection: Connection,
        action: str,
        resource: str,
        tenant_id: UUID,
        file_format: str,
        /,
        **filters: object,
    ) -> None:
        """Has the audit log say that an export began; of its filters those that say something."""
        after = {"format": file_format, "filter": _given(**filters)}
        await self._outbox.append(connection, Event(action, tenant_id, resource, after=after))


def _given(**filters: object) -> dict[str, object]:
    """The filters that say something, as JSON has them."""
    return {
        name: value if isinstance(value, int) else _text(value)
        for name, value in filters.items()
        if value
    }


def _text(value: object) -> str:
    return format_time(value) if isinstance(value, datetime) else str(value)
