"""One call: who calls what, from where. The gateway's headers are read here and nowhere else."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from typing import Final
from urllib.parse import unquote
from uuid import UUID

from contract.access import Role
from servicekit.errors import unauthenticated
from servicekit.ids import new_id

H_KIND: Final = "x-evergreen-kind"
H_SUBJECT: Final = "x-evergreen-subject"
H_TENANT: Final = "x-evergreen-tenant"
H_ROLE: Final = "x-evergreen-role"
H_EMAIL: Final = "x-evergreen-email"
H_SESSION: Final = "x-evergreen-session"
H_TOKEN_VERSION: Final = "x-evergreen-token-version"
H_TOKEN_ISSUED: Final = "x-evergreen-token-issued"
H_TOKEN_EXPIRES: Final = "x-evergreen-token-expires"
H_AUTHENTICATED: Final = "x-evergreen-token-authenticated"
"""Of a session's token: when the user logged in, or confirmed it since."""
H_OWNER: Final = "x-evergreen-token-owner"
"""Of an API token: the user or service account that it acts for."""
H_TOKEN_NAME: Final = "x-evergreen-token-name"
"""Its name, percent-encoded, for names are in all letters and headers are not."""
H_TOKEN_WHO: Final = "x-evergreen-token-who"
"""Who it acts for, in words, percent-encoded."""
H_SCOPES: Final = "x-evergreen-token-scopes"
"""What it may do, with spaces between."""
H_SERVICE: Final = "x-evergreen-service"
H_UNKNOWN: Final = "x-evergreen-unknown"
"""Names in a JSON call that no field has, as the gateway found them (`servicekit.rpc.members`)."""
H_REQUEST_ID: Final = "x-request-id"
H_TIMEOUT: Final = "x-evergreen-timeout"
"""For how many seconds the gateway, or the calling service, waits for the answer."""
H_SOURCE: Final = "x-envoy-external-address"
H_HOPS: Final = "x-evergreen-hops"
"""With `/readyz`: how many addresses of the call's way the gateway knows."""
H_USER_AGENT: Final = "user-agent"
H_TRACEPARENT: Final = "traceparent"
"""W3C Trace Context; the gateway removes what clients send."""
CLAIMS: Final = {
    "knd": H_KIND,
    "sub": H_SUBJECT,
    "tid": H_TENANT,
    "role": H_ROLE,
    "email": H_EMAIL,
    "sid": H_SESSION,
    "ver": H_TOKEN_VERSION,
    "iat": H_TOKEN_ISSUED,
    "exp": H_TOKEN_EXPIRES,
    "aat": H_AUTHENTICATED,
}
"""The header that says what a token's claim says."""
TOKEN_CLAIMS: Final = {
    "knd": H_KIND,
    # The token's own id, so that each token has the gateway's rate of a user for itself.
    "sub": H_SUBJECT,
    "own": H_OWNER,
    "who": H_TOKEN_WHO,
    "nam": H_TOKEN_NAME,
    "scp": H_SCOPES,
    "tid": H_TENANT,
    "role": H_ROLE,
    "iat": H_TOKEN_ISSUED,
    "exp": H_TOKEN_EXPIRES,
}
"""The same of API tokens."""
HEADERS: Final = (
    H_KIND, H_SUBJECT, H_TENANT, H_ROLE, H_EMAIL, H_SESSION, H_TOKEN_VERSION, H_TOKEN_ISSUED,
    H_TOKEN_EXPIRES, H_AUTHENTICATED, H_REQUEST_ID, H_TIMEOUT, H_SOURCE, H_TRACEPARENT,
)  # fmt: skip
"""What the gateway says of a call, and the trace that it is part of."""
TOKEN_HEADERS: Final = (H_OWNER, H_TOKEN_NAME, H_TOKEN_WHO, H_SCOPES)
"""What it says beside that of a call with an API token."""


class CallerKind(Enum):
    """What kind of party calls."""

    ANONYMOUS = "anonymous"
    USER = "user"
    DEVICE = "device"
    SCIM = "scim"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class TokenOfCaller:
    """The API token with which a call is made."""

    id: str
    name: str
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as the gateway (or, on the internal listener, a service) vouches."""

    kind: CallerKind
    id: str = ""
    tenant_id: str = ""
    role: Role | None = None
    email: str = ""
    session_id: str = ""
    token_version: int = 0
    issued_at: datetime | None = None
    expires_at: datetime | None = None
    authenticated_at: datetime | None = None
    """Of a user's session: when the user logged in, or confirmed it since. A token of the release
    before does not say so: then it is when that was made."""
    token: TokenOfCaller | None = None
    """With an API token the caller is who made it: a user or a service account, with the role and
    the tenant of the token; or a SCIM source, which has no role. `None` for somebody who is logged
    in."""

    @property
    def name(self) -> str:
        """How audit entries name the caller."""
        if self.token is not None:
            return f"token:{self.token.name} ({self.email})"
        if self.kind is CallerKind.USER:
            return self.email
        return f"{self.kind.value}:{self.id}" if self.id else self.kind.value


_TOKEN_KINDS: Final = {"token": CallerKind.USER, "scim": CallerKind.SCIM}
"""Who calls with an API token, by the token's kind."""
ANONYMOUS: Final = Caller(CallerKind.ANONYMOUS)
SYSTEM: Final = Caller(CallerKind.SERVICE)


