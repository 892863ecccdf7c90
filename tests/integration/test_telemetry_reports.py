"""What devices report: stored once, acknowledged after commit, whatever else happens."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

import grpc
import httpx
import pytest
from prometheus_client import REGISTRY

from evergreen.v1 import device_pb2
from servicekit.grpc_server import H_ERROR
from servicekit.values import to_value
from services.telemetry.domain.events import MAX_CONTENT, MAX_EVENTS
from services.telemetry.store.events import CONTENT_LISTED
from services.telemetry.store.reports import QUARANTINE_PER_DEVICE
from tests.conftest import MakeKit, ServeService
from tests.integration.telemetry import (
    ORG,
    STRANGER,
    Device,
    World,
    event,
    eventually,
    running,
    state,
    world,
)
from tests.servers import TestDatabase

__all__ = ["world"]


def fields(answer: httpx.Response) -> list[str]:
    return [
        violation["field"]
        for detail in answer.json()["details"]
        for violation in detail.get("fieldViolations", ())
    ]


async def count(world: World, table: str = "event") -> int:
    (row,) = await world.rows(f"SELECT count(*) AS n FROM telemetry.{table}")
    return int(row["n"])


async def stored(world: World, device: Device) -> dict[str, Any]:
    (row,) = await world.rows(
        "SELECT *, installed_apps::text AS apps FROM telemetry.device WHERE id = $1", device.id
    )
    return dict(row)


# Events


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
    assert await count(world, "quarantined_event") == 2


async def test_the_same_id_of_another_device_is_another_event(world: World) -> None:
    """Ids are unique per device only."""
    one, two = world.device(), world.device()
    answers = await asyncio.gather(one.events([event(1)]), two.events([event(1)]))
    assert [answer.json()["accepted"] for answer in answers] == [1, 1]
    assert await count(world) == 2


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
    assert await count(world) == 50


async def test_fifty_thousand_events_in_one_body(world: World) -> None:
    """What an agent queued while it was offline; meanwhile other devices are served."""
    device, other = world.device(), world.device()
    batch = [event(n, payload={"app": "org.gnome.Maps", "n": n}) for n in range(50_000)]
    body = json.dumps({"device_id": str(device.id), "events": batch}).encode()
    waits = []

    async def meanwhile() -> None:
        for n in range(1000):
            began = time.perf_counter()
            assert (await other.events([event(n)])).status_code == 200
            waits.append(time.perf_counter() - began)
            await asyncio.sleep(0.05)

    others = asyncio.create_task(meanwhile())
    answer = await device.post("events", body)
    others.cancel()
    assert answer.json() == {"accepted": 50_000, "duplicates": 0, "quarantined": 0}
    assert len(waits) > 3
    assert sorted(waits)[len(waits) // 2] < 1
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
    monkeypatch.setattr("services.telemetry.store.reports.QUARANTINE_PER_DEVICE", bound)
    device = world.device()
    bad = [{"id": str(n)} for n in range(bound + 300)]
    assert (await device.events(bad)).json()["quarantined"] == len(bad)
    assert await count(world, "quarantined_event") == bound
    few = bad[-5:]
    for _ in range(3):
        assert (await device.events(few)).json()["quarantined"] == 5
    assert await count(world, "quarantined_event") == bound
    page = await world.admin.quarantined(page_size=1)
    assert page.quarantined_events[0].reason == "timestamp: is required"
    assert json.loads(page.quarantined_events[0].content) == bad[-1]


async def test_of_a_large_body_that_is_no_json_nothing_is_stored(world: World) -> None:
    """It is looked through before its events are stored, as they are read."""
    device = world.device()
    events = [event(n, payload="x" * 1000) for n in range(2_000)]
    body = json.dumps({"device_id": str(device.id), "events": events}).encode()
    answer = await device.post("events", body[:-1] + b"x")
    assert (answer.status_code, fields(answer)) == (400, ["body"])
    assert await count(world) == 0
    other = json.dumps({"events": events, "device_id": str(uuid4())}).encode()
    assert (await device.post("events", other)).status_code == 403
    assert await count(world) == 0
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


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"nonsense", "body"),
        (b"[]", "body"),
        (b'{"events":[]}', "device_id"),
        (b'{"device_id":5,"events":[]}', "device_id"),
        (b'{"device_id":"x","events":[]}', "device_id"),
    ],
)
async def test_a_body_without_a_batch_is_refused(world: World, body: bytes, field: str) -> None:
    """As a whole, with the field."""
    answer = await world.device().post("events", body)
    assert (answer.status_code, fields(answer)) == (400, [field])


async def test_no_events_are_accepted(world: World) -> None:
    """A list that is null, or empty."""
    device = world.device()
    for events in (None, []):
        answer = await device.post("events", {"device_id": str(device.id), "events": events})
        assert answer.json() == {"accepted": 0, "duplicates": 0, "quarantined": 0}
    missing = await device.post("events", {"device_id": str(device.id)})
    assert (missing.status_code, fields(missing)) == (400, ["events"])


@pytest.mark.parametrize("what", ["events", "state"])
async def test_a_device_reports_for_itself_only(world: World, what: str) -> None:
    """The token's id counts; in whatever spelling."""
    device = world.device()
    body: dict[str, Any] = {"device_id": str(uuid4()), "events": [event(1)], "state": state()}
    answer = await device.post(what, body)
    assert answer.status_code == 403
    assert answer.json()["details"][0]["reason"] == "NOT_YOUR_DEVICE"
    own = await device.post(what, {**body, "device_id": str(device.id).upper()})
    assert own.status_code == 200


