"""Runs the telemetry service: `python -m services.telemetry`."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from contract.events.telemetry import TelemetryCallsRefused
from evergreen.v1 import attestation_pb2_grpc, policy_pb2_grpc
from evergreen.v1 import telemetry_pb2_grpc as rpc
from servicekit.app import Kit, Parts, run
from servicekit.rpc.device_service import device_methods
from services.telemetry.erasure import service as erasure
from services.telemetry.events.api import EventApi
from services.telemetry.events.service import EventQueries
from services.telemetry.exports.api import ExportApi
from services.telemetry.exports.service import Exports
from services.telemetry.feed import InternalApi
from services.telemetry.inventory.api import InventoryApi
from services.telemetry.inventory.service import DEVICES, Inventory
from services.telemetry.relay.service import EventRelay
from services.telemetry.reports.api import DeviceApi
from services.telemetry.reports.clone_watch import CloneWatch
from services.telemetry.reports.http import routes
from services.telemetry.reports.service import Reports
from services.telemetry.retention.service import Maintenance, Retention
from services.telemetry.settings import TelemetrySettings
from services.telemetry.storage.service import Storage


async def build(kit: Kit) -> Parts:
    """Wires the service."""
    settings = kit.settings
    assert isinstance(settings, TelemetrySettings)
    relay = EventRelay(kit.database, kit.messaging, kit.clock)
    storage = Storage(kit.database, settings, kit.clock)
    clones = CloneWatch(kit.database, kit.outbox, kit.clock)
    reports = Reports(kit.database, settings, kit.clock, relay.wake, storage, clones)
    registry = kit.device_access(DEVICES)
    inventory = Inventory(
        kit.database,
        registry,
        policy_pb2_grpc.PolicyInternalServiceStub(kit.channel("policy")),
        attestation_pb2_grpc.AttestationInternalServiceStub(kit.channel("attestation")),
        kit.tenants,
        timedelta(seconds=settings.online_seconds),
        kit.clock,
        kit.wait_seconds("policy"),
    )
    events = EventQueries(kit.database, kit.tenants)
    exports = Exports(kit.database, kit.outbox, kit.tenants, inventory, settings.exports)
    days = settings.event_retention_days
    files = ExportApi(exports, inventory)
    retention = Retention(kit.database, kit.outbox, kit.tenants, days, kit.clock)
    maintenance = Maintenance(kit.database, days, kit.clock)
    devices = DeviceApi(reports)

    async def load() -> None:
        await inventory.load()
        await storage.load()

    return Parts(
        calls_refused=TelemetryCallsRefused,
        public=(
            device_methods(ReportState=devices.report_state, ReportEvents=devices.report_events),
            partial(
                rpc.add_InventoryServiceServicer_to_server,
                InventoryApi(inventory, files.export_devices),
            ),
            partial(
                rpc.add_EventServiceServicer_to_server,
                EventApi(events, retention, files.export_events, files.export_quarantined_event),
            ),
        ),
        internal=(
            partial(rpc.add_TelemetryInternalServiceServicer_to_server, InternalApi(kit.database)),
        ),
        services=(
            "evergreen.v1.DeviceService",
            "evergreen.v1.InventoryService",
            "evergreen.v1.EventService",
        ),
        routes=routes(reports),
        devices=registry,
        batchers=(reports.states, reports.events),
        tasks=(
            inventory.applied.run,
            inventory.verdicts.run,
            inventory.gates.run,
            inventory.restricted.run,
            relay.run,
            relay.watch,
            maintenance.run,
            storage.run,
            erasure.DeletedDevices(kit.database).run,
        ),
        closing=erasure.WORK,
        before_serving=load,
    )


def main() -> None:
    """Runs until it is told to stop."""
    run("telemetry", TelemetrySettings(), build)


if __name__ == "__main__":
    main()
