"""The one shape of errors, whoever makes them.

Three parties can refuse a request:

- a service: it sends the whole JSON body beside the gRPC status, in the metadata
  `x-evergreen-error`. The transcoder would make a body of its own from the status; the script
  in `errors.lua`, which sees the answer after the transcoder, puts the service's in its place;
- the gRPC library below a service, which knows nothing of that metadata: the script completes
  the transcoder's body;
- the gateway itself: its own answers get their body from the table below.

Native gRPC calls keep gRPC's form: status, message and details.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from deploy.gateway.envoy import Config, extension, header, script
from servicekit.errors import ERROR_DOMAIN, Code

H_ERROR: Final = "x-evergreen-error"
H_STATUS: Final = "x-evergreen-status"
"""From a service: the HTTP status of an error where it is not that of its code."""
H_BROKEN: Final = "x-evergreen-broken"
"""On its way to the script: the transcoder could make nothing of the request."""
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
    (503, Code.UNAVAILABLE, "the service is unavailable; try again"),
    (504, Code.DEADLINE_EXCEEDED, "the service did not answer in time"),
]
_UNKNOWN_TO_GRPC: Final = frozenset((413, 431))
_OTHER_SERVER_ERROR: Final = (500, Code.INTERNAL, "internal error")
_OTHER_CLIENT_ERROR: Final = (400, Code.INVALID_ARGUMENT, _OWN_TEXT)

# Callers that are told to come back are told different delays: of those that are left by the
# lines before, this percentage is sent away for so many seconds. Who called too often is sent
# away for longer than who found something away.
_RETRY_AFTER: Final = {
    503: [(25, 1), (33, 2), (50, 3), (100, 4)],
    429: [(25, 2), (33, 4), (50, 6), (100, 8)],
}

_INTEGER: Final = "must be a whole number in its range"
_NUMBER: Final = "must be a number"
_RULES: Final = {
    "TYPE_STRING": "must be a string",
    "TYPE_BYTES": "must be base64",
    "TYPE_BOOL": "must be true or false",
    "TYPE_ENUM": "must be one of the allowed values",
    **{f"TYPE_{kind}": _NUMBER for kind in ("DOUBLE", "FLOAT")},
    **{
        f"TYPE_{sign}{size}": _INTEGER
        for sign in ("INT", "UINT", "SINT", "FIXED", "SFIXED")
        for size in (32, 64)
    },
    "type.googleapis.com/google.protobuf.Timestamp": "must be a time such as 2026-01-31T08:00:00Z",
    "type.googleapis.com/google.protobuf.Duration": "must be seconds such as 3.5s",
}
"""What a field's value has to be, by what the transcoder calls its kind."""

_SCRIPT: Final = Path(__file__).with_suffix(".lua")


def error_filter(name: str) -> Config:
    """The filter that gives services' errors their JSON body."""
    text = script(
        _SCRIPT,
        names="{" + ", ".join(f'[{number}]="{status}"' for number, status in _NAMES.items()) + "}",
        rules="{" + ", ".join(f'["{kind}"]="{rule}"' for kind, rule in _RULES.items()) + "}",
        domain=ERROR_DOMAIN,
        error_header=H_ERROR,
        status_header=H_STATUS,
        broken_header=H_BROKEN,
    )
    return extension(
        name,
        "extensions.filters.http.lua.v3.Lua",
        default_source_code={"inline_string": text},
    )


_NAMES: Final = {
    1: "CANCELLED",
    2: "UNKNOWN",
    10: "ABORTED",
    11: "OUT_OF_RANGE",
    15: "DATA_LOSS",
    **{int(code): code.name for code in Code},
}


_REFUSED: Final = "refused"
_METADATA: Final = "evergreen"


def refusal(status: int, code: Code, reason: str, text: str) -> Config:
    """The action of a route that refuses whatever matches it, as a service refuses."""
    return {
        "name": _REFUSED,
        "direct_response": {"status": status, "body": {"inline_string": text}},
        "metadata": {
            "filter_metadata": {
                _METADATA: {"code": int(code), "status": code.name, "reason": reason}
            }
        },
    }


