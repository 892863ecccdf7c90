"""The pages for people and tools behind the gateway: the API's description, and readiness.

`GET /openapi.json`, `GET /asyncapi.json`, `GET /api/policy-schema.json`, `GET /docs` (Swagger UI
out of the installed packages: nothing is loaded from elsewhere) and `GET /readyz`. All of it is
public; it says nothing about tenants.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Final

import fastapi_offline
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from servicekit.call import H_HOPS, H_REQUEST_ID
from servicekit.errors import (
    HTTP_STATUS,
    Code,
    DomainError,
    error_body,
    internal,
    not_found,
    retry_after_header,
    unavailable,
)
from servicekit.security.digests import sha256_hex

Readiness = Callable[[], Awaitable[Mapping[str, bool]]]

_METHODS: Final = ["GET", "HEAD"]
_JSON: Final = "application/json"
_ASSETS: Final = Path(fastapi_offline.__file__).parent / "static"
_FRESH: Final = {"cache-control": "no-store"}
_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evergreen API</title>
<link rel="icon" href="/docs/assets/favicon.png">
<link rel="stylesheet" href="/docs/assets/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"><noscript>This page needs JavaScript. The description of the API itself is at
<a href="/openapi.json">/openapi.json</a>.</noscript></div>
<script src="/docs/assets/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
# A file of its own, for the policy above allows no script within the page.
_START: Final = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  filter: true,
  showExtensions: true,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null,
});
"""


def portal_app(readiness: Readiness) -> FastAPI:
    """Makes the ASGI application; `readiness` answers for each part whether it is ready."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    description = resources.files("evergreen.v1").joinpath("openapi.json").read_bytes()
    events = resources.files("evergreen.v1").joinpath("asyncapi.json").read_bytes()
    sets = resources.files("evergreen.v1").joinpath("policy-set.schema.json").read_bytes()

    @app.api_route("/openapi.json", methods=_METHODS)
    async def openapi(request: Request) -> Response:
        return cached(request, description, _JSON)

    @app.api_route("/asyncapi.json", methods=_METHODS)
    async def asyncapi(request: Request) -> Response:
        return cached(request, events, _JSON)

    @app.api_route("/api/policy-schema.json", methods=_METHODS)
    async def set_schema(request: Request) -> Response:
        return cached(request, sets, "application/schema+json")

    @app.api_route("/docs", methods=_METHODS)
    @app.api_route("/docs/", methods=_METHODS)
    async def docs(request: Request) -> Response:
        return cached(request, _PAGE.encode(), "text/html; charset=utf-8")

    @app.api_route("/docs/start.js", methods=_METHODS)
    async def start(request: Request) -> Response:
        return cached(request, _START.encode(), "text/javascript; charset=utf-8")

    @app.api_route("/readyz", methods=_METHODS)
    async def readyz(request: Request) -> Response:
        missing = sorted(name for name, ready in (await readiness()).items() if not ready)
        if missing:
            error = unavailable("not ready: " + ", ".join(missing))
            response = _error(request, HTTP_STATUS[error.code], error)
        else:
            response = Response('{"status":"ready"}', headers=_FRESH, media_type=_JSON)
        # The caller's address and those of the proxies before the gateway: `evergreen doctor` sees
        # by it whether a proxy says for whom it asks.
        forwarded = request.headers.get("x-forwarded-for", "")
        response.headers[H_HOPS] = str(len(forwarded.split(",")) if forwarded else 0)
        return response

    app.mount("/docs/assets", StaticFiles(directory=_ASSETS))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, raised: HTTPException) -> Response:
        if raised.status_code == 405:
            error = DomainError(Code.UNIMPLEMENTED, "METHOD_NOT_ALLOWED", "use GET")
            response = _error(request, 405, error)
            response.headers["allow"] = ", ".join(_METHODS)
            return response
        return _error(request, 404, not_found("page", request.url.path))

    @app.exception_handler(DomainError)
    async def told(request: Request, error: DomainError) -> Response:
        return _error(request, HTTP_STATUS[error.code], error)

    @app.exception_handler(Exception)
    async def failed(request: Request, _: Exception) -> Response:
        return _error(request, 500, internal())

    return app


def cached(request: Request, body: bytes, media_type: str) -> Response:
    """Something that stays as it is until an upgrade, with the headers of the portal's pages."""
    etag = f'"{sha256_hex(body)[:32]}"'
    # Always asked for again, as it changes with an upgrade, and then mostly answered with 304.
    headers = {"etag": etag, "cache-control": "no-cache", **_HEADERS}
    known = request.headers.get("if-none-match", "").replace("W/", "").split(",")
    if etag in (tag.strip() for tag in known):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=media_type)


def _error(request: Request, status: int, error: DomainError) -> Response:
    body = error_body(error, request.headers.get(H_REQUEST_ID, ""))
    headers = dict(_FRESH)
    if (retry_after := retry_after_header(error)) is not None:
        headers["retry-after"] = retry_after
    return Response(body, status, headers, _JSON)
