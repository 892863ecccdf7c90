"""One identity that several machines use is noticed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import uuid4

from servicekit.serials import serial_key
from services.telemetry.reports.clones import TURNS, Clones
from services.telemetry.reports.state import State
from tests.support.telemetry import ORG, World, event, world

__all__ = ["world"]

NOW = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)
GIB = 1 << 30


def _state(disk: int = 64 * GIB, free: int = 32 * GIB, battery: float = 0.0) -> State:
    return State(NOW, None, disk_total_bytes=disk, disk_free_bytes=free, battery_percent=battery)


def _found(states: list[State], every: timedelta = timedelta(minutes=5)) -> list[int]:
    """Which of the states, one after the other, tell of a clone."""
    clones, device = Clones(), uuid4()
    return [
        n
        for n, state in enumerate(states)
        if clones.notice(device, state, NOW + n * every) is not None
    ]


def test_a_disk_that_comes_back_is_two_machines() -> None:
    """One that is exchanged is not, nor one that is exchanged back on another day."""
    one, two, unknown = _state(disk=64), _state(disk=128), _state(disk=0)
    assert _found([one, one, two, one]) == [3]
    assert _found([one, unknown, one, unknown, one, two, two]) == []
    assert _found([one, two, one], timedelta(days=2)) == []
    three = [_state(disk=disk) for disk in (64, 128, 256)]
    assert _found([*three, *three]) == [3]


def test_it_is_told_once_an_hour() -> None:
    """As long as it goes on."""
    states = [_state(disk=disk) for _ in range(30) for disk in (64, 128)]
    assert _found(states) == [2, 14, 26, 38, 50]


def test_two_equal_machines_go_on_from_two_places() -> None:
    """By the battery, or by the free space of their disks."""
    random = Random(7)
    by_battery, by_space = [], []
    for n in range(30):
        drift = random.randrange(1 << 20)
        by_battery.append(_state(battery=(90.0 if n % 2 else 40.0) - n / 4))
        by_space.append(_state(free=(30 * GIB if n % 2 else 21 * GIB) - n * drift))
    assert _found(by_battery)[0] <= TURNS + 2
    assert _found(by_space)[0] <= TURNS + 2


def test_one_machine_is_no_clone() -> None:
    """However it fills and empties its disk and its battery: ten machines for weeks."""
    random = Random(11)
    for _ in range(10):
        free, battery, states = 32 * GIB, 80.0, []
        for _ in range(2_000):
            free = max(free + random.choice((0, 0, random.randint(-GIB, GIB), -(20 << 20))), 0)
            battery = min(max(battery + random.uniform(-4, 4), 1.0), 100.0)
            states.append(_state(free=free, battery=battery))
        assert _found(states) == []


def test_what_is_remembered_is_bounded() -> None:
    """The device that was not heard of for longest is forgotten."""
    clones, first = Clones(most=2), uuid4()
    for device in (first, uuid4(), uuid4()):
        clones.notice(device, _state(disk=64), NOW)
    seen = [clones.notice(first, _state(disk=disk), NOW) for disk in (128, 64, 128)]
    assert [evidence is not None for evidence in seen] == [False, False, True]


async def test_a_cloned_device_is_marked_and_told(world: World) -> None:
    """Its administrators see it in lists, alone and in an event; enrolling again ends it."""
    device, other = world.device(), world.device()
    for disk in (64 * GIB, 128 * GIB, 64 * GIB, 128 * GIB):
        for each, size in ((device, disk), (other, GIB)):
            answer = await each.state(disk_total_bytes=size, disk_free_bytes=0)
            assert answer.status_code == 200
    listed = await world.admin.devices(clone_suspected=True)
    assert [found.id for found in listed.devices] == [str(device.id)]
    assert listed.devices[0].HasField("clone_suspected_at")
    rows = await world.rows("SELECT payload FROM telemetry.outbox")
    (told,) = [json.loads(row["payload"])["data"] for row in rows]
    assert (told["action"], told["resource"]) == (
        "telemetry.clone_suspected",
        f"devices/{device.id}",
    )
    assert str(64 * GIB) in told["after"]["evidence"]


async def test_another_event_with_a_known_id_is_stored_beside_it(world: World) -> None:
    """A clock that began anew gives ids again; whatever is sent again is stored once."""
    device = world.device()
    first = event("100", payload={"message": "before"})
    others = [
        event("100", payload={"message": "after"}),
        event("100", type="boot", payload={"message": "before"}),
        event("100"),
    ]
    assert (await device.events([first, first])).json() == {
        "accepted": 1,
        "duplicates": 1,
        "quarantined": 0,
    }
    for accepted in (3, 0):
        answer = (await device.events([*others, first, *others])).json()
        assert answer == {"accepted": accepted, "duplicates": 7 - accepted, "quarantined": 0}
    both = [event("101", payload=1), event("101", payload=2)]
    assert (await device.events(both)).json()["accepted"] == 2
    assert (await device.events(both)).json()["duplicates"] == 2
    # In Python these are equal.
    both = [event("102", payload={"a": True}), event("102", payload={"a": 1})]
    assert (await device.events(both)).json()["accepted"] == 2
    rows = await world.rows("SELECT event_id FROM telemetry.event ORDER BY event_id")
    ids = [row["event_id"] for row in rows]
    assert [i.partition("#")[0] for i in ids] == ["100"] * 4 + ["101"] * 2 + ["102"] * 2
    assert [i for i in ids if "#" not in i] == ["100", "101", "102"]


async def test_devices_are_found_by_exactly_their_serial_number(world: World) -> None:
    """In any spelling; none that only contains it."""
    for serial in ("5CD000001", "5CD0000012", "X5CD000001"):
        await world.rows(
            "INSERT INTO telemetry.device (id, tenant_id, name, serial, registered_at)"
            " VALUES (gen_random_uuid(), $2, $1, $1, now())",
            serial,
            ORG.id,
        )
    for asked in ("5CD000001", "5cd000001 ", "\uff15CD000001"):
        listed = await world.admin.devices(serial=asked)
        assert [found.serial_number for found in listed.devices] == ["5CD000001"]
    assert (await world.admin.devices(serial="5CD00000")).devices == []
    (row,) = await world.rows("SELECT telemetry.serial_key('\uff30f-1') AS key")
    assert row["key"] == serial_key("\uff30f-1")
