"""The one shape of errors, and which statuses an operation may answer with."""

from __future__ import annotations

from typing import Any, Final

from google.rpc import code_pb2

from contract.rows import Audience, RateClass
from servicekit.errors import ERROR_DOMAIN, HTTP_STATUS, Code
from tools.openapi.contract import Operation

Schema = dict[str, Any]

ERROR_SCHEMA: Final[Schema] = {
    "type": "object",
    "description": "What went wrong. Every answer with a status of 400 or above has this shape.",
    "properties": {
        "code": {"type": "integer", "description": "The number of the google.rpc.Code."},
        "status": {
            "type": "string",
            "description": "The name of the google.rpc.Code.",
            "enum": [name for name in code_pb2.Code.DESCRIPTOR.values_by_name if name != "OK"],
        },
        "message": {"type": "string", "description": "What went wrong, for people."},
        "error": {"type": "string", "description": "The same as `message`."},
        "details": {
            "type": "array",
            "description": "google.rpc details: ErrorInfo, BadRequest, RetryInfo.",
            "items": {
                "type": "object",
                "properties": {
                    "@type": {"type": "string", "description": "The type of this detail."}
                },
                "required": ["@type"],
                "additionalProperties": True,
            },
        },
        "requestId": {"type": "string", "description": "The id of the call, as in the logs."},
    },
    "required": ["code", "status", "message", "error", "details", "requestId"],
}

_MEANINGS: Final[dict[int, tuple[str, str, Code, str | None, str]]] = {
    400: (
        "InvalidRequest",
        "The request breaks a rule, which the message names, or does not fit the state of things.",
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "name: is required",
    ),
    401: (
        "Unauthenticated",
        "The credentials are missing, wrong, or no longer valid.",
        Code.UNAUTHENTICATED,
        "NO_USER_TOKEN",
        "log in first",
    ),
    403: (
        "PermissionDenied",
        "The caller is known and may not do this.",
        Code.PERMISSION_DENIED,
        "ROLE_MAY_NOT",
        "the role Auditor may not do this",
    ),
    404: (
        "NotFound",
        "What was named does not exist, or not for this caller.",
        Code.NOT_FOUND,
        "NOT_FOUND",
        "no such policy",
    ),
    409: (
        "Conflict",
        "What was to be made is there already, or somebody else changed the same thing.",
        Code.ALREADY_EXISTS,
        "EMAIL_TAKEN",
        "email: already in use",
    ),
    412: (
        "PreconditionFailed",
        "Somebody else changed it since the etag in `If-Match` was read; read it again.",
        Code.ABORTED,
        "ETAG_MISMATCH",
        "it was changed since you read it; read it again",
    ),
    413: (
        "TooLarge",
        "The body is larger than this call takes.",
        Code.INVALID_ARGUMENT,
        None,
        "the request's body is too large",
    ),
    429: (
        "TooManyRequests",
        "Too many calls; wait as long as `Retry-After` says.",
        Code.RESOURCE_EXHAUSTED,
        None,
        "too many requests; try again later",
    ),
    501: (
        "NotOffered",
        "The call is part of the contract, but this release does not offer it.",
        Code.UNIMPLEMENTED,
        "NOT_OFFERED",
        "this release does not offer this call",
    ),
    503: (
        "Unavailable",
        "Something that the call needs is away for now; wait as long as `Retry-After` says.",
        Code.UNAVAILABLE,
        "UNAVAILABLE",
        "the service is not available at the moment",
    ),
}
_RETRY: Final = frozenset({429, 503})


def statuses(operation: Operation, *, names_something: bool) -> list[int]:
    """The error statuses of an operation; `names_something` when a request holds an id."""
    audience = operation.access.audience
    found = {429, 503}
    if operation.has_body:
        found |= {400, 413}
    if operation.method.input_type.fields:
        found |= {400}
    if audience is not Audience.PUBLIC:
        found |= {401, 403}
    elif operation.is_device_form:
        found |= {403, 409}  # a key that does not let the device in; a serial number that is taken
    elif operation.access.writes:
        found |= {401}  # the credentials are in the body
    closed_by_default = operation.access.rate is RateClass.PUBLISHED
    if not operation.is_device_form and (names_something or closed_by_default):
        found |= {404}
    if audience is Audience.USER and operation.access.writes:
        found |= {409}
    if takes_etag(operation):
        found |= {412}
    if not operation.access.offered:
        found |= {501}
    return sorted(found)


def takes_etag(operation: Operation) -> bool:
    """Whether a call may say, by an etag, what it expects to change."""
    return "etag" in operation.method.input_type.fields_by_name


def answers(statuses: list[int]) -> Schema:
    """The `responses` for the statuses, and for any other error."""
    found: Schema = {str(status): _ref(_MEANINGS[status][0]) for status in statuses}
    return found | {"default": _ref("Error")}


def components() -> Schema:
    """The named responses that `answers` refers to."""
    found: Schema = {
        "Error": {"description": "Any other error.", "content": _content(None)},
    }
    for status, (name, meaning, code, reason, message) in _MEANINGS.items():
        response: Schema = {"description": meaning, "content": _content((code, reason, message))}
        if status in _RETRY:
            response["headers"] = {
                "Retry-After": {
                    "description": "How many seconds to wait.",
                    "schema": {"type": "integer", "minimum": 1},
                }
            }
        assert status in {412, 413} or HTTP_STATUS[code] == status
        found[name] = response
    return found


def _content(example: tuple[Code, str | None, str] | None) -> Schema:
    media: Schema = {"schema": {"$ref": "#/components/schemas/Error"}}
    if example is not None:
        media["example"] = _example(*example)
    return {"application/json": media}


def _example(code: Code, reason: str | None, message: str) -> Schema:
    details: list[Schema] = []
    if reason is not None:  # the gateway's own answers have no details
        details.append(
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": reason,
                "domain": ERROR_DOMAIN,
                "metadata": {},
            }
        )
    if reason == "INVALID_FIELD":
        field, rule = message.split(": ")
        details.append(
            {
                "@type": "type.googleapis.com/google.rpc.BadRequest",
                "fieldViolations": [{"field": field, "description": rule}],
            }
        )
    return {
        "code": int(code),
        "status": code.name,
        "message": message,
        "error": message,
        "details": details,
        "requestId": "6b1d3a52-7f0e-4c8c-9a57-0d2f5b1c9e44",
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/responses/{name}"}
