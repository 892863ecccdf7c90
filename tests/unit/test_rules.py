"""Requests against the rules of their protos."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from evergreen.v1 import device_pb2, enrollment_pb2, identity_pb2, policy_pb2
from servicekit.rules import is_uuid, violations

ID = "0192e4a0-0000-7000-8000-000000000000"


def broken(message: Message) -> list[tuple[str, str]]:
    return [(v.field, v.rule) for v in violations(message)]


@pytest.mark.parametrize(
    ("message", "field", "rule"),
    [
        (identity_pb2.GetUserRequest(), "id", "is required"),
        (identity_pb2.GetUserRequest(id="x"), "id", "must be a UUID"),
        (identity_pb2.ListUsersRequest(page_size=-1), "pageSize", "must be at least 0"),
        (identity_pb2.ListUsersRequest(page_size=501), "pageSize", "must be at most 500"),
        (
            identity_pb2.ListUsersRequest(page_token="a" * 1025),
            "pageToken",
            "must have at most 1024 characters",
        ),
        (
            identity_pb2.CreateTenantRequest(name="N", code="-a"),
            "code",
            "must match ([a-z0-9]([a-z0-9-]*[a-z0-9])?)?",
        ),
        (
            identity_pb2.UpdateTenantRequest(id=ID, name=""),
            "name",
            "must have at least 1 characters",
        ),
        (
            enrollment_pb2.CreateEnrollmentTokenRequest(org_id=ID, name="n", serials=["x" * 129]),
            "serials[0]",
            "must have at most 128 characters",
        ),
        (policy_pb2.CreatePolicyRequest(name="n", org_id=ID), "bundle", "is required"),
        (
            device_pb2.EnrollDeviceRequest(
                serial="s", pre_shared_key="a:b", model="nul\x00", cpu_count=-1
            ),
            "model",
            "must not contain the character NUL",
        ),
    ],
)
def test_a_broken_rule_names_its_field(message: Message, field: str, rule: str) -> None:
    """The field as JSON names it, and the rule in words."""
    assert broken(message)[0] == (field, rule)


def test_all_broken_fields_are_named() -> None:
    """Not only the first one."""
    fields = [f for f, _ in broken(device_pb2.EnrollDeviceRequest(cpu_count=-1))]
    assert fields == ["serial", "cpuCount", "preSharedKey"]


def test_nested_messages_and_times_are_checked() -> None:
    """A path leads to the field; a time outside 1970 to 9999 is none."""
    request = device_pb2.ReportEventsRequest(device_id=ID)
    event = request.events.add(id="1", type="t")
    event.timestamp.seconds = -1
    assert broken(request) == [("events[0].timestamp", "must be a time from 1970 to 9999")]
    del request.events[:]
    request.events.add(id="1")
    assert ("events[0].type", "is required") in broken(request)


def test_what_is_sound_passes() -> None:
    """No rule is broken by an ordinary request."""
    assert broken(identity_pb2.CreateUserRequest(email="a@b.example", role="Admin")) == []
    assert broken(identity_pb2.CreateUserRequest(email="a@localhost", role="Owner")) == []


@given(st.text(max_size=60))
def test_uuid_check_never_raises_and_takes_only_the_long_form(text: str) -> None:
    """Braces, `urn:` and missing hyphens are refused."""
    assert is_uuid(text) is False or len(text) == 36
    assert not is_uuid(ID.replace("-", ""))
    assert is_uuid(ID)
