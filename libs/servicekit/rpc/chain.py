"""What every call passes through, whichever server took it, in this order:

1. admission: a service that is full says so at once, before a body is read, and a call that
   cannot be answered before its deadline is refused;
2. the access table: an RPC without a row, or for another audience, is refused;
3. the caller: as the gateway vouches, with a role of the row, not cut off since, whose tenant
   does not hold more than its share of the places; inside the walls, a service that the row names;
4. the rules of the request's fields;
5. the handler;
6. the outcome: errors in the one shape, a metric, a log line.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime, timedelta
from types import CoroutineType
from typing import Any, Final, NoReturn, TypeVar

from google.protobuf.message import Message

from contract.access import ACCESS, NATIVE, Audience, Rule
from contract.rows import write_scope
from servicekit.admission.fair import Shares
from servicekit.call import (
    ANONYMOUS,
    H_REQUEST_ID,
    H_SERVICE,
    H_SOURCE,
    H_TIMEOUT,
    RETURN_SECONDS,
    Call,
    Caller,
    CallerKind,
    TokenOfCaller,
    call_from_headers,
    caller_from_headers,
    current_call,
    deadline,
    waited_seconds,
)
from servicekit.data.postgres import as_domain_error
from servicekit.errors import (
    Code,
    DomainError,
    exhausted,
    internal,
    invalid,
    invalid_field,
    permission_denied,
    too_late,
    unauthenticated,
    unimplemented,
)
from servicekit.ids import Clock, now
from servicekit.observability import logs
from servicekit.observability.metrics import CALLS
from servicekit.peers.devices import DeviceAccess
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.refused import ROLE_MAY_NOT, NoteRefused
from servicekit.rpc.rules import is_uuid, violations

log = logs.get(__name__)

T = TypeVar("T")
_CLOCK_SKEW = timedelta(seconds=30)
FRESH_FOR: Final = timedelta(minutes=15)
"""How long after a login a user may do what needs a fresh one."""
_DEVICE_AUDIENCES = frozenset({Audience.DEVICE, Audience.DEVICE_LAPSED})
_LOGGED = frozenset({Audience.USER, Audience.SCIM})


def check_fresh(user: Caller, now: datetime) -> None:
    """Refuses a user who logged in a while ago: the browser may be in other hands.

    Raises:
        DomainError: PERMISSION_DENIED.
    """
    at = user.authenticated_at
    if at is None or now > at + FRESH_FOR:
        raise permission_denied(
            "STEP_UP_NEEDED",
            "confirm first that it is you, with your password (POST /auth/step-up), or log in"
            " again",
        )


class CallChain:
    """The chain of one service.

    Args:
        max_calls: the most calls in flight, which tenants share (`Shares`).
        tenants: where ended sessions and archived organisations are known; `None` in a chain that
            neither users nor devices call.
        devices: where locked-out devices are known; `None` in one that devices do not call.
        refused: is told of calls that the caller's role may not make.
        clock: by which devices' tokens lapse.
    """

    def __init__(
        self,
        *,
        max_calls: int,
        tenants: TenantDirectory | None = None,
        devices: DeviceAccess | None = None,
        refused: NoteRefused | None = None,
        clock: Clock = now,
    ) -> None:
        self._clock = clock
        self._refused = refused
        self._places = Shares(max_calls)
        self._tenants = tenants
        self._devices = devices

    def _begin(
        self,
        rpc: str,
        headers: Mapping[str, str],
        *,
        internal_listener: bool,
        time_remaining: float | None,
    ) -> Call:
        """Steps 1 to 3: admits the call and identifies its caller.

        A call that was admitted must be followed by `_end`.

        Raises:
            DomainError: when the call is refused; then `_end` must not follow.
        """
        if self._places.taken >= self._places.total:
            raise _busy()
        if time_remaining is not None and time_remaining <= RETURN_SECONDS:
            raise too_late()
        rule = ACCESS.get(rpc) or NATIVE.get(rpc)
        if rule is None or (rule.audience is Audience.INTERNAL) is not internal_listener:
            raise permission_denied("NOT_ALLOWED", "this call is not available here")
        call = call_from_headers(rpc, headers, self._caller(rule, headers))
        if not self._places.take(_tenant(call.caller)):
            raise _busy()
        CALLS.in_flight += 1
        return call

    def _end(self, call: Call) -> None:
        """Gives the call's place to another one."""
        self._places.give_back(_tenant(call.caller))
        CALLS.in_flight -= 1

    def _caller(self, rule: Rule, headers: Mapping[str, str]) -> Caller:
        if rule.audience is Audience.PUBLIC:
            return ANONYMOUS
        if rule.audience is Audience.INTERNAL:
            return _service(rule, headers.get(H_SERVICE, ""))
        caller = caller_from_headers(headers)
        if rule.audience in _DEVICE_AUDIENCES:
            return self._device(rule, caller)
        if rule.audience is Audience.SCIM:
            return self._scim_source(caller, headers)
        if caller.kind is not CallerKind.USER:
            raise unauthenticated("NO_USER_TOKEN", "log in first")
        if self._tenants is not None:
            self._tenants.check_session(caller, headers.get(H_SOURCE, ""))
        if caller.token is not None:
            _check_scope(rule, caller.token)
        if caller.role not in rule.roles:
            role = caller.role.value if caller.role else "no role"
            raise permission_denied(ROLE_MAY_NOT, f"the role {role} may not do this")
        if rule.fresh and caller.token is None:
            check_fresh(caller, self._clock())
        return caller

    def _device(self, rule: Rule, caller: Caller) -> Caller:
        if caller.kind is not CallerKind.DEVICE:
            raise unauthenticated("NO_DEVICE_TOKEN", "a device token is needed")
        if self._devices is None:
            raise permission_denied("NOT_ALLOWED", "devices do not call this service")
        if rule.audience is Audience.DEVICE:
            self._refuse_lapsed(caller)
        self._devices.check(caller)
        if self._tenants is not None:
            self._tenants.check_device(caller)
        return caller

    def _scim_source(self, caller: Caller, headers: Mapping[str, str]) -> Caller:
        if caller.kind is not CallerKind.SCIM:
            raise unauthenticated("NO_SCIM_TOKEN", "the token of a SCIM source is needed")
        if self._tenants is not None:
            self._tenants.check_session(caller, headers.get(H_SOURCE, ""))
        return caller

    def _note_refused(self, rpc: str, headers: Mapping[str, str], error: Exception) -> None:
        if (
            self._refused is not None
            and isinstance(error, DomainError)
            and error.reason == ROLE_MAY_NOT
        ):
            call = call_from_headers(rpc, headers, caller_from_headers(headers))
            self._refused(call, ROLE_MAY_NOT)

    def _refuse_lapsed(self, device: Caller) -> None:
        # The gateway lets a lapsed token of a device through, for the sake of the policy call.
        if device.expires_at is not None and self._clock() > device.expires_at + _CLOCK_SKEW:
            raise unauthenticated("TOKEN_EXPIRED", "the device token has expired; pull the policy")

    def serve(
        self,
        rpc: str,
        headers: Mapping[str, str],
        handler: Callable[[Call], T | Coroutine[Any, Any, T]],
        *,
        internal_listener: bool = False,
        time_remaining: float | None = None,
    ) -> T | Coroutine[Any, Any, T]:
        """Serves one call as far as it goes without waiting.

        Answers the result, or what has to be awaited for it; whatever goes wrong comes out as a
        `DomainError`.

        Args:
            rpc: the full name of its method.
            headers: what the gateway or the calling service says of it.
            handler: what serves it.
            internal_listener: whether another service calls.
            time_remaining: seconds that its caller still waits; `None` where it does not say so.
        """
        started = time.perf_counter()
        try:
            call = self._begin(
                rpc, headers, internal_listener=internal_listener, time_remaining=time_remaining
            )
        except Exception as error:
            self._note_refused(rpc, headers, error)
            _refuse(rpc, headers, started, error)
        token = current_call.set(call)
        try:
            answer = handler(call)
        except Exception as error:
            self._end(call)
            _fail(rpc, started, error)
        finally:
            current_call.reset(token)
        if isinstance(answer, CoroutineType):
            until = started + _time_to_work(headers, time_remaining)
            return self._finish(call, started, until, answer)
        self._end(call)
        _note(rpc, "OK", started)
        return answer

    async def _finish(
        self, call: Call, started: float, until: float, answer: Coroutine[Any, Any, T]
    ) -> T:
        token = current_call.set(call)
        before = deadline.set(until)
        waited_seconds.set(0.0)
        try:
            result = await answer
        except asyncio.CancelledError:
            _note(call.rpc, "CANCELLED", started + waited_seconds.get())
            raise
        except Exception as error:
            _fail(call.rpc, started + waited_seconds.get(), error)
        else:
            _note(call.rpc, "OK", started + waited_seconds.get())
            return result
        finally:
            self._end(call)
            deadline.reset(before)
            current_call.reset(token)

    async def run(
        self,
        rpc: str,
        headers: Mapping[str, str],
        handler: Callable[[Call], Coroutine[Any, Any, T]],
        *,
        internal_listener: bool = False,
        time_remaining: float | None = None,
    ) -> T:
        """As `serve`, for handlers that wait in any case."""
        served: Any = self.serve(
            rpc,
            headers,
            handler,
            internal_listener=internal_listener,
            time_remaining=time_remaining,
        )
        result: T = await served
        return result


