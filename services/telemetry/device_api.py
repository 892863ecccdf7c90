"""The gRPC side for devices: the two methods of evergreen.v1.DeviceService of this context."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from evergreen.v1 import device_pb2
from servicekit.errors import invalid_field
from servicekit.grpc_server import Context, checks_own_rules
from servicekit.values import from_value
from services.telemetry.domain.events import (
    MAX_EVENTS,
    MAX_PAYLOAD,
    SLICE,
    BrokenRuleError,
    ReadEvent,
    check_payload_text,
    make_event,
    set_aside,
)
from services.telemetry.domain.state import State, make_state, usable_time
from services.telemetry.http import check_device
from services.telemetry.service.reports import Reports


class DeviceApi:
    """What devices report, in gRPC."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports

    @checks_own_rules
    async def report_state(
        self, request: device_pb2.ReportStateRequest, context: Context
    ) -> device_pb2.ReportStateResponse:
        """Replaces the latest known state; what breaks a rule in it is mended."""
        check_device(context.call, request.device_id)
        if not request.HasField("state"):
            raise invalid_field("state", "is required")
        size, state = request.ByteSize(), _state(request.state)
        await self._reports.report_state(context.call.caller, size, state)
        return device_pb2.ReportStateResponse()

    @checks_own_rules
    async def report_events(
        self, request: device_pb2.ReportEventsRequest, context: Context
    ) -> device_pb2.ReportEventsResponse:
        """Stores a batch of events; one that breaks a rule does not fail the others."""
        check_device(context.call, request.device_id)
        if len(request.events) > MAX_EVENTS:
            raise invalid_field("events", f"must have at most {MAX_EVENTS} items")
        caller, size = context.call.caller, request.ByteSize()
        with self._reports.room_for_events(caller, size):
            outcome = await self._reports.report_events(caller, size, _read_batch(request.events))
        return device_pb2.ReportEventsResponse(
            accepted=outcome.accepted,
            duplicates=outcome.duplicates,
            quarantined=outcome.quarantined,
        )


def _state(state: device_pb2.DeviceState) -> State:
    try:
        observed_at = usable_time(_time(state))
    except BrokenRuleError:
        observed_at = None
    return make_state(
        observed_at,
        {
            "installed_apps": [
                {"id": app.id, "version": app.version, "branch": app.branch}
                for app in state.installed_apps
            ],
            "update_status": state.update_status,
            "disk_total_bytes": state.disk_total_bytes,
            "disk_free_bytes": state.disk_free_bytes,
            "battery_percent": state.battery_percent,
            "last_error": state.last_error,
        },
    )


def _read_batch(events: Any) -> Iterator[list[ReadEvent]]:
    for begin in range(0, len(events), SLICE):
        yield [_read(event) for event in events[begin : begin + SLICE]]


def _read(event: device_pb2.DeviceEvent) -> ReadEvent:
    try:
        payload, value = _payload(event)
        return make_event(
            event_id=event.id,
            type_=event.type,
            occurred_at=_time(event),
            payload=payload,
            value=value,
        )
    except BrokenRuleError as broken:
        sent = event.SerializeToString(deterministic=True)
        return set_aside(sent, str(broken), _shown(event))


def _payload(event: device_pb2.DeviceEvent) -> tuple[str | None, Any]:
    if not event.HasField("payload"):
        return None, None
    value = from_value(event.payload)
    try:
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except ValueError as broken:
        raise BrokenRuleError("payload: must hold only numbers that JSON has") from broken
    if len(text.encode()) > MAX_PAYLOAD:
        raise BrokenRuleError(f"payload: must have at most {MAX_PAYLOAD} bytes")
    if "\\u0000" in text:
        check_payload_text(value)
    return text, value


def _time(said: device_pb2.DeviceEvent | device_pb2.DeviceState) -> datetime:
    if not said.HasField("timestamp"):
        raise BrokenRuleError("timestamp: is required")
    try:
        if not 0 <= said.timestamp.nanos < 1_000_000_000:
            raise ValueError(said.timestamp.nanos)
        return said.timestamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as broken:
        raise BrokenRuleError("timestamp: must be a time in the years 1 to 9999") from broken


def _shown(event: device_pb2.DeviceEvent) -> str:
    """The event for people, in the shape of the agent's JSON."""
    return json.dumps(
        {
            "id": event.id,
            "type": event.type,
            "timestamp": f"{event.timestamp.seconds}.{event.timestamp.nanos:09d}",
            "payload": from_value(event.payload) if event.HasField("payload") else None,
        },
        ensure_ascii=False,
    )
