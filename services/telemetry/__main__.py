"""Runs the telemetry service: `python -m services.telemetry`."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from evergreen.v1 import enrollment_pb2_grpc, policy_pb2_grpc
from evergreen.v1 import telemetry_pb2_grpc as rpc
from servicekit.app import Kit, Parts, run
from servicekit.device_service import device_methods
from services.telemetry.api import EventApi, InventoryApi
from services.telemetry.device_api import DeviceApi
from services.telemetry.http import routes
from services.telemetry.service.events import EventQueries
from services.telemetry.service.exports import Exports
from services.telemetry.service.inventory import Inventory
from services.telemetry.service.relay import EventRelay
from services.telemetry.service.reports import Reports
from services.telemetry.service.retention import Maintenance, Retention
from services.telemetry.settings import TelemetrySettings


async def build(kit: Kit) -> Parts:
    """Wires the service."""
    settings = kit.settings
    assert isinstance(settings, TelemetrySettings)
    relay = EventRelay(kit.database, kit.messaging, kit.clock)
    reports = Reports(kit.database, settings, kit.clock, relay.wake)
    inventory = Inventory(
        kit.database,
        enrollment_pb2_grpc.EnrollmentInternalServiceStub(kit.channel("enrollment")),
        policy_pb2_grpc.PolicyInternalServiceStub(kit.channel("policy")),
        kit.tenants,
        timedelta(seconds=settings.online_seconds),
        kit.clock,
    )
    events = EventQueries(kit.database, kit.tenants)
    exports = Exports(kit.database, kit.outbox, kit.tenants, inventory, settings.exports)
    days = settings.event_retention_days
    retention = Retention(kit.database, kit.outbox, kit.tenants, days, kit.clock)
    maintenance = Maintenance(kit.database, days, kit.clock)
    devices = DeviceApi(reports)
    return Parts(
        public=(
            device_methods(ReportState=devices.report_state, ReportEvents=devices.report_events),
            partial(rpc.add_InventoryServiceServicer_to_server, InventoryApi(inventory, exports)),
            partial(rpc.add_EventServiceServicer_to_server, EventApi(events, exports, retention)),
        ),
        services=(
            "evergreen.v1.DeviceService",
            "evergreen.v1.InventoryService",
            "evergreen.v1.EventService",
        ),
        routes=routes(reports),
        devices=kit.device_access(),
        batchers=(reports.states, reports.events),
        tasks=(
            inventory.devices.run,
            inventory.applied.run,
            relay.run,
            relay.watch,
            maintenance.run,
        ),
        before_serving=inventory.load,
    )


def main() -> None:
    """Runs until it is told to stop."""
    run("telemetry", TelemetrySettings(), build)


if __name__ == "__main__":
    main()
