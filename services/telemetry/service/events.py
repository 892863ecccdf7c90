"""What happened on devices: lists and exports for administrators."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Final
from uuid import UUID

from servicekit.call import Caller
from servicekit.ids import Clock
from servicekit.postgres import Database, Scope
from servicekit.tenants import TenantDirectory
from services.telemetry.domain.views import (
    EventFilter,
    EventPosition,
    QuarantinedEvent,
    StoredEvent,
)
from services.telemetry.store import events as store

EXPORT_PAGE: Final = 500


class EventQueries:
    """Answers administrators about events."""

    def __init__(self, database: Database, tenants: TenantDirectory, clock: Clock) -> None:
        self._database = database
        self._tenants = tenants
        self._clock = clock

    async def list_events(
        self,
        caller: Caller,
        org_id: str,
        wanted: EventFilter,
        before: EventPosition | None,
        limit: int,
    ) -> list[StoredEvent]:
        """The next events of the caller's subtree, or of one org in it, newest first.

        Raises:
            DomainError: NOT_FOUND for an org that is not in the subtree.
        """
        scope = await self._tenants.query_scope(caller, org_id)
        return await self._page(scope, wanted, before, limit)

    async def list_quarantined(
        self,
        caller: Caller,
        org_id: str,
        device_id: UUID | None,
        before: UUID | None,
        limit: int,
    ) -> list[QuarantinedEvent]:
        """The next quarantined events, newest first; as `list_events`."""
        scope = await self._tenants.query_scope(caller, org_id)
        async with self._database.transaction(scope) as connection:
            return await store.list_quarantined(connection, scope, device_id, before, limit)

    async def export(
        self, caller: Caller, org_id: str, wanted: EventFilter, limit: int
    ) -> AsyncIterator[list[StoredEvent]]:
        """All events that are stored by now, newest first, a page at a time.

        `limit` bounds their number, 0 does not. Each page is a transaction of its own: a slow
        reader holds neither a connection nor old rows. There is always a first page, be it empty.

        Raises:
            DomainError: as `list_events`.
        """
        scope = await self._tenants.query_scope(caller, org_id)
        wanted = replace(wanted, received_until=self._clock())
        before: EventPosition | None = None
        left = limit
        while True:
            size = min(EXPORT_PAGE, left) if limit else EXPORT_PAGE
            page = await self._page(scope, wanted, before, size)
            if page or before is None:
                yield page
            left -= len(page)
            if len(page) < size or (limit and left == 0):
                return
            before = EventPosition(page[-1].occurred_at, page[-1].id)

    async def _page(
        self, scope: Scope, wanted: EventFilter, before: EventPosition | None, limit: int
    ) -> list[StoredEvent]:
        async with self._database.transaction(scope) as connection:
            return await store.list_events(connection, scope, wanted, before, limit)
