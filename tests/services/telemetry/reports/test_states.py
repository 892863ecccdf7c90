"""States of devices: the newest is kept, mended where it breaks a rule."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY

from evergreen.v1 import device_pb2
from tests.conftest import MakeKit, ServeService
from tests.support.refusals import fields_of
from tests.support.servers import TestDatabase
from tests.support.telemetry import ORG, World, running, state, world

__all__ = ["world"]


async def test_a_state_replaces_the_one_before(world: World) -> None:
    """The latest is kept, with what it says of the device's health."""
    device = world.device()
    answer = await device.state(
        disk_total_bytes=2**64 - 1, disk_free_bytes=1, last_error="boom", installed_apps=None
    )
    assert (answer.status_code, answer.content) == (200, b"{}")
    row = await world.stored(device)
    assert (row["tenant_id"], row["disk_total_bytes"], row["apps"]) == (ORG.id, 2**64 - 1, None)
    assert (row["health"], row["disk_health"], row["last_error"]) == (
        "critical",
        "critical",
        "boom",
    )
    assert (await device.state()).status_code == 200
    row = await world.stored(device)
    assert (row["health"], row["disk_health"], row["last_error"]) == ("healthy", "healthy", "")
    assert json.loads(row["apps"])[0]["id"] == "org.gnome.Maps"


async def test_an_older_state_does_not_replace_a_newer_one(world: World) -> None:
    """A queued state that arrives late counts as a sign of life, and as nothing else."""
    device = world.device()
    await device.state(update_status="new")
    before = await world.stored(device)
    old = (datetime.now(UTC) - timedelta(hours=2)).isoformat()
    assert (await device.state(update_status="old", timestamp=old)).status_code == 200
    after = await world.stored(device)
    assert after["update_status"] == "new"
    assert after["contact_at"] > before["contact_at"]


async def test_a_clock_that_jumped_does_not_freeze_the_state(world: World) -> None:
    """Ahead: the next report counts at once. Back: as soon as the stored state has settled."""
    device = world.device()
    future = (datetime.now(UTC) + timedelta(days=3650)).isoformat()
    await device.state(update_status="future", timestamp=future)
    await device.state(update_status="now")
    assert (await world.stored(device))["update_status"] == "now"
    await device.state(update_status="1970", timestamp="1970-01-01T00:00:00Z")
    assert (await world.stored(device))["update_status"] == "now"
    await world.rows("UPDATE telemetry.device SET state_received_at = now() - interval '16 min'")
    await device.state(update_status="1970", timestamp="1970-01-01T00:00:00Z")
    assert (await world.stored(device))["update_status"] == "1970"


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
    assert (answer.status_code, fields_of(answer.json())) == (400, ["state"])


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
    row = await world.stored(device)
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
    row = await world.stored(device)
    assert (row["update_status"], row["disk_free_bytes"]) == ("told", 500)
    assert (row["disk_total_bytes"] == 0) is (field == "disk_total_bytes")
    assert (row["apps"] is None) is (field == "installed_apps")
    assert row["last_error"].strip("\ufffd") == ""
    for broken in (text, text + b"}x", b"x" + text + b"}", text[:-1] + b',"a"}}'):
        answer = await device.post("state", head + broken)
        assert (answer.status_code, fields_of(answer.json())) == (400, ["body"])


async def test_large_states_share_the_memory_of_events(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase
) -> None:
    """They are cut and stored, as many at once as find room; small ones need none."""
    async with running(make_kit, serve, database, body_budget_bytes=5 << 20) as world:
        alone = world.device()
        assert (await alone.state(last_error="x" * 3_000_000)).status_code == 200
        assert (await world.stored(alone))["last_error"] == "x" * 65_536
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
    assert (await world.stored(device))["update_status"] == "second"
    queued = (datetime.now(UTC) - timedelta(minutes=5)).isoformat()
    await device.state(update_status="third", timestamp=queued)
    assert (await world.stored(device))["update_status"] == "third"


async def test_state_in_grpc(world: World) -> None:
    """The same row, and mended in the same way."""
    device = world.device()
    request = device_pb2.ReportStateRequest(device_id=str(device.id))
    request.state.timestamp.GetCurrentTime()
    request.state.disk_total_bytes = 2**64 - 1
    request.state.battery_percent = 5
    request.state.installed_apps.add(id="a", version="1")
    await device.grpc.ReportState(request, metadata=device.metadata)
    row = await world.stored(device)
    assert (row["disk_total_bytes"], row["battery_health"]) == (2**64 - 1, "warning")
    request.state.battery_percent = float("nan")
    request.state.update_status = "\0" * 2000
    request.state.timestamp.seconds = 1 << 60
    await device.grpc.ReportState(request, metadata=device.metadata)
    row = await world.stored(device)
    assert (row["battery_percent"], row["update_status"]) == (0, "\ufffd" * 1024)
    request.ClearField("state")
    with pytest.raises(grpc.aio.AioRpcError, match="state: is required"):
        await device.grpc.ReportState(request, metadata=device.metadata)
    request.state.SetInParent()
    await device.grpc.ReportState(request, metadata=device.metadata)
    assert (await world.stored(device))["update_status"] == ""
