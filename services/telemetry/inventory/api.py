"""The inventory over gRPC."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from google.api.httpbody_pb2 import HttpBody

from evergreen.v1 import telemetry_pb2, telemetry_pb2_grpc
from servicekit.data.quarantine import place, readable
from servicekit.ids import given_id
from servicekit.rpc.pagination import asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import given_time, timestamp
from servicekit.texts import tidy
from services.telemetry.events.api import shown_events
from services.telemetry.inventory.domain import (
    DeviceDetail,
    DeviceFilter,
    DeviceSummary,
    NamePosition,
    PolicyInForce,
)
from services.telemetry.inventory.service import Inventory

_LISTED_DEVICES: Final = place("telemetry", "list_devices")
_APPS: Final = place("telemetry", "device_apps")

ExportDevices = Callable[
    [telemetry_pb2.ExportDevicesRequest, Context], AsyncGenerator[HttpBody, None]
]


class InventoryApi(telemetry_pb2_grpc.InventoryServiceServicer):
    """evergreen.v1.InventoryService; `exports` answers its files."""

    def __init__(self, inventory: Inventory, export_devices: ExportDevices) -> None:
        self._inventory = inventory
        self._export_devices = export_devices

    async def ListDevices(
        self, request: telemetry_pb2.ListDevicesRequest, context: Context
    ) -> telemetry_pb2.ListDevicesResponse:
        """Lists devices."""
        after, size = asked_page(request, NamePosition.read)
        page = await self._inventory.list_devices(
            context.call, given_id(request.org_id), device_filter(request), after, size
        )
        since = self._inventory.online_since()
        return telemetry_pb2.ListDevicesResponse(
            devices=readable(
                _LISTED_DEVICES,
                page.items,
                lambda device: telemetry_pb2.DeviceSummary(**_summary(device, since)),
                lambda device: device.id,
            ),
            next_page_token=page.token,
        )

    def ExportDevices(
        self, request: telemetry_pb2.ExportDevicesRequest, context: Context
    ) -> AsyncGenerator[HttpBody, None]:
        """Streams devices as a file."""
        return self._export_devices(request, context)

    async def GetDevice(
        self, request: telemetry_pb2.GetDeviceRequest, context: Context
    ) -> telemetry_pb2.Device:
        """Answers one device."""
        device, events, policy = await self._inventory.get_device(context.call, UUID(request.id))
        shown = await shown_events(events)
        return _device(device, shown, policy, self._inventory.online_since())


def device_filter(
    request: telemetry_pb2.ListDevicesRequest | telemetry_pb2.ExportDevicesRequest,
) -> DeviceFilter:
    """Which devices a request wants."""
    return DeviceFilter(
        status=request.status,
        health=request.health,
        search=request.search,
        seen_after=given_time(request, "last_seen_after"),
        seen_before=given_time(request, "last_seen_before"),
        serial=request.serial,
        clone_suspected=request.clone_suspected,
        attestation_verdict=request.attestation_verdict,
        group_id=given_id(request.group),
        label=tidy(request.label),
        falls_short=request.falls_short,
        restricted=request.restricted,
    )


_ATTRIBUTES: Final = {"hostname": "name", "org_id": "tenant_id", "serial_number": "serial"}
"""Fields of the API that are called otherwise here."""
_NOT_OF_THE_DEVICE: Final = frozenset({"status", "os_version"})
"""The status needs the time; released agents do not report their version."""
_SHOWN: Final = [
    (field.name, _ATTRIBUTES.get(field.name, field.name))
    for field in telemetry_pb2.DeviceSummary.DESCRIPTOR.fields
    if field.name not in _NOT_OF_THE_DEVICE
]


def _summary(device: DeviceSummary, online_since: datetime) -> dict[str, Any]:
    shown = {field: _value(getattr(device, attribute)) for field, attribute in _SHOWN}
    return {**shown, "status": device.status(online_since)}


def _value(value: object) -> object:
    match value:
        case UUID():
            return str(value)
        case datetime():
            return timestamp(value)
        case list():
            return [str(item) for item in value]
        case _:
            return value


def _apps(device: DeviceDetail) -> list[list[telemetry_pb2.DeviceApp]]:
    """The device's applications; none, and a note, where they cannot be read."""
    return readable(
        _APPS,
        [device.installed_apps] if device.installed_apps else [],
        lambda text: [
            telemetry_pb2.DeviceApp(id=app["id"], name=app["id"], version=app["version"])
            for app in json.loads(text)
        ],
        lambda _: device.summary.id,
    )


def _device(
    device: DeviceDetail,
    events: list[telemetry_pb2.Event],
    policy: PolicyInForce | None,
    online_since: datetime,
) -> telemetry_pb2.Device:
    updates = telemetry_pb2.DeviceUpdates(
        channel=policy.update_channel if policy else "", status=device.update_status
    )
    if (reported := device.summary.state_received_at) is not None:
        updates.last_sync.FromDatetime(reported)
    return telemetry_pb2.Device(
        **_summary(device.summary, online_since),
        installed_apps=[app for apps in _apps(device) for app in apps],
        health_snapshot=telemetry_pb2.HealthSnapshot(
            disk=device.disk_health, battery=device.battery_health
        ),
        updates=updates,
        events=events,
        last_error=device.last_error,
        policy_orphaned=device.is_orphaned(policy),
    )
