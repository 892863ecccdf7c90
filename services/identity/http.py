"""Identity's HTTP side: the portal, with the readiness of the whole product."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import grpc
from fastapi import FastAPI
from grpc_health.v1 import health_pb2, health_pb2_grpc
from starlette.responses import JSONResponse

from servicekit.access import CONTEXTS
from servicekit.portal import Readiness, portal_app
from services.identity.tokens import TokenSigner


def identity_app(channel: Callable[[str], grpc.aio.Channel], signer: TokenSigner) -> FastAPI:
    """The portal, and the token keys where the gateway itself fetches them."""
    app = portal_app(readiness(channel))
    keys = {"keys": [key.jwk() for key in signer.public_keys]}

    @app.get("/.well-known/jwks.json")
    async def jwks() -> JSONResponse:
        return JSONResponse(keys)

    return app


def readiness(channel: Callable[[str], grpc.aio.Channel]) -> Readiness:
    """Asks every service whether it has all that it needs."""
    stubs = {context: health_pb2_grpc.HealthStub(channel(context)) for context in CONTEXTS}

    async def ask(context: str) -> bool:
        try:
            answer = await stubs[context].Check(
                health_pb2.HealthCheckRequest(service="ready"), timeout=2
            )
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def all_of_them() -> Mapping[str, bool]:
        ready = await asyncio.gather(*map(ask, CONTEXTS))
        return dict(zip(CONTEXTS, ready, strict=True))

    return all_of_them