def _refused() -> Config:
    """The body of a `refusal`."""
    told = {name: f"%METADATA(ROUTE:{_METADATA}:{name})%" for name in ("code", "status", "reason")}
    when = _cel(f"xds.route_name == '{_REFUSED}'")
    return _body(when, told["code"], told["status"], _OWN_TEXT, [_error_info(told["reason"])])


def _error_info(reason: str) -> Config:
    return {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": ERROR_DOMAIN,
        "metadata": {},
    }


def local_replies() -> Config:
    """The bodies of the gateway's own answers."""
    broken = header(H_BROKEN, "1")
    return {
        "mappers": [
            *_to_scim(),
            *_token_trouble(),
            *_too_slow(),
            *_told(
                _details("upgrade_failed"),
                Code.PERMISSION_DENIED,
                "no tunnel or WebSocket is offered",
            ),
            *_come_back_later(native_grpc=True),
            *(
                {
                    "filter": _all(_NATIVE_GRPC, _status("EQ", status)),
                    **_grpc_text(text),
                    **_grpc_code(status, code),
                }
                for status, code, text in _TABLE
            ),
            _native_grpc(),
            _refused(),
            *_come_back_later(native_grpc=False),
            {
                **_mapper(
                    _details("json_transcode_failure{INVALID"), Code.INVALID_ARGUMENT, _OWN_TEXT
                ),
                "headers_to_add": [broken],
            },
            *(_mapper(_status("EQ", status), code, text) for status, code, text in _TABLE),
            *(
                _mapper(_status("GE", status), code, text)
                for status, code, text in (_OTHER_SERVER_ERROR, _OTHER_CLIENT_ERROR)
            ),
        ]
    }


def _to_scim() -> list[Config]:
    """The same to SCIM clients, in SCIM's own form (RFC 7644, section 3.12)."""
    away = _all(_cel(_ROUTE_OF_SCIM), _details("Jwks_remote_fetch_is_failed"))
    no_token = "the token of a SCIM source is needed; this is none that is valid"
    return [
        {**_scim_body(away, 503, _TOKENS_AWAY), "status_code": 503, **_later(2)},
        *(
            {**_scim_body(_all(_cel(_ROUTE_OF_SCIM), *when), status, text), **_later(delay)}
            for status, _, text in _TABLE
            for percentage, delay in _RETRY_AFTER.get(status, ())
            for when in [(_status("EQ", status), _share(percentage))]
        ),
        *(
            _scim_body(
                _all(_cel(_ROUTE_OF_SCIM), _status("EQ", status)),
                status,
                no_token if status == _UNAUTHENTICATED else text,
            )
            for status, _, text in _TABLE
            if status not in _RETRY_AFTER
        ),
    ]


def _scim_body(when: Config, status: int, text: str) -> Config:
    return {
        "filter": when,
        "body_format_override": {
            "json_format": {
                "schemas": ["urn:ietf:params:scim:api:messages:2.0:Error"],
                "status": str(status),
                "detail": text,
            },
            "content_type": "application/scim+json",
        },
    }


def _later(delay: int) -> Config:
    return {"headers_to_add": [header("retry-after", str(delay), "ADD_IF_ABSENT")]}


def replies_in_the_clear() -> Config:
    """The body of every answer to a client that speaks no TLS."""
    text = "this port speaks HTTPS: use https:// in the address"
    return {"mappers": [_mapper(_status("GE", 400), Code.INVALID_ARGUMENT, text, status_code=400)]}


def _told(when: Config, code: Code, text: str, *, reason: str = "", **more: Any) -> list[Config]:
    """The same words for native gRPC, as its message, and for everybody else."""
    details = [_error_info(reason)] if reason else []
    return [
        {"filter": _all(when, _NATIVE_GRPC), **_grpc_text(text), **more},
        {**_body(when, int(code), code.name, text, details), **more},
    ]


def _mapper(when: Config, code: Code, text: str, **more: Any) -> Config:
    return {**_body(when, int(code), code.name, text), **more}


