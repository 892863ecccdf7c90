"""What the other services ask telemetry for."""

from __future__ import annotations

from uuid import UUID

from evergreen.v1 import telemetry_pb2 as pb
from evergreen.v1 import telemetry_pb2_grpc
from servicekit.data.postgres import Database, Scope
from servicekit.rpc.server import Context
from services.telemetry.erasure import store as erasure_store


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