async def test_a_locked_out_device_is_refused(world: World) -> None:
    """Within seconds of the registry's word."""
    device = world.device()
    assert (await device.events([event(1)])).status_code == 200
    world.registry.tell(device.id, status="decommissioned")

    async def refused() -> bool:
        return (await device.events([event(2)])).status_code == 401

    await eventually(refused)
    assert (await device.state()).status_code == 401


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
    assert (await device.events([event(1), event(9)])).json()["duplicates"] == 1
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


async def test_grpc_names_the_device_too(world: World) -> None:
    """The error has the one shape."""
    device = world.device()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await device.grpc.ReportEvents(
            device_pb2.ReportEventsRequest(device_id=str(uuid4())), metadata=device.metadata
        )
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert H_ERROR in dict(refused.value.trailing_metadata() or ())


async def test_a_call_that_was_given_up_may_be_stored_and_is_a_duplicate_then(
    world: World,
) -> None:
    """Giving up in the middle leaves neither half an event nor a stuck queue."""
    device = world.device()
    batch = [event(n) for n in range(200)]
    for wait in (0, 0.001, 0.002, 0.005, 0.01, 0.02):
        tasks = [asyncio.create_task(device.events(batch)) for _ in range(8)]
        await asyncio.sleep(wait)
        for task in tasks[1:]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert (await device.events(batch)).json() == {
        "accepted": 0,
        "duplicates": 200,
        "quarantined": 0,
    }
    assert await count(world) == 200


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
    """The database takes every event that was read, and every one that was set aside."""
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


# State


async def test_a_state_replaces_the_one_before(world: World) -> None:
    """The latest is kept, with what it says of the device's health."""
    device = world.device()
    answer = await device.state(
        disk_total_bytes=2**64 - 1, disk_free_bytes=1, last_error="boom", installed_apps=None
    )
    assert (answer.status_code, answer.content) == (200, b"{}")
    row = await stored(world, device)
    assert (row["tenant_id"], row["disk_total_bytes"], row["apps"]) == (ORG.id, 2**64 - 1, None)
    assert (row["health"], row["disk_health"], row["last_error"]) == (
        "critical",
        "critical",
        "boom",
    )
    assert (await device.state()).status_code == 200
    row = await stored(world, device)
    assert (row["health"], row["disk_health"], row["last_error"]) == ("healthy", "healthy", "")
    assert json.loads(row["apps"])[0]["id"] == "org.gnome.Maps"


