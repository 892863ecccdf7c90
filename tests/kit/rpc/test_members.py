"""What callers are told of names that no field has."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message

from evergreen.v1 import device_pb2, identity_pb2, policy_pb2
from servicekit.rpc.members import unknown_members

USER = identity_pb2.CreateUserRequest()
POLICIES = policy_pb2.ListPoliciesRequest()
EVENTS = device_pb2.ReportEventsRequest()


@pytest.mark.parametrize(
    ("sent", "header", "message"),
    [
        (USER, "b:orgid", 'orgid: no such field; did you mean "orgId"?'),
        (USER, "b:organizationId", 'organizationId: no such field; did you mean "orgId"?'),
        (USER, "b:pasword", 'pasword: no such field; did you mean "password"?'),
        (POLICIES, "q:tenantId", 'tenantId: no such query parameter; did you mean "orgId"?'),
        (POLICIES, "q:limit", 'limit: no such query parameter; did you mean "pageSize"?'),
        (
            POLICIES,
            "q:filter",
            "filter: no such query parameter; known are orgId, pageSize, pageToken",
        ),
        (
            identity_pb2.LogoutRequest(),
            "b:all",
            "all: no such field; there are none here",
        ),
        (
            EVENTS,
            "b:events[12].timestmp",
            'events[12].timestmp: no such field; did you mean "events[12].timestamp"?',
        ),
        (USER, "b:%C3%A4%2C", "\u00e4,: no such field; known are "),
        (USER, "b:%FF", "\ufffd: no such field; known are "),
        (USER, "tb:signed", "signed: must be true or false"),
        (USER, "tl:items[3].groups", "items[3].groups: must be a list"),
        (USER, "invalid", "body: must be JSON as RFC 8259 has it"),
        (USER, "unread", "request: could not be read; write the address as documented"),
    ],
)
def test_the_nearest_name_is_told(sent: Message, header: str, message: str) -> None:
    """Or, when none is near, all that there are."""
    error = unknown_members(header, sent)
    assert error.message.startswith(message)
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")


def test_each_name_is_a_violation() -> None:
    """All are named, one that comes twice once."""
    error = unknown_members("q:filter,b:a,b:b,b:a", POLICIES)
    assert [v.field for v in error.violations] == ["filter", "a", "b"]
    assert error.message.endswith(" (and 2 more)")
