"""What operators and probes ask a service: `/healthz`, `/readyz` and `/metrics`."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from http import HTTPStatus
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from servicekit.http.protocol import Request

_JSON: Final = "application/json"
_METHODS: Final = (b"GET", b"HEAD")


class OpsApp:
    """Answers them; to be served by a `DeviceServer`.

    Args:
        missing: says what the service lacks at the moment.
    """

    def __init__(self, missing: Callable[[], Awaitable[Sequence[str]]]) -> None:
        self._missing = missing

    def __call__(self, request: Request) -> bytes | Coroutine[Any, Any, bytes]:
        """Answers one request."""
        path = request.url.partition(b"?")[0]
        if path not in (b"/healthz", b"/readyz", b"/metrics"):
            return _response(request, 404, {"message": "not found"})
        if request.method not in _METHODS:
            return _response(request, 405, {"message": "use GET"})
        if path == b"/healthz":
            return _response(request, 200, {"status": "alive"})
        if path == b"/metrics":
            return _raw(request, 200, generate_latest(), CONTENT_TYPE_LATEST)
        return self._readiness(request)

    async def _readiness(self, request: Request) -> bytes:
        missing = list(await self._missing())
        status = "not ready" if missing else "ready"
        return _response(request, 503 if missing else 200, {"status": status, "missing": missing})


def _response(request: Request, status: int, body: dict[str, Any]) -> bytes:
    return _raw(request, status, json.dumps(body).encode(), _JSON)


def _raw(request: Request, status: int, body: bytes, media: str) -> bytes:
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        f"content-type: {media}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + (b"" if request.method == b"HEAD" else body)
