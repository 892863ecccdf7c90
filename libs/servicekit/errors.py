"""The one family of errors that services raise, and the one shape in which callers see them.

Only the servers (`servicekit.rpc`, `servicekit.http`) know transports; everything below them raises
`DomainError`. What nobody expected becomes INTERNAL with a plain message.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

ERROR_DOMAIN: Final = "evergreen"
MAX_VIOLATIONS: Final = 8
"""More broken fields than this are counted, not listed, so that an error stays small."""
_MAX_TEXT: Final = 500


class Code(IntEnum):
    """The codes of google.rpc.Code that this system answers with."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


HTTP_STATUS: Final[Mapping[Code, int]] = {
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.UNAUTHENTICATED: 401,
}
"""The mapping of google/rpc/code.proto, which the gateway's transcoder applies too."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that breaks a rule."""

    field: str
    rule: str


class DomainError(Exception):
    """Something that the caller is to be told.

    `reason` is UPPER_SNAKE and stable; `message` is for people; `retry_after` is in seconds;
    `http_status` is for JSON calls, where HTTP has a more exact one than the code's.
    """

    def __init__(
        self,
        code: Code,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_after: float | None = None,
        http_status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message if len(message) <= _MAX_TEXT else message[:_MAX_TEXT] + "…"
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after = retry_after
        self.http_status = http_status


def invalid(*violations: FieldViolation) -> DomainError:
    """The request breaks rules; the message names the first field and counts the others."""
    first = violations[0]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return DomainError(
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        f"{first.field}: {first.rule}{more}",
        violations=violations,
    )


def invalid_field(field: str, rule: str) -> DomainError:
    """One field of the request breaks a rule."""
    return invalid(FieldViolation(field, rule))


def not_found(kind: str, key: object) -> DomainError:
    """What was named does not exist, or not for this caller; the two look the same."""
    return DomainError(
        Code.NOT_FOUND,
        "NOT_FOUND",
        f"no such {kind}",
        metadata={"kind": kind, "id": str(key)},
    )


def unauthenticated(reason: str, message: str) -> DomainError:
    """The caller's credentials are missing, wrong, or no longer valid."""
    return DomainError(Code.UNAUTHENTICATED, reason, message)


def permission_denied(reason: str, message: str) -> DomainError:
    """The caller is known and may not do this."""
    return DomainError(Code.PERMISSION_DENIED, reason, message)


def failed_precondition(reason: str, message: str) -> DomainError:
    """The request is sound, but the state of the system does not allow it."""
    return DomainError(Code.FAILED_PRECONDITION, reason, message)


def already_exists(reason: str, message: str) -> DomainError:
    """What was to be made is there."""
    return DomainError(Code.ALREADY_EXISTS, reason, message)


def aborted(reason: str, message: str) -> DomainError:
    """Somebody else changed the same thing; read again and decide anew."""
    return DomainError(Code.ABORTED, reason, message)


def jittered(seconds: float) -> float:
    """A delay around `seconds` (0.5 to 1.5 times), so that refused callers do not return as one."""
    return seconds * random.uniform(0.5, 1.5)  # noqa: S311 - not a secret


def exhausted(reason: str, message: str, *, retry_after: float = 2.0) -> DomainError:
    """A bounded queue or budget is full."""
    return DomainError(Code.RESOURCE_EXHAUSTED, reason, message, retry_after=jittered(retry_after))


def unavailable(message: str, *, retry_after: float = 2.0) -> DomainError:
    """Something that the service needs is away for now."""
    return DomainError(Code.UNAVAILABLE, "UNAVAILABLE", message, retry_after=jittered(retry_after))


def unimplemented() -> DomainError:
    """The call is part of the contract and not offered by this release."""
    return DomainError(Code.UNIMPLEMENTED, "NOT_OFFERED", "this release does not offer this call")


def internal() -> DomainError:
    """What nobody expected; the detail is in the log only."""
    return DomainError(
        Code.INTERNAL,
        "INTERNAL",
        "internal error; the log has the details",
    )


def error_details(error: DomainError) -> list[dict[str, Any]]:
    """The google.rpc details of an error, in their JSON form."""
    details: list[dict[str, Any]] = [
        {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": error.reason,
            "domain": ERROR_DOMAIN,
            "metadata": error.metadata,
        }
    ]
    if error.violations:
        details.append(
            {
                "@type": "type.googleapis.com/google.rpc.BadRequest",
                "fieldViolations": [
                    {"field": v.field[:_MAX_TEXT], "description": v.rule[:_MAX_TEXT]}
                    for v in error.violations[:MAX_VIOLATIONS]
                ],
            }
        )
    if error.retry_after is not None:
        details.append(
            {
                "@type": "type.googleapis.com/google.rpc.RetryInfo",
                "retryDelay": f"{error.retry_after:.3f}s",
            }
        )
    return details


def too_late() -> DomainError:
    """The call cannot be answered before its deadline; nothing was done."""
    return DomainError(
        Code.DEADLINE_EXCEEDED, "TOO_LATE", "the call's deadline is too short; use a longer one"
    )


def error_body(error: DomainError, request_id: str) -> str:
    """The JSON body of an error, in ASCII so that it also fits into a header."""
    return json.dumps(
        {
            "code": int(error.code),
            "status": error.code.name,
            "message": error.message,
            "error": error.message,
            "details": error_details(error),
            "requestId": request_id,
        },
        separators=(",", ":"),
    )


def retry_after_header(error: DomainError) -> str | None:
    """The value of `Retry-After`: whole seconds, at least one."""
    return None if error.retry_after is None else str(max(1, round(error.retry_after)))
