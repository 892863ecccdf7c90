"""The one shape of errors, whoever makes them.

Three parties can refuse a request:

- a service: it sends the whole JSON body beside the gRPC status, in the metadata
  `x-evergreen-error`. The transcoder would make a body of its own from the status; the script
  below, which sees the answer after the transcoder, puts the service's in its place;
- the gRPC library below a service, which knows nothing of that metadata: the script completes
  the transcoder's body;
- the gateway itself: its own answers get their body from the table below.

Native gRPC calls keep gRPC's form: status, message and details.
"""

from __future__ import annotations

from typing import Any, Final

from deploy.gateway.envoy import Config, extension, header, typed
from servicekit.errors import Code

H_ERROR: Final = "x-evergreen-error"
ORIGINAL_PATH: Final = "x-envoy-original-path"
"""The transcoder keeps the JSON call's path here; native gRPC calls have no such header."""

_OWN_TEXT: Final = "%LOCAL_REPLY_BODY%"
# What was refused before it was read has no id; it gets one of its own.
_REQUEST_ID: Final = (
    '%COALESCE({"operators":[{"command":"REQ","param":"X-REQUEST-ID"},"UNIQUE_ID"]})%'
)

# Status, code, message; the first line that fits counts. A status is named for what the client
# should do: too large a request is an invalid one, for sending it again later does not help.
_TABLE: Final[list[tuple[int, Code, str]]] = [
    (400, Code.INVALID_ARGUMENT, "this is not a valid HTTP request"),
    (401, Code.UNAUTHENTICATED, _OWN_TEXT),
    (403, Code.PERMISSION_DENIED, _OWN_TEXT),
    (404, Code.NOT_FOUND, "there is nothing at this address"),
    (405, Code.UNIMPLEMENTED, "this address does not take that HTTP method"),
    (408, Code.DEADLINE_EXCEEDED, "the request did not arrive in time"),
    (413, Code.INVALID_ARGUMENT, "the request's body is too large"),
    (429, Code.RESOURCE_EXHAUSTED, "too many requests; try again later"),
    (431, Code.INVALID_ARGUMENT, "the request's headers are too large"),
    (501, Code.UNIMPLEMENTED, _OWN_TEXT),
    (502, Code.UNAVAILABLE, "the service gave no valid answer; try again"),
    (503, Code.UNAVAILABLE, "the service is not available now; try again"),
    (504, Code.DEADLINE_EXCEEDED, "the service did not answer in time"),
]
_OTHER_SERVER_ERROR: Final = (500, Code.INTERNAL, "something went wrong on our side")
_OTHER_CLIENT_ERROR: Final = (400, Code.INVALID_ARGUMENT, _OWN_TEXT)

# Callers that are told to come back are told different delays: of those that are left by the
# lines before, this percentage is sent away for so many seconds. Who called too often is sent
# away for longer than who found something away.
_RETRY_AFTER: Final = {
    503: [(25, 1), (33, 2), (50, 3), (100, 4)],
    429: [(25, 2), (33, 4), (50, 6), (100, 8)],
}

_SCRIPT: Final = """\
local NAMES = {%(names)s}

function envoy_on_response(response)
  local headers = response:headers()
  local is_json = headers:get("content-type") == "application/json"
  if not is_json then return end
  headers:remove("grpc-status")
  headers:remove("grpc-message")
  if tonumber(headers:get(":status")) < 400 then return end
  local body = response:body(true)
  -- What was read before the body came cannot be used after.
  headers = response:headers()
  local trailers = response:trailers()
  local function sent(name)
    return headers:get(name) or (trailers and trailers:get(name))
  end
  local answer = sent("%(error_header)s")
  if answer == nil then
    -- What the transcoder wrote; the gateway's own answers, complete already, look different.
    local text = body:getBytes(0, body:length())
    local code, message = text:match('^{"code":(%%d+),"message":(".-"),"details":%%[')
    if code == nil then return end
    answer = string.format(
      '{"code":%%s,"status":"%%s","message":%%s,"error":%%s,"details":[],"requestId":"%%s"}',
      code, NAMES[tonumber(code)] or "UNKNOWN", message, message, headers:get("x-request-id") or "")
  end
  local delay = sent("retry-after")
  if delay ~= nil then
    headers:replace("retry-after", delay)
  end
  headers:replace("content-length", body:setBytes(answer))
end
"""


