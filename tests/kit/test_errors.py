"""The one shape of errors."""

from __future__ import annotations

import json

from google.rpc import error_details_pb2, status_pb2

from servicekit.errors import (
    FieldViolation,
    error_body,
    exhausted,
    internal,
    invalid,
    not_found,
    retry_after_header,
)
from servicekit.rpc.server import rich_status


def test_the_body_has_every_member() -> None:
    """code, status, message, error (the same), details, requestId; in ASCII."""
    body = error_body(not_found("Gerät", "ü"), "r-1")
    assert body.isascii()
    assert json.loads(body) == {
        "code": 5,
        "status": "NOT_FOUND",
        "message": "no such Gerät",
        "error": "no such Gerät",
        "details": [
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "NOT_FOUND",
                "domain": "evergreen",
                "metadata": {"kind": "Gerät", "id": "ü"},
            }
        ],
        "requestId": "r-1",
    }


def test_many_violations_are_counted_but_not_all_listed() -> None:
    """An error stays small enough for a header."""
    error = invalid(*(FieldViolation(f"field{n}" * 200, "rule " * 500) for n in range(100)))
    body = error_body(error, "r")
    assert len(body) < 16_000
    assert "(and 99 more)" in error.message or error.message.endswith("…")


def test_a_delay_is_given_to_people_and_programs() -> None:
    """Retry-After in whole seconds, RetryInfo exactly; jittered, so that nobody marches in step."""
    delays = {exhausted("FULL", "full", retry_after=10).retry_after for _ in range(20)}
    assert len(delays) > 1
    assert all(d is not None and 5 <= d <= 15 for d in delays)
    error = exhausted("FULL", "full", retry_after=0.1)
    assert retry_after_header(error) == "1"
    assert retry_after_header(internal()) is None


def test_native_grpc_gets_rich_details() -> None:
    """google.rpc.Status with ErrorInfo, BadRequest and RetryInfo."""
    status = status_pb2.Status.FromString(rich_status(invalid(FieldViolation("name", "is bad"))))
    assert status.code == 3
    bad = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(bad)
    assert (bad.field_violations[0].field, bad.field_violations[0].description) == (
        "name",
        "is bad",
    )
