"""Times that nobody could carry, through the gateway: what a device sends, what people ask for."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest

from tests.e2e.world import Org, assert_error, ok
from tests.support.stack import Stack

BAD_TIMES = [
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:01Z",
    "9999-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59-23:59",
    "1960-02-29T00:00:00Z",
]


def test_a_device_without_a_clock_hurts_nobody(stack: Stack, org: Org) -> None:
    """Its events are in quarantine; lists and files of all organisations are whole."""
    device = org.device()
    good = {"id": str(uuid4()), "type": "boot", "timestamp": "2026-11-24T06:00:00Z", "payload": {}}
    bad = [{**good, "id": str(uuid4()), "timestamp": time} for time in BAD_TIMES]
    with stack.client(device.device_token) as client:
        answer = client.post(
            "/api/v1/devices/events",
            json={"device_id": device.device_id, "events": [*bad, good]},
        )
    assert ok(answer) == {"accepted": 1, "duplicates": 0, "quarantined": len(bad)}
    for client in (org.owner, org.root):
        file = client.get("/api/events/export", params={"format": "csv"})
        assert file.status_code == 200
        assert file.text.endswith("\r\n")
        file = client.get("/api/events/export", params={"format": "json"})
        assert file.status_code == 200
        json.loads(file.text)
    assert [e["id"] for e in ok(org.owner.get("/api/events"))["events"]]
    quarantined = ok(org.owner.get("/api/events/quarantine"))["quarantinedEvents"]
    assert {e["reason"] for e in quarantined} == {"timestamp: must be a time from 1970 to 9999"}


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"])
def test_a_time_out_of_range_is_refused_by_name(org: Org, time: str) -> None:
    """In filters and in what is stored; nothing is changed."""
    for path, field in (
        ("/api/events", "occurredAfter"),
        ("/api/events", "occurredBefore"),
        ("/api/events/export", "occurredAfter"),
        ("/api/devices", "lastSeenAfter"),
        ("/api/devices", "lastSeenBefore"),
        ("/api/devices/export", "lastSeenBefore"),
        ("/api/audit", "occurredAfter"),
        ("/api/audit/export", "occurredBefore"),
    ):
        body = assert_error(org.owner.get(path, params={field: time}), 400)
        assert f"{field}: must be a time from 1970 to 9999" in body["message"]
    for path in ("/api/enrollment-tokens", "/api/event-credentials"):
        answer = org.owner.post(path, json={"orgId": org.id, "name": "T", "expiresAt": time})
        assert "expiresAt: must be a time from 1970 to 9999" in assert_error(answer, 400)["message"]
