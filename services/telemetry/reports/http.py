"""The released agent's calls: JSON over HTTP."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, Final

from servicekit.call import Call
from servicekit.errors import DomainError, invalid_field
from servicekit.http.server import OK, Answer, Route, parse_json_object
from servicekit.rpc.chain import require_own_device
from services.telemetry.reports.events import Batch
from services.telemetry.reports.json_text import NotJsonError, members_of
from services.telemetry.reports.service import Reports
from services.telemetry.reports.state import parse_state, parse_state_time

STATE_PATH: Final = "/api/v1/devices/state"
EVENTS_PATH: Final = "/api/v1/devices/events"
_TIME: Final = re.compile(rb'"timestamp":"([^"\\]{20,40})"').search
_LARGE_STATE: Final = 256 << 10
"""Bytes of a body for which there may be no room."""
_READ_TWICE: Final = 128 << 10
"""Bytes of a body up to which it is read once more, value by value."""
_FRONT: Final = 128
"""The agent writes the time within so many bytes."""


def routes(reports: Reports) -> dict[str, Route]:
    """The device routes of this context."""

    async def report_state(call: Call, body: bytes) -> Answer:
        reports.states.require_room(call.caller.tenant_id)
        reports.require_place(call, len(body), partial(_time_of_state, body))
        request = _parse_state(body)
        require_own_device(call, request.get("device_id"))
        state = request.get("state")
        if state is None:
            raise invalid_field("state", "is required")
        if not isinstance(state, dict):
            raise invalid_field("state", "must be an object")
        await reports.report_state(call, len(body), parse_state(state))
        return OK

    async def report_events(call: Call, body: bytes) -> Answer:
        size = len(body)
        batch = Batch(body, partial(require_own_device, call))
        outcome = await reports.report_events(call, size, batch.read(), batch.check())
        return Answer(
            body=b'{"accepted":%d,"duplicates":%d,"quarantined":%d}'
            % (outcome.accepted, outcome.duplicates, outcome.quarantined)
        )

    return {
        STATE_PATH: Route(
            "/evergreen.v1.DeviceService/ReportState",
            report_state,
            room=reports.room_for_body,
            room_from=_LARGE_STATE,
        ),
        EVENTS_PATH: Route(
            "/evergreen.v1.DeviceService/ReportEvents", report_events, room=reports.room_for_events
        ),
    }


def _parse_state(body: bytes) -> dict[str, Any]:
    """The body as an object, also where a value in it is beyond what Python reads.

    Raises:
        DomainError: INVALID_ARGUMENT when it is not one.
    """
    try:
        return parse_json_object(body)
    except DomainError:
        if len(body) <= _READ_TWICE:
            with suppress(NotJsonError):
                return members_of(body, "state")
        raise


def _time_of_state(body: bytes) -> datetime | None:
    """Of when a state is, at a glance; `None` when it is not to be seen."""
    found = _TIME(body, 0, _FRONT)
    return None if found is None else parse_state_time(found[1].decode("latin-1"))