async def test_an_older_state_does_not_replace_a_newer_one(world: World) -> None:
    """A queued state that arrives late counts as a sign of life, and as nothing else."""
    device = world.device()
    await device.state(update_status="new")
    before = await stored(world, device)
    old = (datetime.now(UTC) - timedelta(hours=2)).isoformat()
    assert (await device.state(update_status="old", timestamp=old)).status_code == 200
    after = await stored(world, device)
    assert after["update_status"] == "new"
    assert after["contact_at"] > before["contact_at"]


async def test_a_clock_that_jumped_does_not_freeze_the_state(world: World) -> None:
    """Ahead: the next report counts at once. Back: as soon as the stored state has settled."""
    device = world.device()
    future = (datetime.now(UTC) + timedelta(days=3650)).isoformat()
    await device.state(update_status="future", timestamp=future)
    await device.state(update_status="now")
    assert (await stored(world, device))["update_status"] == "now"
    await device.state(update_status="1970", timestamp="1970-01-01T00:00:00Z")
    assert (await stored(world, device))["update_status"] == "now"
    await world.rows("UPDATE telemetry.device SET state_received_at = now() - interval '16 min'")
    await device.state(update_status="1970", timestamp="1970-01-01T00:00:00Z")
    assert (await stored(world, device))["update_status"] == "1970"


async def test_many_states_of_many_devices_at_once(world: World) -> None:
    """Coalesced, several of one device in a batch among them; the newest stays."""
    devices = [world.device() for _ in range(20)]
    now = datetime.now(UTC) - timedelta(seconds=30)
    times = {str(n): (now + n * timedelta(seconds=1)).isoformat() for n in (3, 9, 1, 5)}
    answers = await asyncio.gather(
        *(
            device.state(update_status=number, timestamp=observed)
            for number, observed in times.items()
            for device in devices
        )
    )
    assert {answer.status_code for answer in answers} == {200}
    rows = await world.rows("SELECT update_status FROM telemetry.device")
    assert [row["update_status"] for row in rows] == ["9"] * 20


@pytest.mark.parametrize("body", [{}, {"state": None}, {"state": []}])
async def test_what_holds_no_state_is_refused(world: World, body: dict[str, Any]) -> None:
    """There is nothing to store."""
    device = world.device()
    answer = await device.post("state", {"device_id": str(device.id), **body})
    assert (answer.status_code, fields(answer)) == (400, ["state"])


def mended(field: str) -> float:
    return REGISTRY.get_sample_value("evergreen_device_states_mended_total", {"field": field}) or 0


BROKEN = {
    "timestamp": "soon",
    "installed_apps": [7, *[{"id": "a\0", "version": "\ud800", "branch": "x" * 300}] * 5001],
    "update_status": "\0" * 2000,
    "disk_total_bytes": -1,
    "disk_free_bytes": 1e30,
    "battery_percent": "full",
    "last_error": "\0\ud800\uffff" + "\U0001f600" * 70_000,
}


