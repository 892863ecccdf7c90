"""Bodies of device calls: whatever is sent, it is taken or refused as the caller's mistake."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import example, given
from hypothesis import strategies as st

from evergreen.v1 import device_pb2
from servicekit.errors import Code, DomainError, error_body
from servicekit.http.server import parse_json_object, parse_message, parse_text_object
from services.policy.delivery.http import current_version

MESSAGES = (
    device_pb2.EnrollDeviceRequest,
    device_pb2.AttestBootRequest,
    device_pb2.PullPolicyRequest,
    device_pb2.ReportStateRequest,
    device_pb2.ReportEventsRequest,
)
NAMES = sorted({field.name for message in MESSAGES for field in message.DESCRIPTOR.fields})

# With halves of surrogate pairs, which JSON can write and UTF-8 cannot.
texts = st.text(st.characters(exclude_categories=()), max_size=20) | st.sampled_from(
    ["\ud800", "a\udfffb", "\0", "2026-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "AAAA", "1e400"]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**63 - 2, max_value=2**64 + 2)
    | st.integers(min_value=-(10**400), max_value=10**400)
    | st.floats()
    | texts
)
keys = st.sampled_from([*NAMES, "nonce", "quotes", "pcrs", "payload", "timestamp"]) | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
written = st.dictionaries(keys, values, max_size=6).map(json.dumps).map(str.encode)
"""JSON objects, with NaN and infinities as Python writes them."""
bodies = (
    written
    | st.binary(max_size=40)
    | st.tuples(written, st.integers(0, 200), st.binary(min_size=1, max_size=3)).map(
        lambda cut: cut[0][: cut[1]] + cut[2] + cut[0][cut[1] :]
    )
)
DEEP = 100_000


@pytest.mark.parametrize("message", MESSAGES)
@given(body=bodies)
@example(body=b'{"\\ud800": 1}')
@example(body=b'{"evidence": {"pcrs": {"\\udfff": "00"}}}')
@example(body=b'{"serial": "\xed\xa0\x80"}')
@example(body=b'{"serial": "\xff"}')
@example(body=b"\xef\xbb\xbf{}")
@example(body=b"\xff\xfe{\0}\0")
@example(body=b'{"serial": "a", "serial": "b"}')
@example(body=b'{"serial": "a", "device_id": "b", "deviceId": "c"}')
@example(body=b'{"cpu_count": NaN, "total_ram_bytes": -Infinity}')
@example(body=b'{"total_ram_bytes": 1e999999, "cpu_count": %s}' % (b"9" * 5_000))
@example(body=b'{"x": %s}' % (b"[" * DEEP + b"]" * DEEP))
@example(body=b'{"events": %s' % (b'[{"payload":' * 400))
@example(body=b"[" * DEEP)
@example(body=b"")
def test_a_body_fills_a_message_or_is_refused(message: type[Message], body: bytes) -> None:
    """Nothing but INVALID_ARGUMENT comes out, in words that can be sent."""
    filled = message()
    try:
        parse_message(body, filled)
    except DomainError as error:
        assert error.code is Code.INVALID_ARGUMENT
        error_body(error, "").encode()
        error.message.encode()
    else:
        filled.SerializeToString()


@given(body=bodies)
@example(body=b'{"current_version": "\\ud800"}')
@example(body=b'{"current_version": "\\u0000"}')
def test_a_poll_names_a_version_or_is_refused(body: bytes) -> None:
    """A version is text that can be stored."""
    try:
        version = current_version(body)
    except DomainError as error:
        assert error.code is Code.INVALID_ARGUMENT
    else:
        version.encode()
        assert "\0" not in version


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"\ud800": 1}, "body"),
        ({"a": "\udfff"}, "a"),
        ({"a": {"b": [0, {"\ud800": 1}]}}, "a.b[1]"),
        ({"a": {"b": [0, "x\ud800y"]}}, "a.b[1]"),
    ],
)
def test_half_of_a_surrogate_pair_is_refused_by_its_place(value: Any, field: str) -> None:
    """The message says where it is; a whole pair is an ordinary character."""
    with pytest.raises(DomainError, match="half of a surrogate pair") as caught:
        parse_text_object(json.dumps(value).encode())
    assert caught.value.violations[0].field == field
    whole = {"\U0001f600": ["\U0001f600"]}
    assert parse_text_object(json.dumps(whole).encode()) == whole
    assert parse_json_object(json.dumps(value).encode()) == value