def _time_to_work(headers: Mapping[str, str], time_remaining: float | None) -> float:
    """Seconds until the answer has to be on its way: as the caller and the gateway wait."""
    told = headers.get(H_TIMEOUT)
    wait = math.inf if told is None else float(told)
    return min(wait, math.inf if time_remaining is None else time_remaining) - RETURN_SECONDS


def _refuse(rpc: str, headers: Mapping[str, str], started: float, error: Exception) -> NoReturn:
    """Step 6 of a call that was not begun: the logs show its request id all the same."""
    token = current_call.set(Call(rpc, ANONYMOUS, headers.get(H_REQUEST_ID, "")))
    try:
        _fail(rpc, started, error)
    finally:
        current_call.reset(token)


def _fail(rpc: str, started: float, error: Exception) -> NoReturn:
    """Step 6 of a call that failed: raises what its caller is told."""
    told: DomainError | None
    if isinstance(error, DomainError):
        told = error
        if error.code is Code.INTERNAL:
            log.error("call failed", rpc=rpc)
    elif isinstance(error, NotImplementedError):
        told = unimplemented()
    elif (told := as_domain_error(error)) is None:
        log.error("call failed", rpc=rpc, exc_info=error)
        told = internal()
    _note(rpc, told.code.name, started)
    if told is error:
        raise error
    raise told from error