async def test_a_state_that_breaks_rules_is_mended_and_stored(world: World) -> None:
    """Refused, it would stay in the agent's queue for ever, in front of all others."""
    device = world.device()
    before = {field: mended(field) for field in BROKEN}
    body = {"device_id": str(device.id), "state": BROKEN}
    # All of it, and each field alone.
    assert (await device.post("state", body)).status_code == 200
    for field, value in BROKEN.items():
        assert (await device.state(**{field: value})).status_code == 200
    assert {field: mended(field) - before[field] for field in BROKEN} == dict.fromkeys(BROKEN, 2)
    assert (await device.post("state", body)).status_code == 200
    row = await stored(world, device)
    apps = json.loads(row["apps"])
    assert len(apps) == 4999
    assert apps[0] == {"id": "a\ufffd", "version": "\ufffd", "branch": "x" * 256}
    assert row["update_status"] == "\ufffd" * 1024
    assert (row["disk_total_bytes"], row["disk_free_bytes"]) == (0, 2**64 - 1)
    assert row["battery_percent"] == 0
    assert row["last_error"] == "\ufffd\ufffd\uffff" + "\U0001f600" * 65_533


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("disk_total_bytes", b"1" * 5000),
        ("installed_apps", b"[" * 5000 + b"]" * 5000),
        ("more", b"[" * 5000 + b"]" * 5000),
        ("last_error", b'"\xff\xed\xa0\x80"'),
    ],
)
async def test_a_state_that_python_cannot_read_is_mended(
    world: World, field: str, value: bytes
) -> None:
    """Its other fields are taken as they are."""
    device = world.device()
    told = {k: v for k, v in state(update_status="told").items() if k != field}
    text = json.dumps({**told, field: "VALUE"}).encode().replace(b'"VALUE"', value)
    head = b'{"device_id":"' + str(device.id).encode() + b'","state":'
    assert (await device.post("state", head + text + b"}")).status_code == 200
    row = await stored(world, device)
    assert (row["update_status"], row["disk_free_bytes"]) == ("told", 500)
    assert (row["disk_total_bytes"] == 0) is (field == "disk_total_bytes")
    assert (row["apps"] is None) is (field == "installed_apps")
    assert row["last_error"].strip("\ufffd") == ""
    for broken in (text, text + b"}x", b"x" + text + b"}", text[:-1] + b',"a"}}'):
        answer = await device.post("state", head + broken)
        assert (answer.status_code, fields(answer)) == (400, ["body"])


async def test_large_states_share_the_memory_of_events(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase
) -> None:
    """They are cut and stored, as many at once as find room; small ones need none."""
    async with running(make_kit, serve, database, body_budget_bytes=5 << 20) as world:
        alone = world.device()
        assert (await alone.state(last_error="x" * 3_000_000)).status_code == 200
        assert (await stored(world, alone))["last_error"] == "x" * 65_536
        large = []
        for device in [world.device() for _ in range(6)]:
            told = {"device_id": str(device.id), "state": state(last_error="x" * 3_000_000)}
            body = json.dumps(told).encode()
            # As the gateway writes it: in lower case.
            device.headers["content-length"] = str(len(body))
            large.append(device.post("state", body))
        held = await database.superuser()
        try:
            async with held.transaction():
                await held.execute("LOCK TABLE telemetry.device IN EXCLUSIVE MODE")
                tasks = [asyncio.create_task(call) for call in large]
                small = asyncio.create_task(alone.state())
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                assert {task.result().status_code for task in done} == {429}
        finally:
            await held.close()
        codes = Counter(answer.status_code for answer in await asyncio.gather(*tasks))
        assert codes.keys() == {200, 429}
        assert (await small).status_code == 200


async def test_a_state_without_a_usable_time_counts_as_of_now(world: World) -> None:
    """And gives way to what follows it in the queue, although that is of before it came."""
    device = world.device()
    await device.state(update_status="first")
    await device.state(update_status="second", timestamp="0001-01-01T00:00:00Z")
    assert (await stored(world, device))["update_status"] == "second"
    queued = (datetime.now(UTC) - timedelta(minutes=5)).isoformat()
    await device.state(update_status="third", timestamp=queued)
    assert (await stored(world, device))["update_status"] == "third"


