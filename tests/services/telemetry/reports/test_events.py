"""Events of devices: stored once and whole, or quarantined, whatever they hold."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections import Counter
from datetime import UTC, datetime
from random import Random
from uuid import uuid4

import grpc
import pytest
from google.protobuf import struct_pb2

from evergreen.v1 import device_pb2
from servicekit.rpc.values import from_value, to_value
from services.telemetry.events.store import CONTENT_LISTED
from services.telemetry.reports.events import MAX_CONTENT, MAX_EVENTS
from services.telemetry.storage.service import QUARANTINE_PER_DEVICE
from tests.support.refusals import fields_of
from tests.support.telemetry import ORG, World, event, world

__all__ = ["world"]


async def test_a_batch_is_stored_and_counted(world: World) -> None:
    """New events, repeated ones (in the same body too) and bad ones, each in one count."""
    device = world.device()
    first = await device.events([event(1), event(2), event(1), {"id": "3"}, 7])
    assert first.status_code == 200
    assert first.json() == {"accepted": 2, "duplicates": 1, "quarantined": 2}
    second = await device.events([event(1), event(2), event(3), {"id": "3"}, 7])
    assert second.json() == {"accepted": 1, "duplicates": 2, "quarantined": 2}
    rows = await world.rows(
        "SELECT event_id, tenant_id, type, severity, message, payload::text, occurred_at"
        " FROM telemetry.event ORDER BY event_id"
    )
    assert [row["event_id"] for row in rows] == ["1", "2", "3"]
    assert dict(rows[0]) == {
        "event_id": "1",
        "tenant_id": ORG.id,
        "type": "app.installed",
        "severity": "info",
        "message": "app.installed",
        "payload": '{"n": 1}',
        "occurred_at": datetime(2026, 11, 24, 6, 0, 0, 123456, tzinfo=UTC),
    }
    assert await world.count("quarantined_event") == 2


async def test_the_same_id_of_another_device_is_another_event(world: World) -> None:
    """Ids are unique per device only."""
    one, two = world.device(), world.device()
    answers = await asyncio.gather(one.events([event(1)]), two.events([event(1)]))
    assert [answer.json()["accepted"] for answer in answers] == [1, 1]
    assert await world.count() == 2


async def test_a_batch_that_is_sent_a_hundred_times_by_sixteen_clients_is_stored_once(
    world: World,
) -> None:
    """Exactly once, and every event is told to be new exactly once."""
    device = world.device()
    batch = [event(n) for n in range(50)]
    left = iter(range(100))
    answers = []

    async def client() -> None:
        for _ in left:
            answers.append(await device.events(batch))

    await asyncio.gather(*(client() for _ in range(16)))
    assert [answer.status_code for answer in answers] == [200] * 100
    assert sum(answer.json()["accepted"] for answer in answers) == 50
    assert sum(answer.json()["duplicates"] for answer in answers) == 99 * 50
    assert await world.count() == 50


async def test_fifty_thousand_events_in_one_body(world: World) -> None:
    """What an agent queued while it was offline; meanwhile other devices are served."""
    device, other = world.device(), world.device()
    batch = [event(n, payload={"app": "org.gnome.Maps", "n": n}) for n in range(50_000)]
    body = json.dumps({"device_id": str(device.id), "events": batch}).encode()
    served = []

    async def meanwhile() -> None:
        for n in range(1000):
            assert (await other.events([event(n)])).status_code == 200
            served.append(n)
            await asyncio.sleep(0.05)

    others = asyncio.create_task(meanwhile())
    answer = await device.post("events", body)
    others.cancel()
    assert answer.json() == {"accepted": 50_000, "duplicates": 0, "quarantined": 0}
    assert len(served) > 3
    rows = await world.rows(
        "SELECT count(*) AS n FROM telemetry.event WHERE device_id = $1", device.id
    )
    assert rows[0]["n"] == 50_000
    again = await device.post("events", body)
    assert again.json() == {"accepted": 0, "duplicates": 50_000, "quarantined": 0}


async def test_quarantine_holds_each_bad_event_once_and_a_bounded_number(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that sends the same nonsense again and again does not fill the disk."""
    assert QUARANTINE_PER_DEVICE >= MAX_EVENTS
    bound = 1_000
    monkeypatch.setattr("services.telemetry.storage.service.QUARANTINE_PER_DEVICE", bound)
    device = world.device()
    bad = [{"id": str(n)} for n in range(bound + 300)]
    assert (await device.events(bad)).json()["quarantined"] == len(bad)
    assert await world.count("quarantined_event") == bound
    few = bad[-5:]
    for _ in range(3):
        assert (await device.events(few)).json()["quarantined"] == 5
    assert await world.count("quarantined_event") == bound
    page = await world.admin.quarantined(page_size=1)
    assert page.quarantined_events[0].reason == "timestamp: is required"
    assert json.loads(page.quarantined_events[0].content) == bad[-1]


