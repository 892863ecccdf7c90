"""What happened on devices: lists for administrators."""

from __future__ import annotations

from uuid import UUID

from servicekit.call import Caller
from servicekit.postgres import Database
from servicekit.tenants import TenantDirectory
from services.telemetry.domain.views import (
    EventFilter,
    EventPage,
    EventPosition,
    QuarantinedEvent,
)
from services.telemetry.store import events as store


class EventQueries:
    """Answers administrators about events."""

    def __init__(self, database: Database, tenants: TenantDirectory) -> None:
        self._database = database
        self._tenants = tenants

    async def list_events(
        self,
        caller: Caller,
        org_id: str,
        wanted: EventFilter,
        before: EventPosition | None,
        limit: int,
    ) -> EventPage:
        """The next events of the caller's subtree, or of one org in it, newest first.

        Raises:
            DomainError: NOT_FOUND for an org that is not in the subtree.
        """
        scope = await self._tenants.query_scope(caller, org_id)
        async with self._database.transaction(scope) as connection:
            return await store.list_events(connection, scope, wanted, before, limit)

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
