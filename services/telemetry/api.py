"""The gRPC side: translates between protos and the use cases, and nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from google.api.httpbody_pb2 import HttpBody
from google.protobuf.struct_pb2 import Struct

from evergreen.v1 import telemetry_pb2, telemetry_pb2_grpc
from servicekit.grpc_server import Context
from servicekit.pagination import decode_token, encode_token, page_size
from servicekit.values import filling, timestamp
from services.telemetry.domain.events import metadata
from services.telemetry.domain.files import (
    DEVICE_COLUMNS,
    EVENT_COLUMNS,
    device_json,
    device_row,
    event_json,
    event_row,
)
from services.telemetry.domain.presentable import MAX_DEPTH, presentable
from services.telemetry.domain.views import (
    DeviceDetail,
    DeviceFilter,
    DeviceSummary,
    EventFilter,
    EventPosition,
    NamePosition,
    QuarantinedEvent,
    StoredEvent,
)
from services.telemetry.service.events import EventQueries
from services.telemetry.service.exports import Exports
from services.telemetry.service.inventory import Inventory
from services.telemetry.service.retention import EventRetention, Retention
from services.telemetry.streams import csv_file, json_file, send_file, text_file


class InventoryApi(telemetry_pb2_grpc.InventoryServiceServicer):
    """evergreen.v1.InventoryService."""

    def __init__(self, inventory: Inventory, exports: Exports) -> None:
        self._inventory = inventory
        self._exports = exports

    async def ListDevices(
        self, request: telemetry_pb2.ListDevicesRequest, context: Context
    ) -> telemetry_pb2.ListDevicesResponse:
        """Lists devices."""
        size = page_size(request.page_size)
        found = await self._inventory.list_devices(
            context.call.caller,
            request.org_id,
            _device_filter(request),
            decode_token(request.page_token, _name_position),
            size,
        )
        since = self._inventory.online_since()
        after = found.after
        return telemetry_pb2.ListDevicesResponse(
            devices=[
                telemetry_pb2.DeviceSummary(**_summary(device, since)) for device in found.devices
            ],
            next_page_token=encode_token(after.name, str(after.id)) if after else "",
        )

    async def ExportDevices(
        self, request: telemetry_pb2.ExportDevicesRequest, context: Context
    ) -> AsyncIterator[HttpBody]:
        """Streams devices as a file."""
        since = self._inventory.online_since()
        pages = self._exports.devices(
            context.call.caller, request.org_id, _device_filter(request), _format(request)
        )
        if request.format == "csv":
            file = csv_file(pages, DEVICE_COLUMNS, lambda device: device_row(device, since))
        else:
            file = json_file(pages, lambda device: device_json(device, since))
        async with aclosing(send_file(context, "evergreen-devices", file)) as parts:
            async for part in parts:
                yield part

    async def GetDevice(
        self, request: telemetry_pb2.GetDeviceRequest, context: Context
    ) -> telemetry_pb2.Device:
        """Answers one device."""
        device, events, channel = await self._inventory.get_device(
            context.call.caller, UUID(request.id)
        )
        shown = [await _event(event) for event in events]
        return _device(device, shown, channel, self._inventory.online_since())


class EventApi(telemetry_pb2_grpc.EventServiceServicer):
    """evergreen.v1.EventService."""

    def __init__(self, events: EventQueries, exports: Exports, retention: Retention) -> None:
        self._events = events
        self._exports = exports
        self._retention = retention

    async def ListEvents(
        self, request: telemetry_pb2.ListEventsRequest, context: Context
    ) -> telemetry_pb2.ListEventsResponse:
        """Lists events."""
        size = page_size(request.page_size or request.limit)
        found = await self._events.list_events(
            context.call.caller,
            request.org_id,
            _event_filter(request),
            decode_token(request.page_token, _event_position),
            size,
            # The console, which gives a limit, knows no page tokens.
            only_page=not request.page_token and not request.page_size,
        )
        after = found.after
        token = encode_token(after.occurred_at.isoformat(), str(after.id)) if after else ""
        return telemetry_pb2.ListEventsResponse(
            events=[await _event(event) for event in found.events], next_page_token=token
        )

    async def ExportEvents(
        self, request: telemetry_pb2.ExportEventsRequest, context: Context
    ) -> AsyncIterator[HttpBody]:
        """Streams events as a file."""
        pages = self._exports.events(
            context.call.caller,
            request.org_id,
            _event_filter(request),
            request.limit,
            _format(request),
        )
        if request.format == "csv":
            file = csv_file(pages, EVENT_COLUMNS, event_row)
        else:
            file = json_file(pages, event_json)
        async with aclosing(send_file(context, "evergreen-events", file)) as parts:
            async for part in parts:
                yield part

    async def ExportQuarantinedEvent(
        self, request: telemetry_pb2.ExportQuarantinedEventRequest, context: Context
    ) -> AsyncIterator[HttpBody]:
        """Streams the whole content of an event that was set aside."""
        file = text_file(self._exports.quarantined(context.call.caller, UUID(request.id)))
        async with aclosing(send_file(context, f"evergreen-event-{request.id}", file)) as parts:
            async for part in parts:
                yield part

    async def GetEventRetention(
        self, request: telemetry_pb2.GetEventRetentionRequest, context: Context
    ) -> telemetry_pb2.EventRetention:
        """Answers how long an organisation keeps its events."""
        return _retention(await self._retention.get(context.call.caller, request.org_id))

    async def UpdateEventRetention(
        self, request: telemetry_pb2.UpdateEventRetentionRequest, context: Context
    ) -> telemetry_pb2.EventRetention:
        """Says how long an organisation keeps its events."""
        days = request.days if request.HasField("days") else None
        return _retention(await self._retention.update(context.call.caller, request.org_id, days))

    async def ListQuarantinedEvents(
        self, request: telemetry_pb2.ListQuarantinedEventsRequest, context: Context
    ) -> telemetry_pb2.ListQuarantinedEventsResponse:
        """Lists events that were set aside."""
        size = page_size(request.page_size)
        found, more = await self._events.list_quarantined(
            context.call.caller,
            request.org_id,
            UUID(request.device_id) if request.device_id else None,
            decode_token(request.page_token, lambda text: UUID(str(text))),
            size,
        )
        return telemetry_pb2.ListQuarantinedEventsResponse(
            quarantined_events=[_quarantined(event) for event in found],
            next_page_token=encode_token(str(found[-1].id)) if more else "",
        )


def _format(
    request: telemetry_pb2.ExportDevicesRequest | telemetry_pb2.ExportEventsRequest,
) -> str:
    return request.format or "json"


def _time(request: Any, field: str) -> datetime | None:
    if not request.HasField(field):
        return None
    time: datetime = getattr(request, field).ToDatetime(tzinfo=UTC)
    return time


def _device_filter(
    request: telemetry_pb2.ListDevicesRequest | telemetry_pb2.ExportDevicesRequest,
) -> DeviceFilter:
    return DeviceFilter(
        status=request.status,
        health=request.health,
        search=request.search,
        seen_after=_time(request, "last_seen_after"),
        seen_before=_time(request, "last_seen_before"),
    )


def _event_filter(
    request: telemetry_pb2.ListEventsRequest | telemetry_pb2.ExportEventsRequest,
) -> EventFilter:
    return EventFilter(
        device_id=UUID(request.device_id) if request.device_id else None,
        type=request.action,
        severity=request.severity,
        search=request.search,
        occurred_from=_time(request, "occurred_after"),
        occurred_before=_time(request, "occurred_before"),
    )


def _name_position(name: object, device_id: object) -> NamePosition:
    text = str(name)
    text.encode()
    if "\x00" in text:
        raise ValueError("no name holds NUL")
    return NamePosition(text, UUID(str(device_id)))


def _event_position(occurred_at: object, event_id: object) -> EventPosition:
    time = datetime.fromisoformat(str(occurred_at))
    if time.utcoffset() != timedelta(0):
        raise ValueError("positions are in UTC")
    return EventPosition(time, UUID(str(event_id)))


def _summary(device: DeviceSummary, online_since: datetime) -> dict[str, Any]:
    return {
        "id": str(device.id),
        "hostname": device.name,
        "model": device.model,
        "policy_version": device.policy_version,
        "health": device.health,
        "org_id": str(device.tenant_id),
        "last_seen": timestamp(device.last_seen),
        "status": device.status(online_since),
    }


def _device(
    device: DeviceDetail, events: list[telemetry_pb2.Event], channel: str, online_since: datetime
) -> telemetry_pb2.Device:
    apps = json.loads(device.installed_apps) if device.installed_apps else []
    updates = telemetry_pb2.DeviceUpdates(channel=channel, status=device.update_status)
    if device.state_received_at is not None:
        updates.last_sync.FromDatetime(device.state_received_at)
    return telemetry_pb2.Device(
        **_summary(device.summary, online_since),
        serial_number=device.serial,
        installed_apps=[
            telemetry_pb2.DeviceApp(id=app["id"], name=app["id"], version=app["version"])
            for app in apps
        ],
        health_snapshot=telemetry_pb2.HealthSnapshot(
            disk=device.disk_health, battery=device.battery_health
        ),
        updates=updates,
        events=events,
        last_error=device.last_error,
    )


def _shown(item: Any, depth: int) -> Any:
    if isinstance(item, dict | list) and depth < MAX_DEPTH:
        return item
    return presentable(item, depth)


async def _event(event: StoredEvent) -> telemetry_pb2.Event:
    """A payload can be a list of half a million numbers; meanwhile others are served."""
    shown = Struct()
    for _ in filling(metadata(event.payload), shown, _shown):
        await asyncio.sleep(0)
    return telemetry_pb2.Event(
        id=str(event.id),
        occurred_at=timestamp(event.occurred_at),
        actor=f"device:{event.device_id}",
        action=event.type,
        severity=event.severity,
        device_id=str(event.device_id),
        org_id=str(event.tenant_id),
        message=event.message,
        metadata=shown,
        received_at=timestamp(event.received_at),
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
    )