async def test_of_a_large_body_that_is_no_json_nothing_is_stored(world: World) -> None:
    """It is looked through before its events are stored, as they are read."""
    device = world.device()
    events = [event(n, payload="x" * 1000) for n in range(2_000)]
    body = json.dumps({"device_id": str(device.id), "events": events}).encode()
    answer = await device.post("events", body[:-1] + b"x")
    assert (answer.status_code, fields_of(answer.json())) == (400, ["body"])
    assert await world.count() == 0
    other = json.dumps({"events": events, "device_id": str(uuid4())}).encode()
    assert (await device.post("events", other)).status_code == 403
    assert await world.count() == 0
    answer = await device.post("events", body)
    assert answer.json() == {"accepted": 2000, "duplicates": 0, "quarantined": 0}


async def test_what_is_too_large_for_a_list_is_kept_whole(world: World) -> None:
    """It was acknowledged, so it must be there: in quarantine, and whole in its export."""
    device = world.device()
    texts = {"2": "\u00e9\U0001f600" * 20_000, "3": "x" * 3_000_000, "4": "y" * MAX_CONTENT}
    large = [event(n, payload={"n": [[text]] * 2}) for n, text in texts.items()]
    answer = await device.events([event(1), *large, event(5)])
    assert answer.json() == {"accepted": 2, "duplicates": 0, "quarantined": 3}
    rest = (await device.events(large)).json()
    assert rest == {"accepted": 0, "duplicates": 0, "quarantined": 3}
    listed = (await world.admin.quarantined()).quarantined_events
    assert len(listed) == 3
    for found, sent in zip(reversed(listed), large, strict=True):
        text = json.dumps(sent)
        content = await world.admin.quarantined_content(found.id)
        assert found.content_bytes == len(content.encode()) == min(len(text), MAX_CONTENT)
        assert text.startswith(content)
        assert content.startswith(found.content)
        assert len(found.content) == CONTENT_LISTED
        assert found.reason.startswith("payload: must have at most 65536 bytes")
        cut = f" (of {len(text)} bytes the first {MAX_CONTENT} are kept)"
        assert found.reason.endswith(cut) is (len(text) > MAX_CONTENT)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.admin.quarantined_content(str(device.id))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


NO_BATCHES = [
    (b"nonsense", "body"),
    (b"[]", "body"),
    (b'{"events":[]}', "device_id"),
    (b'{"device_id":5,"events":[]}', "device_id"),
    (b'{"device_id":"x","events":[]}', "device_id"),
]


async def test_a_body_without_a_batch_is_refused(world: World) -> None:
    """As a whole, with the field."""
    for body, field in NO_BATCHES:
        answer = await world.device().post("events", body)
        assert (answer.status_code, fields_of(answer.json())) == (400, [field])


async def test_no_events_are_accepted(world: World) -> None:
    """A list that is null, or empty."""
    device = world.device()
    for events in (None, []):
        answer = await device.post("events", {"device_id": str(device.id), "events": events})
        assert answer.json() == {"accepted": 0, "duplicates": 0, "quarantined": 0}
    missing = await device.post("events", {"device_id": str(device.id)})
    assert (missing.status_code, fields_of(missing.json())) == (400, ["events"])


async def test_huge_payloads_in_grpc_are_quarantined_unread(world: World) -> None:
    """To make JSON of millions of values would take seconds, in which nobody else is served."""
    device = world.device()
    number_value = b"\x0a\x09\x11" + struct.pack("<d", 1.5)
    small = struct_pb2.Value()
    small.list_value.MergeFromString(number_value * 500_000)

    async def is_unread(name: str) -> bool:
        """Whether the service, which runs in this process, took less than JSON of it takes."""
        request = device_pb2.ReportEventsRequest(device_id=str(device.id))
        for number in range(2):
            item = request.events.add(id=f"{name}{number}", type="t")
            item.timestamp.GetCurrentTime()
            item.payload.list_value.MergeFromString(number_value * 1_000_000)
        begun = time.process_time()
        from_value(small)
        made = 4 * (time.process_time() - begun)
        begun = time.process_time()
        device_pb2.ReportEventsRequest.FromString(request.SerializeToString())
        sent = time.process_time() - begun
        begun = time.process_time()
        answer = await device.grpc.ReportEvents(request, metadata=device.metadata, timeout=120)
        assert (answer.accepted, answer.quarantined) == (0, 2)
        return time.process_time() - begun < sent + made

    # What else runs on the machine makes the same work dearer for a while.
    assert await is_unread("a") or await is_unread("b") or await is_unread("c")
    listed = (await world.admin.quarantined()).quarantined_events
    assert {e.reason.partition(" (")[0] for e in listed} == {
        "payload: must have at most 65536 bytes"
    }


