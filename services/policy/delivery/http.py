"""The released agent's policy call: JSON over HTTP, with a 304 when nothing changed."""

from __future__ import annotations

from collections.abc import Coroutine
from functools import lru_cache
from typing import Any

from servicekit.call import Call
from servicekit.errors import invalid_field
from servicekit.http.server import NOT_MODIFIED, Answer, Route, parse_text_object
from services.policy.delivery.domain import UNCHANGED, Decision
from services.policy.delivery.metrics import POLLS
from services.policy.delivery.service import Delivery

PATH = "/api/v1/devices/policy"
RPC = "/evergreen.v1.DeviceService/PullPolicy"
_MAX_VERSION_TEXT = 64
_SHORT = 128


def routes(delivery: Delivery) -> dict[str, Route]:
    """The device routes of this context."""

    def poll(call: Call, body: bytes) -> Answer | Coroutine[Any, Any, Answer]:
        version = _known(body) if len(body) <= _SHORT else current_version(body)
        decision = delivery.poll(call.caller, version)
        if decision is UNCHANGED:
            POLLS.note("not_modified")
            return NOT_MODIFIED
        return deliver(call, decision)

    async def deliver(call: Call, decision: Decision) -> Answer:
        delivered = await delivery.deliver(call.caller, decision)
        if delivered is None:
            POLLS.note("not_modified")
            return NOT_MODIFIED
        POLLS.note("delivered")
        return Answer(body=delivered.envelope(), compressible=delivered.compressible)

    return {PATH: Route(RPC, poll)}


def current_version(body: bytes) -> str:
    """Reads the agent's request; a version that is absent or null is none.

    Raises:
        DomainError: INVALID_ARGUMENT when the body is not such a request.
    """
    version = parse_text_object(body).get("current_version")
    if version is None:
        return ""
    if not isinstance(version, str):
        raise invalid_field("current_version", "must be a string")
    if len(version) > _MAX_VERSION_TEXT:
        raise invalid_field("current_version", f"must have at most {_MAX_VERSION_TEXT} characters")
    if "\0" in version:
        raise invalid_field("current_version", "must not contain the character NUL")
    return version


_known = lru_cache(maxsize=4096)(current_version)
"""The devices of an organisation send the same few bytes all day."""
