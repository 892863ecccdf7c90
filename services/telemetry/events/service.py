"""What happened on devices: lists for administrators."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final
from uuid import UUID

from servicekit.call import Call
from servicekit.data.postgres import Database
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import Page, TimePosition
from services.telemetry.events import store
from services.telemetry.events.domain import EventFilter, EventPage, QuarantinedEvent

_PATIENCE_SECONDS: Final = 0.15
_MOST_SCANS: Final = 20


class EventQueries:
    """Answers administrators about events."""

    def __init__(self, database: Database, tenants: TenantDirectory) -> None:
        self._database = database
        self._tenants = tenants

    async def list_events(
        self,
        call: Call,
        org_id: UUID | None,
        wanted: EventFilter,
        before: TimePosition | None,
        limit: int,
        *,
        only_page: bool = False,
    ) -> EventPage:
        """The next events of the caller's subtree, or of one org in it, newest first.

        Args:
            only_page: the caller will ask for no other page: a short one is filled for a moment.

        Raises:
            DomainError: NOT_FOUND for an org that is not in the subtree.
        """
        scope = await self._tenants.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            go_on = _patience() if only_page else _never
            return await store.list_events(
                connection, scope, wanted, before, limit, store.SCAN, go_on
            )

    async def list_quarantined(
        self,
        call: Call,
        org_id: UUID | None,
        device_id: UUID | None,
        before: UUID | None,
        limit: int,
    ) -> Page[QuarantinedEvent, UUID]:
        """The next quarantined events, newest first."""
        scope = await self._tenants.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            return await store.list_quarantined(connection, scope, device_id, before, limit)


def _never() -> bool:
    return False


def _patience() -> Callable[[], bool]:
    """Whether there is time to read more."""
    loop = asyncio.get_running_loop()
    end = loop.time() + _PATIENCE_SECONDS
    scans = 1

    def left() -> bool:
        nonlocal scans
        scans += 1
        return scans <= _MOST_SCANS and loop.time() < end

    return left
