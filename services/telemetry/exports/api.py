"""Files over gRPC, which the gateway turns into downloads."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Final
from uuid import UUID

from google.api.httpbody_pb2 import HttpBody

from evergreen.v1 import telemetry_pb2
from servicekit.data.quarantine import place
from servicekit.ids import given_id
from servicekit.rpc.files import CsvFile, Form, JsonFile, TextFile, send_file
from servicekit.rpc.server import Context
from services.telemetry.events.api import event_filter
from services.telemetry.events.domain import StoredEvent
from services.telemetry.exports.domain import (
    DEVICE_COLUMNS,
    EVENT_COLUMNS,
    device_json,
    device_row,
    event_json,
    event_row,
)
from services.telemetry.exports.service import Exports
from services.telemetry.inventory.api import device_filter
from services.telemetry.inventory.domain import DeviceSummary
from services.telemetry.inventory.service import Inventory

_DEVICES: Final = place("telemetry", "export_devices")
_EVENTS: Final = place("telemetry", "export_events")


class ExportApi:
    """The methods of evergreen.v1.InventoryService and EventService that answer files."""

    def __init__(self, exports: Exports, inventory: Inventory) -> None:
        self._exports = exports
        self._inventory = inventory

    def export_devices(
        self, request: telemetry_pb2.ExportDevicesRequest, context: Context
    ) -> AsyncGenerator[HttpBody, None]:
        """Streams devices as a file."""
        since = self._inventory.online_since()
        form: Form[DeviceSummary] = (
            CsvFile(_DEVICES, DEVICE_COLUMNS, lambda device: device_row(device, since), _id)
            if request.format == "csv"
            else JsonFile(_DEVICES, lambda device: device_json(device, since), _id)
        )
        pages = self._exports.devices(
            context.call, given_id(request.org_id), device_filter(request), form.ending
        )
        return send_file(context, "evergreen-devices", form, pages)

    def export_events(
        self, request: telemetry_pb2.ExportEventsRequest, context: Context
    ) -> AsyncGenerator[HttpBody, None]:
        """Streams events as a file."""
        form: Form[StoredEvent] = (
            CsvFile(_EVENTS, EVENT_COLUMNS, event_row, _id)
            if request.format == "csv"
            else JsonFile(_EVENTS, event_json, _id)
        )
        pages = self._exports.events(
            context.call,
            given_id(request.org_id),
            event_filter(request),
            request.limit,
            form.ending,
        )
        return send_file(context, "evergreen-events", form, pages)

    def export_quarantined_event(
        self, request: telemetry_pb2.ExportQuarantinedEventRequest, context: Context
    ) -> AsyncGenerator[HttpBody, None]:
        """Streams the whole content of a quarantined event."""
        form = TextFile("text/plain; charset=utf-8", "txt")
        parts = self._exports.quarantined(context.call, UUID(request.id))
        return send_file(context, f"evergreen-event-{request.id}", form, parts)


def _id(item: Any) -> object:
    return item.id