def _body(
    when: Config, code: int | str, status: str, text: str, details: Sequence[Config] = ()
) -> Config:
    return {
        "filter": when,
        "body_format_override": {
            "json_format": {
                "code": code,
                "status": status,
                "message": text,
                "error": text,
                "details": list(details),
                "requestId": _REQUEST_ID,
            },
            "content_type": "application/json",
        },
    }


def _come_back_later(*, native_grpc: bool) -> list[Config]:
    mappers = []
    for status, code, text in _TABLE:
        for percentage, delay in _RETRY_AFTER.get(status, ()):
            later = _later(delay)
            when = [_status("EQ", status), _share(percentage)]
            if native_grpc:
                mappers.append(
                    {
                        "filter": _all(_NATIVE_GRPC, *when),
                        **_grpc_text(text),
                        **later,
                    }
                )
            else:
                mappers.append(_mapper(_all(*when), code, text, **later))
    return mappers


def _token_trouble() -> list[Config]:
    """A token that cannot be checked is not a wrong token; one for others is."""
    mappers = _told(
        _details("Jwks_remote_fetch_is_failed"),
        Code.UNAVAILABLE,
        _TOKENS_AWAY,
        status_code=503,
        **_later(2),
    )
    for details, reason, of_users, of_devices in _TOKENS:
        refused = _details(f"jwt_authn_access_denied{{{details}")
        for when, text in (
            (_all(_cel(_ROUTE_OF_DEVICES), refused), of_devices),
            (refused, of_users),
        ):
            mappers += _told(when, Code.UNAUTHENTICATED, text, reason=reason, status_code=401)
    return mappers


# What begins so in the filter's note, the reason, and what users and devices are told.
_TOKENS: Final = [
    (
        "Jwt_is_missing",
        "TOKEN_MISSING",
        "log in first: this call needs the token of a user's session, or an API token",
        "a device token is needed: the one that enrollment gave the device",
    ),
    (
        "Jwt_is_expired",
        "TOKEN_EXPIRED",
        "the session's token has expired: refresh the session, or log in again; an API token that"
        " has expired needs a successor",
        "the device token has expired: enroll the device again",
    ),
    (
        "",
        "TOKEN_INVALID",
        "this is not a valid token of a user's session, nor a valid API token: log in again",
        "this is not a valid device token",
    ),
]
_UNAUTHENTICATED: Final = 401
_TOKENS_AWAY: Final = "tokens cannot be checked at the moment; try again"
_ROUTE_OF_SCIM: Final = f"xds.route_metadata.filter_metadata['{_METADATA}']['limit'] == 'scim'"
_ROUTE_OF_DEVICES: Final = f"xds.route_metadata.filter_metadata['{_METADATA}']['limit'] == 'device'"


def _too_slow() -> list[Config]:
    """A stream that lasted too long; to gRPC, 408 is an unknown error."""
    when = _details("max_duration_timeout")
    grpc, plain = _told(when, Code.DEADLINE_EXCEEDED, "the request took too long", status_code=408)
    return [{**grpc, "status_code": 504}, plain]


def _details(text: str) -> Config:
    """Matches what the filter that refused noted about it."""
    return _cel(f"response.code_details.contains('{text}')")


def _cel(expression: str) -> Config:
    return {
        "extension_filter": extension(
            "cel",
            "extensions.access_loggers.filters.cel.v3.ExpressionFilter",
            expression=expression,
        )
    }


def _native_grpc() -> Config:
    """gRPC's message is the plain text, for its form is not JSON."""
    return {"filter": _NATIVE_GRPC, **_grpc_text(_OWN_TEXT)}


def _grpc_text(text: str) -> Config:
    return {"body_format_override": {"text_format_source": {"inline_string": text}}}


def _grpc_code(status: int, code: Code) -> Config:
    """The code for a status that Envoy knows none for, which it would call an unknown error."""
    if status not in _UNKNOWN_TO_GRPC:
        return {}
    return {"headers_to_add": [header("grpc-status", str(int(code)), "ADD_IF_ABSENT")]}


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