async def test_events_in_grpc(world: World) -> None:
    """The same rules and counts; a bad event does not fail the batch there either."""
    device = world.device()
    request = device_pb2.ReportEventsRequest(device_id=str(device.id))
    for number in (1, 2, 2):
        item = request.events.add(id=str(number), type="update.failed")
        item.timestamp.FromDatetime(datetime(2026, 11, 24, 6, tzinfo=UTC))
        to_value({"n": number, "message": "no"}, item.payload)
    request.events.add(id="4", type="x")
    request.events.add(id="", type="x").timestamp.FromSeconds(1)
    request.events.add(id="5", type="x\0").timestamp.FromSeconds(1)
    request.events.add(id="6", type="x").timestamp.seconds = 1 << 50
    item = request.events.add(id="7", type="x")
    item.timestamp.FromSeconds(1)
    item.payload.number_value = float("nan")
    item = request.events.add(id="8", type="x")
    item.timestamp.FromSeconds(1)
    item.payload.string_value = "\0"
    answer = await device.grpc.ReportEvents(request, metadata=device.metadata)
    assert (answer.accepted, answer.duplicates, answer.quarantined) == (2, 1, 6)
    # The same event over HTTP is the same event.
    same = event(1, type="update.failed", payload={"n": 1, "message": "no"})
    assert (await device.events([same, event(9)])).json()["duplicates"] == 1
    rows = await world.rows("SELECT * FROM telemetry.event WHERE event_id = '1'")
    assert (rows[0]["severity"], rows[0]["message"]) == ("error", "no")
    assert json.loads(rows[0]["payload"]) == {"n": 1, "message": "no"}
    found = await world.admin.quarantined()
    assert {q.reason.partition(":")[0] for q in found.quarantined_events} == {
        "timestamp",
        "id",
        "type",
        "payload",
    }


NOISE = [
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"\x7f",
    b"\\u0000",
    b"\\ud800",
    b"\\",
    b'"',
    b'"\\u0000"',
    b"[" * 600,
    b"]" * 600,
    b"[" * 1200,
    b"{",
    b"}",
    b",",
    b":",
    b"1" * 5000,
    b"1e999",
    b"-0",
    b"NaN",
    b"null",
    b"\xf4\x90\x80\x80",
    b"\xef\xbf\xbf",
    b" ",
    b"\t",
    b"id",
    b'"id":',
]


async def test_whatever_bytes_come_nothing_fails(world: World) -> None:
    """The database takes every event that was read, and every one that was quarantined."""
    device = world.device()
    # Outside of any text, in what is too deep for every reader: nobody looks there.
    abyss = b"[" * 5000 + b"\0" + b"]" * 5000
    events = [b'{"id":"nul","payload":' + abyss + b"}", json.dumps(event(1)).encode()]
    head = b'{"device_id":"' + str(device.id).encode() + b'","events":['
    answer = await device.post("events", head + b",".join(events) + b"]}")
    assert answer.json() == {"accepted": 1, "duplicates": 0, "quarantined": 1}
    assert await world.rows("SELECT FROM telemetry.quarantined_event WHERE content LIKE '%\ufffd%'")
    random = Random(20261128)
    codes: Counter[int] = Counter()
    for number in range(300):
        noise = b"".join(random.choices(NOISE, k=random.randrange(1, 6)))
        depth = random.choice([0, 3, 499, 1500])
        values = {"id": f'"{number}"', "type": '"t"', "timestamp": '"2026-11-24T06:00:00Z"'}
        field = random.choice(["payload", "payload", *values])
        shape = random.choice([b"%s", b'"%s"', b'{"message":"%s","severity":"%s"}'])
        value = b"[" * depth + shape.replace(b"%s", noise) + b"]" * depth
        parts = [f'"{key}":{text}'.encode() for key, text in values.items() if key != field]
        parts.append(f'"{field}":'.encode() + value)
        body = head + b"{" + b",".join(parts) + b"}]}"
        codes[(await device.post("events", body)).status_code] += 1
    assert codes.keys() == {200, 400}
    assert min(codes.values()) > 50, codes
