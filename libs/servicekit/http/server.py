"""The HTTP side of a service towards the gateway: the device calls in the released agent's JSON.

They pass the same chain as gRPC, and not the gateway's transcoder: see docs/adr for why.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

from google.protobuf import json_format
from google.protobuf.message import Message

from servicekit.call import H_REQUEST_ID, Call, Caller
from servicekit.errors import (
    HTTP_STATUS,
    Code,
    DomainError,
    FieldViolation,
    error_body,
    internal,
    invalid,
    invalid_field,
    not_found,
    retry_after_header,
)
from servicekit.http.compression import SMALLEST, Compressed, accepts_gzip
from servicekit.http.protocol import Request
from servicekit.observability import logs
from servicekit.rpc.chain import CallChain, check_rules

log = logs.get(__name__)

_FAILED_FIELD: Final = re.compile(r"Failed to parse (\w+) field: ")
_HALF_OF_A_PAIR: Final = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]").search
"""In a body without it no text holds half of a surrogate pair."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a device route answers."""

    status: int = 200
    body: bytes = b"{}"
    compressible: bool = False
    """Whether its length may depend on what is in it: see `servicekit.http.compression`."""

    def response(self) -> bytes:
        """The answer as it goes over the wire."""
        return _response(self.status, self.body)


_VARIES: Final = "vary: accept-encoding\r\n"
OK: Final = Answer()
NOT_MODIFIED: Final = Answer(304, b"")


@cache
def _status_line(status: int) -> str:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"


def _response(status: int, body: bytes, retry_after: str | None = None, more: str = "") -> bytes:
    if retry_after is not None:
        more += f"retry-after: {retry_after}\r\n"
    line = _status_line(status)
    if status == 304:
        return f"{line}{more}\r\n".encode()
    content = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return f"{line}{content}{more}\r\n".encode() + body


@dataclass(frozen=True, slots=True)
class Route:
    """A device call: its row of the access table, and what serves it.

    The handler gets the call and the body's bytes. What it can answer without waiting, it answers
    at once, which is far cheaper than a coroutine.
    """

    rpc: str
    handler: Callable[[Call, bytes], Answer | Coroutine[Any, Any, Answer]]
    room: Callable[[Caller, int], AbstractContextManager[None]] | None = None
    """Holds the memory for a body of so many bytes, or refuses it before it is read; for calls
    with large ones."""
    room_from: int = 0
    """A body of fewer bytes needs no room."""

    def room_of(self, size: int) -> Callable[[Caller, int], AbstractContextManager[None]] | None:
        """What holds the memory for a body of that size; `None` when it needs no room."""
        return self.room if size >= self.room_from else None


class DeviceApp:
    """A service's device routes (all of them POST), and its health."""

    def __init__(self, chain: CallChain, routes: Mapping[str, Route]) -> None:
        self._chain = chain
        self._routes = {path.encode(): route for path, route in routes.items()}
        self._compressed = Compressed()
        self._ready = {id(answer): answer.response() for answer in (NOT_MODIFIED, OK)}
        self.serving = True
        """Whether the gateway should send calls here; it asks `GET /healthz`."""

    def __call__(self, request: Request) -> bytes | Coroutine[Any, Any, bytes]:
        """Serves one request."""
        try:
            return self._begin(request)
        except Exception as error:
            return _failure(request, error)

    def _begin(self, request: Request) -> bytes | Coroutine[Any, Any, bytes]:
        route = self._routes.get(request.url)
        if route is None:
            path = unquote(request.url.partition(b"?")[0].decode("latin-1"))
            if path == "/healthz":
                return _response(200 if self.serving else 503, b"{}")
            route = self._routes.get(path.encode())
            if route is None:
                raise not_found("route", path)
        if request.method != b"POST":
            raise DomainError(Code.UNIMPLEMENTED, "METHOD_NOT_ALLOWED", "use POST")
        handler = route.handler
        answer = self._chain.serve(
            route.rpc,
            request.headers,
            (lambda call: handler(call, request.body))
            if request.complete and route.room_of(request.size) is None
            else (lambda call: _when_complete(call, request, route)),
        )
        if isinstance(answer, Answer):
            return self._response(answer)
        return self._finish(request, answer)

    async def _finish(self, request: Request, answer: Coroutine[Any, Any, Answer]) -> bytes:
        try:
            return await self._compressible(request, await answer)
        except Exception as error:
            return _failure(request, error)

    async def _compressible(self, request: Request, answer: Answer) -> bytes:
        if not answer.compressible or len(answer.body) <= SMALLEST:
            return self._response(answer)
        if not accepts_gzip(request.accepts):
            return _response(answer.status, answer.body, more=_VARIES)
        body = await self._compressed.of(answer.body)
        return _response(answer.status, body, more=f"content-encoding: gzip\r\n{_VARIES}")

    def _response(self, answer: Answer) -> bytes:
        return self._ready.get(id(answer)) or answer.response()