def _note(rpc: str, code: str, started: float) -> None:
    seconds = time.perf_counter() - started
    CALLS.note(rpc, code, seconds)
    rule = ACCESS.get(rpc) or NATIVE.get(rpc)
    if rule is not None and rule.writes and rule.audience in _LOGGED:
        log.info("call", rpc=rpc, code=code, ms=round(seconds * 1000, 1))
    elif logging.root.level <= logging.DEBUG:
        log.debug("call", rpc=rpc, code=code, ms=round(seconds * 1000, 1))


def _check_scope(rule: Rule, token: TokenOfCaller) -> None:
    """Refuses an API token that was not made for this."""
    if not rule.scope:
        raise permission_denied("TOKEN_MAY_NOT", "API tokens may not do this; log in")
    if token.scopes.isdisjoint({rule.scope, write_scope(rule.area)}):
        raise permission_denied("SCOPE_MISSING", f"the API token lacks the scope {rule.scope}")


def _service(rule: Rule, name: str) -> Caller:
    if name not in rule.callers:
        who = f"the service {name}" if name else "a caller without a name"
        raise permission_denied("NOT_ALLOWED", f"{who} may not do this")
    return Caller(CallerKind.SERVICE, id=name)


def _tenant(caller: Caller) -> str:
    """Who shares the places: tenants, or, on the internal listener, services."""
    return caller.tenant_id or caller.id


def _busy() -> DomainError:
    return exhausted("TOO_MANY_CALLS", "the service is busy; try again", retry_after=4)


def check_rules(request: Message) -> None:
    """Step 4: refuses a request whose fields break the rules of its proto.

    Raises:
        DomainError: INVALID_ARGUMENT with every broken field.
    """
    broken = violations(request)
    if broken:
        raise invalid(*broken)


def require_own_device(call: Call, device_id: Any) -> None:
    """Refuses a device that reports for another one.

    Args:
        call: the device's call.
        device_id: what its request says, of any type.

    Raises:
        DomainError: INVALID_ARGUMENT when it names no device; PERMISSION_DENIED when another one.
    """
    if device_id is None or device_id == "":
        raise invalid_field("device_id", "is required")
    if not isinstance(device_id, str) or not is_uuid(device_id):
        raise invalid_field("device_id", "must be a UUID")
    if device_id.lower() != call.caller.id:
        raise permission_denied("NOT_YOUR_DEVICE", "device_id: must be the token's own device")
