"""What the web console's pages ask for: `/api/auth/{login,session,refresh,logout}`.

The shapes are the console's own. The gateway has made sure that a page of ours asks.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from evergreen.v1 import identity_pb2 as pb
from servicekit.errors import Code, DomainError
from servicekit.http.server import parse_message
from servicekit.times import format_rfc3339
from services.identity.pages.browsers import Browsers
from services.identity.sessions.domain import OpenSession


def add_console_routes(app: FastAPI, browsers: Browsers) -> None:
    """Adds the four routes."""

    def answer(session: OpenSession) -> Response:
        """The session, with its cookies."""
        response = _answer(_session(session))
        browsers.remember(response, session)
        return response

    @app.post("/api/auth/login")
    async def login(request: Request) -> Response:
        message = pb.LoginRequest()
        parse_message(await request.body(), message)
        return answer(await browsers.login(request, message))

    @app.api_route("/api/auth/session", methods=["GET", "HEAD"])
    async def session(request: Request) -> Response:
        try:
            return _answer(_session(await browsers.current(request)))
        except DomainError as error:
            if error.code is not Code.UNAUTHENTICATED:
                raise
        # A page that was opened again after the hour of its token goes on with the session.
        try:
            return answer(await browsers.refresh(request))
        except DomainError as error:
            if error.code is not Code.UNAUTHENTICATED:
                raise
        return _answer(None)

    @app.post("/api/auth/refresh")
    async def refresh(request: Request) -> Response:
        return answer(await browsers.refresh(request))

    @app.post("/api/auth/logout")
    async def logout(request: Request) -> Response:
        await browsers.logout(request)
        response = _answer(None)
        browsers.forget(response)
        return response


def _session(session: OpenSession) -> dict[str, Any]:
    return {
        "role": session.user.role.value,
        "email": session.user.email,
        "tenantId": str(session.user.tenant_id),
        "expiresAt": format_rfc3339(session.expires_at),
    }


def _answer(session: dict[str, Any] | None) -> Response:
    return JSONResponse({"session": session}, headers={"cache-control": "no-store"})
