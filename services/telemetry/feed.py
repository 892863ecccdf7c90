"""What the other services ask telemetry for."""

from __future__ import annotations

from uuid import UUID

from evergreen.v1 import person_pb2, telemetry_pb2_grpc
from evergreen.v1 import telemetry_pb2 as pb
from servicekit.data.postgres import Database, Scope
from servicekit.rpc.persons import person_records
from servicekit.rpc.server import Context
from servicekit.rpc.values import optional_timestamp, time_of
from services.telemetry.erasure import store as erasure_store
from services.telemetry.facts import person_store
from services.telemetry.facts import store as fact_store


class InternalApi(telemetry_pb2_grpc.TelemetryInternalServiceServicer):
    """evergreen.v1.TelemetryInternalService."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def CountEvents(
        self, request: pb.CountEventsRequest, context: Context
    ) -> pb.CountEventsResponse:
        """Counts the events of tenants, up to a number."""
        ids = tuple(map(UUID, request.tenant_ids))
        async with self._database.transaction(Scope(ids)) as connection:
            found = await erasure_store.count_events(connection, ids)
        return pb.CountEventsResponse(events=found)

    async def ListDeviceVitals(
        self, request: pb.ListDeviceVitalsRequest, context: Context
    ) -> pb.ListDeviceVitalsResponse:
        """Answers the failures that devices of an organisation told of."""
        tenant_id = UUID(request.tenant_id)
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            found = await fact_store.failures(
                connection,
                tenant_id,
                [(UUID(one.device_id), time_of(one.since)) for one in request.devices],
            )
        return pb.ListDeviceVitalsResponse(
            devices=[
                pb.DeviceVitals(
                    device_id=str(one.device_id),
                    failures_before=one.before,
                    failures_since=one.since,
                )
                for one in found
            ]
        )

    async def ListDeviceFacts(
        self, request: pb.ListDeviceFactsRequest, context: Context
    ) -> pb.ListDeviceFactsResponse:
        """Answers what devices of an organisation reported last."""
        tenant_id = UUID(request.tenant_id)
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            found = await fact_store.devices(
                connection,
                tenant_id,
                [UUID(one) for one in request.device_ids],
                with_last_error=request.with_last_error,
            )
        return pb.ListDeviceFactsResponse(
            devices=[
                pb.DeviceFacts(
                    device_id=str(device.id),
                    hostname=device.hostname,
                    last_seen_at=optional_timestamp(device.last_seen_at),
                    policy_version=device.policy_version,
                    update_status=device.update_status,
                    state_received_at=optional_timestamp(device.state_received_at),
                    health=device.health,
                    disk_free_percent=device.disk_free_percent,
                    battery_percent=device.battery_percent,
                    last_error=device.last_error,
                )
                for device in found
            ]
        )

    async def ListPersonRecords(
        self, request: person_pb2.ListPersonRecordsRequest, context: Context
    ) -> person_pb2.ListPersonRecordsResponse:
        """Answers a page of what is held about a person."""
        return await person_records(self._database, "telemetry", person_store.TABLES, request)
