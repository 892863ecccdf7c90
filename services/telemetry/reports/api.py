"""The gRPC side for devices: the two methods of evergreen.v1.DeviceService of this context."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from evergreen.v1 import device_pb2
from servicekit.errors import invalid_field
from servicekit.rpc.chain import require_own_device
from servicekit.rpc.server import Context, checks_own_rules
from servicekit.rpc.values import from_value, time_of
from servicekit.times import format_rfc3339
from services.telemetry.reports.events import (
    BYTES_OF_A_SLICE,
    MAX_EVENTS,
    MAX_PAYLOAD,
    SLICE,
    BrokenRuleError,
    ReadEvent,
    check_payload_text,
    make_event,
    quarantine,
)
from services.telemetry.reports.service import Reports
from services.telemetry.reports.state import MAX_APPS, State, make_state

_FIELDS: Final = [f for f in device_pb2.DeviceState.DESCRIPTOR.fields if f.name != "timestamp"]
_BYTES_PER_BYTE_OF_JSON: Final = 16
"""More bytes a value never takes as protobuf, for each byte of its JSON: a list of digits eight."""


class DeviceApi:
    """What devices report, in gRPC."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports

    @checks_own_rules
    async def report_state(
        self, request: device_pb2.ReportStateRequest, context: Context
    ) -> device_pb2.ReportStateResponse:
        """Replaces the latest known state; what breaks a rule in it is sanitised."""
        require_own_device(context.call, request.device_id)
        if not request.HasField("state"):
            raise invalid_field("state", "is required")
        size, state = request.ByteSize(), _state(request.state)
        await self._reports.report_state(context.call, size, state)
        return device_pb2.ReportStateResponse()

    @checks_own_rules
    async def report_events(
        self, request: device_pb2.ReportEventsRequest, context: Context
    ) -> device_pb2.ReportEventsResponse:
        """Stores a batch of events; one that breaks a rule does not fail the others."""
        require_own_device(context.call, request.device_id)
        if len(request.events) > MAX_EVENTS:
            raise invalid_field("events", f"must have at most {MAX_EVENTS} items")
        call, size = context.call, request.ByteSize()
        with self._reports.room_for_events(call.caller, size):
            outcome = await self._reports.report_events(call, size, _read_batch(request.events))
        return device_pb2.ReportEventsResponse(
            accepted=outcome.accepted,
            duplicates=outcome.duplicates,
            quarantined=outcome.quarantined,
        )


def _state(state: device_pb2.DeviceState) -> State:
    try:
        observed_at = _time(state)
    except BrokenRuleError:
        observed_at = None
    return make_state(observed_at, {field.name: _value(state, field) for field in _FIELDS})


def _value(message: Message, field: FieldDescriptor) -> Any:
    """A field as the agent's JSON has it, which has the same names."""
    value = getattr(message, field.name)
    if field.message_type is None:
        return value
    if field.message_type is Timestamp.DESCRIPTOR:
        return _text_of_time(value) if message.HasField(field.name) else None
    fields = field.message_type.fields
    # One more than are kept, so that the rest is told of as cut.
    return [{f.name: _value(item, f) for f in fields} for item in value[: MAX_APPS + 1]]


def _text_of_time(stamp: Timestamp) -> str:
    try:
        return format_rfc3339(time_of(stamp))
    except ValueError:
        return ""  # which is no time, and is sanitised


def _read_batch(events: Any) -> Iterator[list[ReadEvent]]:
    read: list[ReadEvent] = []
    size = 0
    for event in events:
        read.append(_read(event))
        size += event.ByteSize()
        if len(read) == SLICE or size > BYTES_OF_A_SLICE:
            yield read
            read, size = [], 0
    yield read


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
        return quarantine(sent, str(broken), None if _is_large(event) else _shown(event))


def _is_large(event: device_pb2.DeviceEvent) -> bool:
    """Whether the payload is too large whatever it holds.

    Of a small one the JSON text decides. To make that of millions of values would take seconds.
    """
    return event.payload.ByteSize() > _BYTES_PER_BYTE_OF_JSON * MAX_PAYLOAD


def _payload(event: device_pb2.DeviceEvent) -> tuple[str | None, Any]:
    if not event.HasField("payload"):
        return None, None
    if _is_large(event):
        raise BrokenRuleError(f"payload: must have at most {MAX_PAYLOAD} bytes")
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
        return time_of(said.timestamp)
    except ValueError as broken:
        raise BrokenRuleError(f"timestamp: {broken}") from broken


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
