"""What stands in for other services, at the sockets where a service asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


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