def error_filter(name: str) -> Config:
    """The filter that gives services' errors their JSON body."""
    names = ", ".join(f'[{number}]="{status}"' for number, status in _NAMES.items())
    script = _SCRIPT % {"names": names, "error_header": H_ERROR}
    return extension(
        name,
        "extensions.filters.http.lua.v3.Lua",
        default_source_code={"inline_string": script},
    )


_NAMES: Final = {
    1: "CANCELLED",
    2: "UNKNOWN",
    10: "ABORTED",
    11: "OUT_OF_RANGE",
    15: "DATA_LOSS",
    **{int(code): code.name for code in Code},
}


def local_replies() -> Config:
    """The bodies of the gateway's own answers."""
    return {
        "mappers": [
            *_token_trouble(),
            *_come_back_later(native_grpc=True),
            _native_grpc(),
            *_come_back_later(native_grpc=False),
            # The transcoder says what is wrong with the JSON.
            _mapper(_details("json_transcode_failure{INVALID"), Code.INVALID_ARGUMENT, _OWN_TEXT),
            *(_mapper(_status("EQ", status), code, text) for status, code, text in _TABLE),
            *(
                _mapper(_status("GE", status), code, text)
                for status, code, text in (_OTHER_SERVER_ERROR, _OTHER_CLIENT_ERROR)
            ),
        ]
    }


def _mapper(when: Config, code: Code, text: str, **more: Any) -> Config:
    return {
        "filter": when,
        "body_format_override": {
            "json_format": {
                "code": int(code),
                "status": code.name,
                "message": text,
                "error": text,
                "details": [],
                "requestId": _REQUEST_ID,
            },
            "content_type": "application/json",
        },
        **more,
    }


def _come_back_later(*, native_grpc: bool) -> list[Config]:
    mappers = []
    for status, code, text in _TABLE:
        for percentage, delay in _RETRY_AFTER.get(status, ()):
            later = [header("retry-after", str(delay), "ADD_IF_ABSENT")]
            when = [_status("EQ", status), _share(percentage)]
            if native_grpc:
                form = _text(_OWN_TEXT)
                mappers.append(
                    {
                        "filter": _all(_NATIVE_GRPC, *when),
                        "body_format_override": form,
                        "headers_to_add": later,
                    }
                )
            else:
                mappers.append(_mapper(_all(*when), code, text, headers_to_add=later))
    return mappers


def _token_trouble() -> list[Config]:
    """A token that cannot be checked is not a wrong token; one for others is."""
    no_keys = _details("Jwks_remote_fetch_is_failed")
    text = "tokens cannot be checked now; try again"
    later: Config = {
        "status_code": 503,
        "headers_to_add": [header("retry-after", "2", "ADD_IF_ABSENT")],
    }
    not_for_us = _details("Audiences_in_Jwt_are_not_allowed")
    return [
        {"filter": _all(no_keys, _NATIVE_GRPC), "body_format_override": _text(text), **later},
        _mapper(no_keys, Code.UNAVAILABLE, text, **later),
        {
            "filter": _all(not_for_us, _NATIVE_GRPC),
            "body_format_override": _text(_OWN_TEXT),
            "status_code": 401,
        },
        _mapper(not_for_us, Code.UNAUTHENTICATED, _OWN_TEXT, status_code=401),
    ]


def _details(text: str) -> Config:
    """Matches what the filter that refused noted about it."""
    return {
        "extension_filter": {
            "name": "cel",
            "typed_config": typed(
                "extensions.access_loggers.filters.cel.v3.ExpressionFilter",
                expression=f"response.code_details.contains('{text}')",
            ),
        }
    }


def _native_grpc() -> Config:
    """gRPC's message is the plain text, for its form is not JSON."""
    return {"filter": _NATIVE_GRPC, "body_format_override": _text(_OWN_TEXT)}


def _text(text: str) -> Config:
    return {"text_format_source": {"inline_string": text}}


def _status(comparison: str, status: int) -> Config:
    value = {"default_value": status, "runtime_key": "evergreen.unused"}
    return {"status_code_filter": {"comparison": {"op": comparison, "value": value}}}


def _share(percentage: int) -> Config:
    return {
        "runtime_filter": {
            "runtime_key": "evergreen.unused",
            "percent_sampled": {"numerator": percentage, "denominator": "HUNDRED"},
            "use_independent_randomness": True,
        }
    }


def _all(*filters: Config) -> Config:
    return {"and_filter": {"filters": list(filters)}}


_NATIVE_GRPC: Final = _all(
    {
        "header_filter": {
            "header": {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
        }
    },
    {"header_filter": {"header": {"name": ORIGINAL_PATH, "present_match": False}}},
)