async def test_state_in_grpc(world: World) -> None:
    """The same row, and mended in the same way."""
    device = world.device()
    request = device_pb2.ReportStateRequest(device_id=str(device.id))
    request.state.timestamp.GetCurrentTime()
    request.state.disk_total_bytes = 2**64 - 1
    request.state.battery_percent = 5
    request.state.installed_apps.add(id="a", version="1")
    await device.grpc.ReportState(request, metadata=device.metadata)
    row = await stored(world, device)
    assert (row["disk_total_bytes"], row["battery_health"]) == (2**64 - 1, "warning")
    request.state.battery_percent = float("nan")
    request.state.update_status = "\0" * 2000
    request.state.timestamp.seconds = 1 << 60
    await device.grpc.ReportState(request, metadata=device.metadata)
    row = await stored(world, device)
    assert (row["battery_percent"], row["update_status"]) == (0, "\ufffd" * 1024)
    request.ClearField("state")
    with pytest.raises(grpc.aio.AioRpcError, match="state: is required"):
        await device.grpc.ReportState(request, metadata=device.metadata)
    request.state.SetInParent()
    await device.grpc.ReportState(request, metadata=device.metadata)
    assert (await stored(world, device))["update_status"] == ""


# When something is away, or too much


async def test_nothing_is_acknowledged_that_is_not_committed(world: World) -> None:
    """A commit that fails fails every call of the batch, and a retry stores all of it."""
    await world.rows(
        "CREATE FUNCTION telemetry.refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'not now' USING ERRCODE = '53100'; END $$"
    )
    for table in ("event", "device"):
        await world.rows(
            f"CREATE CONSTRAINT TRIGGER refuse AFTER INSERT OR UPDATE ON telemetry.{table}"
            " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION telemetry.refuse()"
        )
    devices = [world.device() for _ in range(5)]
    calls = [d.events([event(1)]) for d in devices] + [d.state() for d in devices]
    answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} == {503}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
    assert await count(world) == await count(world, "device") == 0
    for table in ("event", "device"):
        await world.rows(f"DROP TRIGGER refuse ON telemetry.{table}")
    answers = await asyncio.gather(*(d.events([event(1)]) for d in devices))
    assert [answer.json()["accepted"] for answer in answers] == [1] * 5


async def test_connections_that_are_killed_lose_nothing_that_was_acknowledged(
    world: World,
) -> None:
    """The database may go away at any moment; calls fail then, or are stored."""
    done = asyncio.Event()

    async def kill() -> None:
        while not done.is_set():
            await world.rows(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE usename = 'evergreen_telemetry' AND datname = current_database()"
            )
            await asyncio.sleep(0.05)

    killer = asyncio.create_task(kill())
    acknowledged: set[tuple[UUID, str]] = set()

    async def report(device: Device) -> None:
        for number in range(30):
            answer = await device.events([event(number)])
            if answer.status_code == 200:
                acknowledged.add((device.id, str(number)))
            else:
                assert answer.status_code == 503

    devices = [world.device() for _ in range(8)]
    await asyncio.gather(*map(report, devices))
    done.set()
    await killer
    rows = await world.rows("SELECT device_id, event_id FROM telemetry.event")
    assert acknowledged
    assert acknowledged <= {(row["device_id"], row["event_id"]) for row in rows}
    answers = await asyncio.gather(*(d.events([event(n) for n in range(30)]) for d in devices))
    assert {answer.status_code for answer in answers} <= {200, 503}


async def test_a_full_queue_refuses_with_a_delay(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase
) -> None:
    """Instead of growing; what it took is stored."""
    async with running(make_kit, serve, database, waiting_events=20, waiting_states=3) as world:
        devices = [world.device() for _ in range(60)]
        batch = [event(n) for n in range(10)]
        answers = await asyncio.gather(*(device.events(batch) for device in devices))
        codes = [answer.status_code for answer in answers]
        assert set(codes) == {200, 429}
        refused = answers[codes.index(429)]
        assert refused.json()["status"] == "RESOURCE_EXHAUSTED"
        assert int(refused.headers["retry-after"]) >= 1
        assert await count(world) == 10 * codes.count(200)
        answers = await asyncio.gather(*(device.state() for device in devices))
        assert {answer.status_code for answer in answers} == {200, 429}


