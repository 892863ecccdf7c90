"""What stands in for other services, at the sockets where a service asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from evergreen.v1 import attestation_pb2, attestation_pb2_grpc


@asynccontextmanager
async def served(
    target: str, register: Callable[[Any, grpc.aio.Server], None], fake: object
) -> AsyncIterator[None]:
    """Serves a fake; `register` is the generated `add_…Servicer_to_server` of its kind."""
    server = grpc.aio.server()
    register(fake, server)
    server.add_insecure_port(target)
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


async def until_ready(channel: grpc.aio.Channel) -> None:
    """Waits until a service has heard of its neighbours."""
    health = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service="ready")
    while (await health.Check(request)).status != health_pb2.HealthCheckResponse.SERVING:
        await asyncio.sleep(0.02)


@dataclass
class FakeAttestation(attestation_pb2_grpc.AttestationInternalServiceServicer):
    """Tells of the verdicts that a test puts into it."""

    org: UUID
    """Whose devices those are of which nothing else is said."""
    verdicts: list[attestation_pb2.DeviceVerdict] = field(default_factory=list)
    down: bool = False

    def tell(
        self, device_id: UUID, verdict: str, org: UUID | None = None, at: datetime | None = None
    ) -> datetime:
        at = at or datetime.now(UTC)
        told = attestation_pb2.DeviceVerdict(
            device_id=str(device_id), tenant_id=str(org or self.org), verdict=verdict
        )
        told.attested_at.FromDatetime(at)
        self.verdicts.append(told)
        return at

    async def ListVerdictChanges(  # noqa: N802
        self, request: attestation_pb2.ListVerdictChangesRequest, context: Any
    ) -> attestation_pb2.ListVerdictChangesResponse:
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        return attestation_pb2.ListVerdictChangesResponse(
            verdicts=self.verdicts[int(request.cursor or 0) :], next_cursor=str(len(self.verdicts))
        )
