"""Identity's HTTP side: the portal, with the readiness and the version of the product, and the
pages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc
from fastapi import FastAPI
from grpc_health.v1 import health_pb2, health_pb2_grpc
from starlette.requests import Request
from starlette.responses import JSONResponse

from contract.contexts import CONTEXTS
from contract.rows import Role
from servicekit.build import PRODUCT, current
from servicekit.call import H_KIND, HEADERS, Call
from servicekit.rpc.chain import CallChain
from servicekit.security import fips
from services.identity.pages.base import Surroundings
from services.identity.pages.console import add_console_routes
from services.identity.pages.http import add_pages
from services.identity.portal import Readiness, portal_app
from services.identity.scim.http import add_scim
from services.identity.scim.provisioning import Provisioning
from services.identity.token_keys.tokens import TokenSigner

_SESSION: Final = "/evergreen.v1.AuthService/GetSession"
"""What any user may call."""


def identity_app(
    chain: CallChain,
    channel: Callable[[str], grpc.aio.Channel],
    signer: TokenSigner,
    around: Surroundings,
    provisioning: Provisioning,
) -> FastAPI:
    """The portal, the pages, SCIM, and the token keys where the gateway itself fetches them."""
    app = portal_app(readiness(channel))
    add_pages(app, around)
    add_console_routes(app, around.browsers)
    add_scim(app, chain, provisioning, around.public_url)

    @app.api_route("/api/version", methods=["GET", "HEAD"])
    async def version(request: Request) -> JSONResponse:
        # Of an API token the pipeline would ask for a scope; it learns what a guest does.
        logged_in = request.headers.get(H_KIND) == "user"
        known = await _for_users(chain, request) if logged_in else {}
        return JSONResponse({"product": PRODUCT, **known}, headers={"cache-control": "no-store"})

    @app.get("/.well-known/jwks.json")
    async def jwks(use: str = "") -> JSONResponse:
        # With `use`, the keys of one purpose: what they sign opens nothing of another one.
        return JSONResponse({"keys": [key.jwk() for key in signer.public_keys(use)]})

    return app


async def _for_users(chain: CallChain, request: Request) -> dict[str, Any]:
    """The build, for somebody who may call; for Owners and Admins also which algorithms it uses."""

    async def work(call: Call) -> dict[str, Any]:
        found: dict[str, Any] = current().as_json()
        if call.caller.role in {Role.OWNER, Role.ADMIN}:
            found["cryptography"] = fips.described()
        return found

    said = {name: request.headers[name] for name in HEADERS if name in request.headers}
    return await chain.run(_SESSION, said, work)


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