async def test_one_tenants_flood_is_refused_and_no_other_tenant(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase
) -> None:
    """While nothing can be written the flood fills its share; the others' reports find room."""
    async with running(make_kit, serve, database, waiting_events=60, waiting_states=9) as world:
        batch = [event(n) for n in range(5)]
        held = await database.superuser()
        try:
            async with held.transaction():
                await held.execute("LOCK TABLE telemetry.event, telemetry.device IN EXCLUSIVE MODE")
                events = [asyncio.create_task(world.device().events(batch)) for _ in range(40)]
                states = [asyncio.create_task(world.device().state()) for _ in range(40)]
                # Of each kind one batch is being written, and two thirds of the queue wait.
                for flood in (events, states):
                    done, _ = await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED)
                    assert {task.result().status_code for task in done} == {429}
                other = world.device(STRANGER.id)
                others = [
                    asyncio.create_task(other.events(batch)),
                    asyncio.create_task(other.state()),
                ]
                await asyncio.wait([*others, *events, *states], timeout=0.2)
        finally:
            await held.close()
        assert [answer.status_code for answer in await asyncio.gather(*others)] == [200, 200]
        codes = Counter(answer.status_code for answer in await asyncio.gather(*events, *states))
        assert codes.keys() == {200, 429}


async def test_large_bodies_share_a_budget(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase
) -> None:
    """A herd of devices that come back with full queues does not fill the memory."""
    async with running(make_kit, serve, database, body_budget_bytes=1 << 20) as world:
        batch = [event(n, payload="x" * 1000) for n in range(700)]
        devices = [world.device() for _ in range(6)]
        answers = await asyncio.gather(*(device.events(batch) for device in devices))
        assert {answer.status_code for answer in answers} == {200, 429}
        # One alone is taken, however large.
        alone = await devices[0].events([event(n, payload="x" * 1000) for n in range(2000)])
        assert alone.status_code == 200


async def test_a_forgotten_where_shows_nothing(world: World) -> None:
    """The service's own role sees a tenant's rows only in a transaction that is bound to it."""
    await world.device().events([event(1), {}])
    await world.device().state()
    for table in ("event", "quarantined_event", "device"):
        sql = f"SELECT tenant_id FROM telemetry.{table}"
        async with world.kit.database.dedicated() as connection:
            assert await connection.fetch(sql) == []
        async with world.kit.database.transaction(world.kit.tenants.scope(STRANGER.id)) as c:
            assert await c.fetch(sql) == []
        async with world.kit.database.transaction(world.kit.tenants.scope(ORG.id)) as c:
            assert await c.fetch(sql) != []


async def test_a_device_that_tells_its_queue_is_let_finish(
    make_kit: MakeKit,
    serve: ServeService,
    database: TestDatabase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between its old states its place is kept: a refusal would make it tell all of them again."""
    monkeypatch.setattr("services.telemetry.service.reports._KEPT_SECONDS", 600.0)
    old = [f"2026-11-23T0{hour}:00:00Z" for hour in range(3)]
    async with running(make_kit, serve, database, emptied_queues=1) as world:
        returning, other = world.device(), world.device()
        for time in old:
            assert (await returning.state(timestamp=time)).status_code == 200
            refused = await other.state(timestamp=old[0])
            assert refused.status_code == 429
            assert refused.json()["details"][0]["reason"] == "TOO_MANY_QUEUES"
            assert int(refused.headers["retry-after"]) >= 1
            # What has just happened is never kept waiting by what is old.
            assert (await world.device().state()).status_code == 200
            assert (await world.device().events([event(1)])).status_code == 200
        assert (await returning.state()).status_code == 200
        for time in old:
            assert (await other.state(timestamp=time)).status_code == 200