async def _when_complete(call: Call, request: Request, route: Route) -> Answer:
    room = route.room_of(request.size)
    with room(call.caller, request.size) if room else nullcontext():
        answer = route.handler(call, await request.read())
        return answer if isinstance(answer, Answer) else await answer


def _failure(request: Request, error: Exception) -> bytes:
    if not isinstance(error, DomainError):
        log.error("request failed", exc_info=error)
        error = internal()
    status = 405 if error.reason == "METHOD_NOT_ALLOWED" else HTTP_STATUS[error.code]
    body = error_body(error, request.headers.get(H_REQUEST_ID, "")).encode()
    return _response(status, body, retry_after_header(error))


def parse_json_object(body: bytes) -> dict[str, Any]:
    """Reads a request's body.

    Raises:
        DomainError: INVALID_ARGUMENT when it is not one JSON object in UTF-8.
    """
    try:
        # What begins like this is UTF-8; json looks for UTF-16 and more, call by call.
        plain = body[:1] == b"{" and body[1:2] != b"\0"
        value = json.loads(body.decode("utf-8", "surrogatepass") if plain else body)
    except UnicodeDecodeError as broken:
        raise invalid_field("body", "must be JSON in UTF-8") from broken
    except (ValueError, RecursionError) as broken:
        raise invalid_field("body", "must be valid JSON") from broken
    if not isinstance(value, dict):
        raise invalid_field("body", "must be a JSON object")
    return value


def parse_text_object(body: bytes) -> dict[str, Any]:
    """As `parse_json_object`; also refuses text that is not Unicode.

    JSON can write half of a surrogate pair. Neither protobuf nor PostgreSQL can hold it.

    Raises:
        DomainError: INVALID_ARGUMENT.
    """
    value = parse_json_object(body)
    if _HALF_OF_A_PAIR(body) is not None and (where := _broken_text(value)) is not None:
        raise invalid_field(where, "must not contain half of a surrogate pair")
    return value


def _broken_text(value: dict[str, Any]) -> str | None:
    """Where text is that UTF-8 cannot write: the path of the value that holds it."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        path, item = waiting.pop()
        if isinstance(item, str):
            if not _is_text(item):
                return path or "body"
        elif isinstance(item, dict):
            if not all(map(_is_text, item)):
                return path or "body"
            waiting.extend((f"{path}.{key}" if path else key, held) for key, held in item.items())
        elif isinstance(item, list):
            waiting.extend((f"{path}[{index}]", held) for index, held in enumerate(item))
    return None


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_message(body: bytes, message: Message) -> None:
    """Fills a message from the agent's JSON and checks its rules; unknown fields are ignored.

    Raises:
        DomainError: INVALID_ARGUMENT with the broken fields, in the agent's snake_case.
    """
    value = parse_text_object(body)
    try:
        json_format.ParseDict(value, message, ignore_unknown_fields=True, max_recursion_depth=32)
    except Exception as broken:  # SystemError, too: whatever protobuf raises, the body is the cause
        raise invalid(_violation(str(broken))) from broken
    try:
        check_rules(message)
    except DomainError as error:
        raise invalid(
            *(FieldViolation(_snake(v.field), v.rule) for v in error.violations)
        ) from error


def _violation(text: str) -> FieldViolation:
    # "Failed to parse state field: Failed to parse disk_free_bytes field: Value out of range: -1"
    path = ".".join(_FAILED_FIELD.findall(text))
    return FieldViolation(_snake(path) or "body", "has a value of the wrong type or out of range")


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