@dataclass(frozen=True, slots=True)
class Call:
    """One call as its handler sees it."""

    rpc: str
    caller: Caller
    request_id: str
    source_ip: str = ""
    user_agent: str = ""
    """What a program or a browser says of itself; of devices it is not kept."""


_CANONICAL: Final = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
).fullmatch

SYSTEM_CALL: Final = Call("", SYSTEM, "")
"""What the system does by itself, such as the first start."""

current_call: ContextVar[Call] = ContextVar("current_call", default=SYSTEM_CALL)
"""The call that the running task serves."""
waited_seconds: ContextVar[float] = ContextVar("waited_seconds", default=0.0)
"""For how long that call was kept waiting for its turn. It is no part of the time it took, for it
tells nothing of how quickly calls are answered."""
RETURN_SECONDS: Final = 0.02
"""What each hop keeps of the time it is given, for the way back of its answer."""
deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)
"""When the running call has to be done, by `time.perf_counter`; background work has no deadline."""


def seconds_left() -> float:
    """The time until the running call's deadline; infinite for background work."""
    return deadline.get() - time.perf_counter()


def begin_background_call() -> None:
    """Gives the running task's work a request id, for its logs and those of other services."""
    current_call.set(Call("", SYSTEM, str(new_id())))


def _time(text: str | None) -> datetime | None:
    return datetime.fromtimestamp(float(text), UTC) if text else None


def _uuid(text: str) -> str:
    # The usual spelling needs no reading.
    return text if _CANONICAL(text) is not None else str(UUID(text))


_tenant_uuid: Final = lru_cache(maxsize=4096)(_uuid)
"""One text for all devices of a tenant, too."""


_LONG_AGO: Final = datetime.fromtimestamp(0, UTC)
"""When users of tokens logged in that do not say it: those of 0.1.0."""


def caller_from_headers(headers: Mapping[str, str]) -> Caller:
    """Reads the caller that the gateway verified.

    Raises:
        DomainError: UNAUTHENTICATED when the headers are not what the gateway sets.
    """
    kind = headers.get(H_KIND, "")
    if not kind:
        return ANONYMOUS
    try:
        subject = _uuid(headers[H_SUBJECT])
        tenant = _tenant_uuid(headers[H_TENANT])
        issued = _time(headers.get(H_TOKEN_ISSUED))
        expires = _time(headers.get(H_TOKEN_EXPIRES))
        if kind == "user":
            return Caller(
                CallerKind.USER,
                id=subject,
                tenant_id=tenant,
                role=Role(headers[H_ROLE]),
                email=headers[H_EMAIL],
                session_id=_uuid(headers[H_SESSION]),
                issued_at=issued,
                expires_at=expires,
                authenticated_at=_time(headers.get(H_AUTHENTICATED)) or _LONG_AGO,
            )
        if kind == "device":
            return Caller(
                CallerKind.DEVICE,
                id=subject,
                tenant_id=tenant,
                token_version=int(headers[H_TOKEN_VERSION]),
                issued_at=issued,
                expires_at=expires,
            )
        if kind in _TOKEN_KINDS:
            return Caller(
                _TOKEN_KINDS[kind],
                id=_uuid(headers[H_OWNER]),
                tenant_id=tenant,
                role=Role(headers[H_ROLE]) if kind == "token" else None,
                email=unquote(headers[H_TOKEN_WHO]),
                session_id=subject,
                issued_at=issued,
                expires_at=expires,
                token=TokenOfCaller(
                    subject,
                    unquote(headers[H_TOKEN_NAME]),
                    frozenset(headers[H_SCOPES].split()),
                ),
            )
    except (KeyError, ValueError) as broken:
        raise unauthenticated("BAD_TOKEN", "the token lacks claims that it needs") from broken
    raise unauthenticated("BAD_TOKEN", "the token is of an unknown kind")


def call_from_headers(rpc: str, headers: Mapping[str, str], caller: Caller) -> Call:
    """Builds the call's context from the gateway's headers."""
    request_id = headers.get(H_REQUEST_ID) or str(new_id())
    if caller.kind is CallerKind.DEVICE:
        return Call(rpc, caller, request_id, headers.get(H_SOURCE, ""))
    agent = headers.get(H_USER_AGENT, "")
    return Call(rpc, caller, request_id, headers.get(H_SOURCE, ""), agent)
