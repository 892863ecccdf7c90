"""Events over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from google.api.httpbody_pb2 import HttpBody
from google.protobuf.struct_pb2 import Struct

from evergreen.v1 import telemetry_pb2, telemetry_pb2_grpc
from servicekit.data.quarantine import place, readable, readable_slowly
from servicekit.ids import given_id
from servicekit.rpc.pagination import TimePosition, asked_page, decode_token, page_size
from servicekit.rpc.server import Context
from servicekit.rpc.values import filling, given_time, timestamp
from services.telemetry.events.domain import (
    RECEIVED_ORDER,
    EventFilter,
    EventOrder,
    QuarantinedEvent,
    StoredEvent,
)
from services.telemetry.events.presentable import MAX_DEPTH, presentable
from services.telemetry.events.service import EventQueries
from services.telemetry.reports.events import metadata
from services.telemetry.retention.service import EventRetention, Retention

_ORDERS: Final = {
    "": EventOrder.OCCURRED,
    "occurredAt desc": EventOrder.OCCURRED,
    "occurred_at desc": EventOrder.OCCURRED,
    RECEIVED_ORDER: EventOrder.RECEIVED,
    "received_at desc": EventOrder.RECEIVED,
}
_LISTED_EVENTS: Final = place("telemetry", "list_events")
_LISTED_QUARANTINED: Final = place("telemetry", "list_quarantined")

ExportEvents = Callable[
    [telemetry_pb2.ExportEventsRequest, Context], AsyncGenerator[HttpBody, None]
]
ExportQuarantinedEvent = Callable[
    [telemetry_pb2.ExportQuarantinedEventRequest, Context], AsyncGenerator[HttpBody, None]
]


class EventApi(telemetry_pb2_grpc.EventServiceServicer):
    """evergreen.v1.EventService; `exports` answers its files."""

    def __init__(
        self,
        events: EventQueries,
        retention: Retention,
        export_events: ExportEvents,
        export_quarantined_event: ExportQuarantinedEvent,
    ) -> None:
        self._events = events
        self._retention = retention
        self._export_events = export_events
        self._export_quarantined_event = export_quarantined_event

    async def ListEvents(
        self, request: telemetry_pb2.ListEventsRequest, context: Context
    ) -> telemetry_pb2.ListEventsResponse:
        """Lists events."""
        size = page_size(request.page_size or request.limit)
        wanted = replace(event_filter(request), order=_ORDERS[request.order_by])
        page = await self._events.list_events(
            context.call,
            given_id(request.org_id),
            wanted,
            decode_token(request.page_token, TimePosition.read),
            size,
            # The console, which gives a limit, knows no page tokens.
            only_page=not request.page_token and not request.page_size,
        )
        return telemetry_pb2.ListEventsResponse(
            events=await shown_events(page.items), next_page_token=page.token
        )

    def ExportEvents(
        self, request: telemetry_pb2.ExportEventsRequest, context: Context
    ) -> AsyncGenerator[HttpBody, None]:
        """Streams events as a file."""
        return self._export_events(request, context)

    def ExportQuarantinedEvent(
        self, request: telemetry_pb2.ExportQuarantinedEventRequest, context: Context
    ) -> AsyncGenerator[HttpBody, None]:
        """Streams the whole content of a quarantined event."""
        return self._export_quarantined_event(request, context)

    async def GetEventRetention(
        self, request: telemetry_pb2.GetEventRetentionRequest, context: Context
    ) -> telemetry_pb2.EventRetention:
        """Answers how long an organisation keeps its events."""
        return _retention(await self._retention.get(context.call, given_id(request.org_id)))

    async def UpdateEventRetention(
        self, request: telemetry_pb2.UpdateEventRetentionRequest, context: Context
    ) -> telemetry_pb2.EventRetention:
        """Says how long an organisation keeps its events."""
        days = request.days if request.HasField("days") else None
        org_id = given_id(request.org_id)
        return _retention(await self._retention.update(context.call, org_id, days))

    async def ListQuarantinedEvents(
        self, request: telemetry_pb2.ListQuarantinedEventsRequest, context: Context
    ) -> telemetry_pb2.ListQuarantinedEventsResponse:
        """Lists quarantined events."""
        before, size = asked_page(request, UUID)
        page = await self._events.list_quarantined(
            context.call,
            given_id(request.org_id),
            given_id(request.device_id),
            before,
            size,
        )
        return telemetry_pb2.ListQuarantinedEventsResponse(
            quarantined_events=readable(
                _LISTED_QUARANTINED, page.items, _quarantined, lambda event: event.id
            ),
            next_page_token=page.token,
        )


def event_filter(
    request: telemetry_pb2.ListEventsRequest | telemetry_pb2.ExportEventsRequest,
) -> EventFilter:
    """Which events a request wants."""
    return EventFilter(
        device_id=given_id(request.device_id),
        type=request.action,
        severity=request.severity,
        search=request.search,
        occurred_from=given_time(request, "occurred_after"),
        occurred_before=given_time(request, "occurred_before"),
        received_from=given_time(request, "received_after"),
        received_before=given_time(request, "received_before"),
    )


def _shown(item: Any, depth: int) -> Any:
    if isinstance(item, dict | list) and depth < MAX_DEPTH:
        return item
    return presentable(item, depth)


async def shown_events(events: Iterable[StoredEvent]) -> list[telemetry_pb2.Event]:
    """Events as the API shows them."""
    return await readable_slowly(_LISTED_EVENTS, events, _event, lambda event: event.id)


async def _event(event: StoredEvent) -> telemetry_pb2.Event:
    """A payload can be a list of half a million numbers; meanwhile others are served."""
    shown = Struct()
    for _ in filling(metadata(event.payload), shown, _shown):
        await asyncio.sleep(0)
    return telemetry_pb2.Event(
        id=str(event.id),
        occurred_at=(occurred_at := timestamp(event.occurred_at)),
        timestamp=occurred_at,
        actor=f"device:{event.device_id}",
        action=event.type,
        action_type=event.type,
        severity=event.severity,
        device_id=str(event.device_id),
        org_id=str(event.tenant_id),
        message=event.message,
        metadata=shown,
        received_at=timestamp(event.received_at),
        clock_off=event.clock_off,
    )


def _quarantined(event: QuarantinedEvent) -> telemetry_pb2.QuarantinedEvent:
    return telemetry_pb2.QuarantinedEvent(
        id=str(event.id),
        device_id=str(event.device_id),
        org_id=str(event.tenant_id),
        received_at=timestamp(event.received_at),
        reason=event.reason,
        content=event.content,
        content_bytes=event.content_bytes,
    )


def _retention(retention: EventRetention) -> telemetry_pb2.EventRetention:
    return telemetry_pb2.EventRetention(
        org_id=str(retention.tenant_id),
        days=retention.days,
        own_days=retention.own_days,
        default_days=retention.default_days,
        etag=retention.etag,
    )
