"""What administrators see of the fleet: devices, events, files; and nobody else's."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from servicekit.rpc.pagination import encode_token
from tests.conftest import MakeKit, ServeService
from tests.support.servers import TestDatabase
from tests.support.telemetry import (
    ORG,
    RESELLER,
    ROOT,
    SISTER,
    STRANGER,
    Admin,
    Device,
    World,
    event,
    eventually,
    running,
    world,
)

__all__ = ["world"]


def device_id(number: int) -> UUID:
    return UUID(int=number)


def at(time: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


async def code(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code()


# The fleet


async def test_a_device_is_listed_as_soon_as_the_registry_has_it(world: World) -> None:
    """And looks as it was told to, before it ever reported."""
    assert not (await world.admin.devices()).devices
    world.registry.tell(device_id(1), serial="SN-1", model="Book 3")
    (device,) = (await world.admin.devices()).devices
    assert MessageToDict(device) == {
        "id": str(device_id(1)),
        "hostname": "SN-1",
        "model": "Book 3",
        "serialNumber": "SN-1",
        "health": "warning",
        "healthDetail": "UNKNOWN",
        "orgId": str(ORG.id),
        "lastSeen": MessageToDict(world.registry.changes[0])["createdAt"],
        "neverSeen": True,
        "attestationVerdict": "NONE",
        "status": "offline",
    }
    assert (await world.admin.device(device_id(1))).serial_number == "SN-1"


async def test_a_device_that_never_reported_is_of_unknown_health(world: World) -> None:
    """For the console a warning, in lists, filters, detail and files; until its first state."""
    enrolled = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    prepared, silent = device_id(1), world.device(device_id=device_id(2))
    world.registry.tell(prepared, status="prepared", serial="A")
    world.registry.tell(silent.id, serial="B", enrolled_at=at(enrolled))

    async def seen(**wanted: Any) -> list[tuple[str, str, str, bool]]:
        found = (await world.admin.devices(**wanted)).devices
        return [(d.hostname, d.health, d.health_detail, d.never_seen) for d in found]

    unknown = [("A", "warning", "UNKNOWN", True), ("B", "warning", "UNKNOWN", True)]
    assert await seen() == await seen(health="warning") == unknown
    assert await seen(status="offline") == unknown
    assert not await seen(health="healthy")
    assert not await seen(health="critical")
    detail = await world.admin.device(silent.id)
    assert (detail.health, detail.health_detail, detail.never_seen) == ("warning", "UNKNOWN", True)
    assert detail.health_snapshot.disk == detail.health_snapshot.battery == "warning"
    assert detail.last_seen.ToDatetime(tzinfo=UTC) == enrolled
    _, file = await world.admin.export_devices(health="warning")
    exported = [(d["healthDetail"], d["neverSeen"]) for d in json.loads(file)]
    assert exported == [("UNKNOWN", True)] * 2

    # What it has called for says that it is there, and not yet how it is.
    await silent.events([event(1)])
    assert (await seen())[1] == ("B", "warning", "UNKNOWN", False)
    await silent.state()
    assert (await seen())[1] == ("B", "healthy", "", False)
    assert await seen(health="warning") == unknown[:1]
    world.policy.tell(prepared, "7")
    assert (await seen())[0] == ("A", "warning", "UNKNOWN", False)


async def test_a_device_that_was_decommissioned_says_so(world: World) -> None:
    """It stays in the list."""
    world.registry.tell(device_id(1))
    await world.admin.devices()
    world.registry.tell(device_id(1), status="decommissioned")
    (device,) = (await world.admin.devices()).devices
    assert device.status == "decommissioned"
    assert [d.id for d in (await world.admin.devices(status="offline")).devices] == []
    assert len((await world.admin.devices(status="decommissioned")).devices) == 1


async def test_devices_that_were_not_admitted_are_no_part_of_the_fleet(world: World) -> None:
    """They are in the list of registrations."""
    for number, status in enumerate(("pending", "rejected", "prepared", "active"), 1):
        world.registry.tell(device_id(number), status=status, serial=status)
    assert [d.hostname for d in (await world.admin.devices()).devices] == ["active", "prepared"]
    assert await code(world.admin.device(device_id(1))) is grpc.StatusCode.NOT_FOUND
    world.registry.tell(device_id(1), status="active", serial="pending")
    assert (await world.admin.device(device_id(1))).hostname == "pending"


async def test_the_detail_of_a_device(world: World) -> None:
    """Everything that the console shows."""
    device = world.device(device_id=device_id(1))
    # The device reports before the registry's word has come.
    await device.state(disk_free_bytes=100, last_error="update failed")
    await device.events([event(n) for n in range(25)])
    (listed,) = (await world.admin.devices()).devices
    assert (listed.hostname, listed.status) == (str(device.id), "online")
    world.registry.tell(device.id, serial="SN-1", model="Book")
    world.policy.tell(device.id, "41")
    world.policy.tell(device.id, "42")
    found = MessageToDict(await world.admin.device(device.id))
    events = found.pop("events")
    assert found.pop("lastSeen")
    updates = found.pop("updates")
    assert updates.pop("lastSync")
    # Without a policy there is no channel; what the device says is something else.
    assert updates == {"status": "stable"}
    assert found == {
        "id": str(device.id),
        "hostname": "SN-1",
        "serialNumber": "SN-1",
        "model": "Book",
        "policyVersion": "42",
        "health": "warning",
        "orgId": str(ORG.id),
        "status": "online",
        "installedApps": [{"id": "org.gnome.Maps", "name": "org.gnome.Maps", "version": "47"}],
        "healthSnapshot": {"disk": "warning", "battery": "healthy"},
        "lastError": "update failed",
        # It runs one, and none is in force.
        "policyOrphaned": True,
        "attestationVerdict": "NONE",
    }
    assert len(events) == 20
    (listed,) = (await world.admin.devices()).devices
    assert (listed.health, listed.policy_version) == ("warning", "42")


@pytest.mark.parametrize(
    ("document", "channel"),
    [
        ({"updates": {"channel": "beta"}}, "beta"),
        ({"updates": {"channel": ""}}, ""),
        ({"updates": None}, ""),
        ({}, ""),
    ],
)
async def test_a_devices_channel_is_its_policys(
    world: World, document: dict[str, Any], channel: str
) -> None:
    """Not what the device says of its updates."""
    device = world.device()
    await device.state(update_status="idle")
    world.policy.in_force[str(ORG.id)] = document
    updates = (await world.admin.device(device.id)).updates
    assert (updates.channel, updates.status) == (channel, "idle")


async def test_a_device_whose_policy_was_withdrawn_says_so(world: World) -> None:
    """Only when it runs one, and as long as none is in force for it."""
    device = world.device()
    await device.state()
    assert not (await world.admin.device(device.id)).policy_orphaned
    world.policy.tell(device.id, "7")
    assert (await world.admin.device(device.id)).policy_orphaned
    world.policy.in_force[str(ORG.id)] = {}
    assert not (await world.admin.device(device.id)).policy_orphaned


async def test_a_device_that_falls_silent_is_offline(world: World) -> None:
    """After the time that the settings say."""
    device = world.device()
    await device.state()
    assert len((await world.admin.devices(status="online")).devices) == 1
    await world.rows("UPDATE telemetry.device SET contact_at = now() - interval '16 min'")
    assert not (await world.admin.devices(status="online")).devices
    (found,) = (await world.admin.devices(status="offline")).devices
    assert found.status == "offline"
    seen = found.last_seen.ToDatetime(tzinfo=UTC)
    for request, there in (
        ({"last_seen_after": at(seen - timedelta(seconds=1))}, True),
        ({"last_seen_after": at(seen)}, False),
        ({"last_seen_before": at(seen)}, False),
        ({"last_seen_before": at(seen + timedelta(seconds=1))}, True),
    ):
        assert bool((await world.admin.devices(**request)).devices) is there


async def test_searching_takes_text_literally(world: World) -> None:
    """In the name, serial number, model and id; wildcards are letters like others."""
    world.registry.tell(device_id(0xA1), serial="Lab_1", model="100%")
    world.registry.tell(device_id(0xB2), serial="LabX1", model="Book \\ 2")
    for search, names in {
        "lab": ["LabX1", "Lab_1"],
        "LAB_1": ["Lab_1"],
        "0%": ["Lab_1"],
        "k \\": ["LabX1"],
        "0000b2": ["LabX1"],
        "'; DROP": [],
    }.items():
        found = await world.admin.devices(search=search)
        assert [d.hostname for d in found.devices] == names, search
    assert await code(world.admin.devices(search="\0")) is grpc.StatusCode.INVALID_ARGUMENT


async def test_filtering_by_health(world: World) -> None:
    """As it was when the state was stored."""
    sick, well = world.device(), world.device()
    await sick.state(disk_free_bytes=1)
    await well.state()
    for health, device in (("critical", sick), ("healthy", well)):
        (found,) = (await world.admin.devices(health=health)).devices
        assert found.id == str(device.id)
    assert not (await world.admin.devices(health="warning")).devices


async def test_pages_of_devices_have_each_device_once(world: World) -> None:
    """Also where names are equal."""
    for number in range(1, 24):
        world.registry.tell(device_id(number), serial=f"S-{number // 5}")
    found: list[str] = []
    token = ""
    while True:
        page = await world.admin.devices(page_size=5, page_token=token)
        found += [device.id for device in page.devices]
        token = page.next_page_token
        if not token:
            break
    assert sorted(found) == [str(device_id(n)) for n in range(1, 24)]
    assert len((await world.admin.devices()).devices) == 23


NO_TOKENS = [
    "x",
    "é",
    encode_token("only a name"),
    encode_token("name", "no id"),
    encode_token("a\0", str(device_id(1))),
    encode_token("\ud800", str(device_id(1))),
    encode_token("2026-01-01T00:00:00", str(device_id(1))),
    encode_token("2026-01-01T00:00:00+02:00", "7"),
]


async def test_a_token_of_no_list_is_refused(world: World) -> None:
    """With the field's name."""
    for token in NO_TOKENS:
        events = world.admin.events(page_token=token)
        assert await code(events) is grpc.StatusCode.INVALID_ARGUMENT, token
        if "2026" not in token and not token.startswith("WyIyMDI2"):
            devices = world.admin.devices(page_token=token)
            assert await code(devices) is grpc.StatusCode.INVALID_ARGUMENT
            quarantine = world.admin.quarantined(page_token=token)
            assert await code(quarantine) is grpc.StatusCode.INVALID_ARGUMENT


async def test_lists_go_on_while_the_registry_is_away(world: World) -> None:
    """With what was heard last."""
    world.registry.tell(device_id(1))
    await world.admin.devices()
    world.registry.down = True
    world.policy.tell(device_id(1), "7")
    (found,) = (await world.admin.devices()).devices
    assert found.policy_version == "7"
    world.registry.down = False
    world.registry.tell(device_id(2))

    async def both() -> bool:
        return len((await world.admin.devices()).devices) == 2

    await eventually(both)


async def test_a_feed_goes_on_where_it_was(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase
) -> None:
    """A restart does not read everything again; the position commits with what was read."""
    async with running(make_kit, serve, database) as world:
        for number in range(1, 6):
            world.registry.tell(device_id(number))
        await world.admin.devices()
        await world.running.stop(0)
    (row,) = await world.rows(
        "SELECT cursor FROM telemetry.feed_cursor WHERE feed LIKE 'devices and%'"
    )
    assert row["cursor"] == "5"
    async with running(make_kit, serve, database) as again:
        assert again.registry.cursors[0] == "5"


# Events


async def test_the_agents_events_are_found_by_what_they_tell(world: World) -> None:
    """Its payloads have no message: what happened is in their fields."""
    device = world.device()
    await device.events(
        [
            event(1, type="login.failure", payload={"user": "anna", "reason": "bad_password"}),
            event(2, type="app.install.failure", payload={"app": "org.gnome.Maps", "error": "no"}),
            event(3, type="attestation.boot.success", payload={"nonce": "x", "quote_count": "2"}),
            event(4, type="login.failure", payload={"user": "berta"}),
        ]
    )
    # As a release before stored it.
    await world.rows(
        "UPDATE telemetry.event SET message = type WHERE event_id = '4' RETURNING message"
    )

    async def messages(**wanted: Any) -> list[str]:
        return sorted(e.message for e in (await world.admin.events(**wanted)).events)

    assert await messages() == [
        "boot evidence sent (2 quotes)",
        "installing an application failed (org.gnome.Maps): no",
        "login failed for anna: bad_password",
        "login failed for berta",
    ]
    assert await messages(search="ANNA") == ["login failed for anna: bad_password"]
    assert len(await messages(search="gnome.maps")) == 1
    assert len(await messages(search="login.failure")) == len(await messages(severity="error")) - 1
    _, parts = await world.admin.export(search="anna")
    (exported,) = json.loads(b"".join(part.data for part in parts))
    assert exported["message"] == "login failed for anna: bad_password"


async def test_events_are_listed_newest_first_with_what_they_say(world: World) -> None:
    """The console's EVENT."""
    device = world.device()
    await device.events(
        [
            event(1, timestamp="2026-01-01T00:00:00Z", payload=["x"]),
            event(
                2,
                type="update.failed",
                timestamp="2026-01-02T00:00:00.5Z",
                payload={"message": "no room", "big": 2**63, "deep": [[{"a": None}]]},
            ),
        ]
    )
    newest, oldest = (await world.admin.events()).events
    (latest, _) = (await world.admin.device(device.id)).events
    assert (latest.timestamp, latest.action_type) == (newest.occurred_at, newest.action)
    _, file = await world.admin.export()
    assert all(
        (e["timestamp"], e["actionType"]) == (e["occurredAt"], e["action"])
        for e in json.loads(b"".join(part.data for part in file))
    )
    assert (oldest.action, MessageToDict(oldest.metadata)) == ("app.installed", {"value": ["x"]})
    found = MessageToDict(newest)
    assert found.pop("id")
    assert found.pop("receivedAt")
    assert found == {
        "occurredAt": "2026-01-02T00:00:00.500Z",
        "timestamp": "2026-01-02T00:00:00.500Z",
        "actor": f"device:{device.id}",
        "action": "update.failed",
        "actionType": "update.failed",
        "severity": "error",
        "deviceId": str(device.id),
        "orgId": str(ORG.id),
        "message": "no room",
        "metadata": {"message": "no room", "big": str(2**63), "deep": [[{"a": None}]]},
    }


async def test_filtering_events(world: World) -> None:
    """By each of the filters, and all of them."""
    one, two = world.device(), world.device()
    first = datetime(2026, 1, 1, tzinfo=UTC)
    await one.events(
        [
            event(1, type="app.installed", timestamp="2026-01-01T00:00:00Z"),
            event(2, type="app.install_failed", timestamp="2026-01-02T00:00:00Z"),
        ]
    )
    await two.events([event(1, timestamp="2026-01-03T00:00:00Z", payload={"message": "50% done"})])
    for request, count in (
        ({"device_id": str(one.id)}, 2),
        ({"action": "app.installed"}, 2),
        ({"action": "app"}, 0),
        ({"severity": "error"}, 1),
        ({"severity": "warning"}, 0),
        ({"search": "INSTALL_"}, 1),
        ({"search": "50%"}, 1),
        ({"search": "%"}, 1),
        ({"occurred_after": at(first)}, 3),
        ({"occurred_after": at(first + timedelta(microseconds=1))}, 2),
        ({"occurred_before": at(first)}, 0),
        ({"occurred_before": at(first + timedelta(microseconds=1))}, 1),
        ({"limit": 2}, 2),
        ({"page_size": 1, "limit": 2}, 1),
        ({"org_id": str(ORG.id)}, 3),
        ({"device_id": str(one.id), "severity": "info", "search": "app"}, 1),
    ):
        assert len((await world.admin.events(**request)).events) == count, request
        if "page_size" not in request:
            _, parts = await world.admin.export(**request)
            assert len(json.loads(b"".join(part.data for part in parts))) == count, request


async def test_pages_of_events_have_each_event_once(world: World) -> None:
    """Many at the same moment, and new ones that come meanwhile."""
    device = world.device()
    await device.events([event(n) for n in range(23)])
    found: list[str] = []
    token = ""
    while True:
        page = await world.admin.events(limit=5, page_token=token)
        found += [e.id for e in page.events]
        token = page.next_page_token
        await device.events([event(f"new {len(found)}", timestamp="2030-01-01T00:00:00Z")])
        if not token:
            break
    assert len(found) == len(set(found)) == 23


async def large_events(device: Device, count: int) -> None:
    """Such as take the most room as protobuf: a list of numbers as large as a payload may be."""
    events = [event(n, payload=[1] * 32_000) for n in range(count)]
    body = json.dumps({"device_id": str(device.id), "events": events}, separators=(",", ":"))
    answer = await device.post("events", body.encode())
    assert answer.json()["accepted"] == count


async def test_a_page_of_large_events_ends_early(world: World) -> None:
    """So that the gateway passes it on; all pages have all events, also for who reads no other."""
    device = world.device()
    await large_events(device, 70)
    found: list[Any] = []
    token = ""
    while True:
        page = await world.admin.events(page_size=500, page_token=token)
        assert page.ByteSize() < 16 << 20
        assert len(page.events) < 40
        found += page.events
        token = page.next_page_token
        if not token:
            break
    assert len(found) == len({e.id for e in found}) == 70
    assert len(found[0].metadata["value"]) == 32_000
    # The console gives a limit, and shows the first page.
    assert 20 < len((await world.admin.events(limit=100)).events) < 40
    assert len((await world.admin.device(device.id)).events) == 20
    _, parts = await world.admin.export()
    assert len(json.loads(b"".join(part.data for part in parts))) == 70


async def test_others_are_answered_while_a_large_page_is_made(world: World) -> None:
    """Not only when it is there."""
    device = world.device()
    await large_events(device, 30)
    order: list[str] = []

    async def note(name: str, call: Any) -> None:
        await call
        order.append(name)

    async def calls() -> None:
        for _ in range(5):
            await note("small", world.admin.retention())

    await asyncio.gather(note("large", world.admin.events(limit=100)), calls())
    assert order == ["small"] * 5 + ["large"]


async def test_a_page_of_large_events_that_were_set_aside_ends_early(world: World) -> None:
    """As with others."""
    device = world.device()
    await device.events([{"id": str(n), "payload": "x" * 20_000} for n in range(150)])
    page = await world.admin.quarantined(page_size=500)
    assert 120 < len(page.quarantined_events) < 130
    rest = await world.admin.quarantined(page_size=500, page_token=page.next_page_token)
    assert len(page.quarantined_events) + len(rest.quarantined_events) == 150
    assert not rest.next_page_token


async def test_the_console_finds_what_lies_far_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows no page tokens: its only page reads on for a while before it stays short."""
    monkeypatch.setattr("services.telemetry.events.store.SCAN", 5)
    monkeypatch.setattr("services.telemetry.events.service._PATIENCE_SECONDS", 600)
    device = world.device()
    await device.events(
        [event(n, payload={"message": "wanted" if n < 2 else "no"}) for n in range(60)]
    )
    for request in ({"limit": 10}, {}):
        page = await world.admin.events(search="WANTED", **request)
        assert [e.message for e in page.events] == ["wanted"] * 2
    assert len((await world.admin.events(limit=1, search="wanted")).events) == 1
    # Whoever knows page tokens goes on at once.
    page = await world.admin.events(page_size=10, search="wanted")
    assert not page.events
    assert page.next_page_token
    page = await world.admin.events(limit=10, search="wanted", page_token=page.next_page_token)
    assert not page.events
    assert page.next_page_token
    # It does not read for ever.
    monkeypatch.setattr("services.telemetry.events.service._MOST_SCANS", 3)
    page = await world.admin.events(limit=10, search="wanted")
    assert not page.events
    assert page.next_page_token


async def test_what_was_set_aside_is_listed(world: World) -> None:
    """With its reason and content, by org and device."""
    device, other = world.device(), world.device()
    await device.events([{"id": "1", "type": "t", "timestamp": "soon"}, event(2)])
    await other.events([5])
    newest, oldest = (await world.admin.quarantined()).quarantined_events
    assert (newest.content, newest.reason) == ("5", "event: must be an object")
    assert oldest.reason == "timestamp: must be a time in RFC 3339"
    assert json.loads(oldest.content)["timestamp"] == "soon"
    assert (oldest.device_id, oldest.org_id) == (str(device.id), str(ORG.id))
    page = await world.admin.quarantined(page_size=1)
    rest = await world.admin.quarantined(page_size=1, page_token=page.next_page_token)
    assert [q.id for q in (*page.quarantined_events, *rest.quarantined_events)] == [
        newest.id,
        oldest.id,
    ]
    mine = await world.admin.quarantined(device_id=str(other.id), org_id=str(ORG.id))
    assert [q.id for q in mine.quarantined_events] == [newest.id]


# Isolation


async def test_everybody_sees_their_own_subtree(world: World) -> None:
    """Lists, details and files, with and without an org that is asked for."""
    orgs = (ORG.id, SISTER.id, STRANGER.id)
    for number, org in enumerate(orgs, 1):
        world.registry.tell(device_id(number), org)
        await world.device(org, device_id(number)).events([event(1), {}])
        await world.device(org, device_id(number)).state()
    for tenant, visible in (
        (ORG.id, {ORG.id}),
        (RESELLER.id, {ORG.id, SISTER.id}),
        (STRANGER.id, {STRANGER.id}),
        (ROOT.id, set(orgs)),
    ):
        admin = Admin(world.channel, tenant)
        wanted = {str(org) for org in visible}
        assert {d.org_id for d in (await admin.devices()).devices} == wanted
        assert {e.org_id for e in (await admin.events()).events} == wanted
        assert {q.org_id for q in (await admin.quarantined()).quarantined_events} == wanted
        _, parts = await admin.export()
        assert {e["orgId"] for e in json.loads(b"".join(p.data for p in parts))} == wanted
        for number, org in enumerate(orgs, 1):
            theirs = str(device_id(number))
            if org in visible:
                assert (await admin.device(device_id(number))).org_id == str(org)
                assert len((await admin.devices(org_id=str(org))).devices) == 1
                assert len((await admin.events(device_id=theirs)).events) == 1
            else:
                for call in (
                    admin.device(device_id(number)),
                    admin.devices(org_id=str(org)),
                    admin.events(org_id=str(org)),
                    admin.quarantined(org_id=str(org)),
                    admin.export(org_id=str(org)),
                ):
                    assert await code(call) is grpc.StatusCode.NOT_FOUND
                assert not (await admin.events(device_id=theirs)).events
                assert not (await admin.devices(search=theirs)).devices


async def test_devices_do_not_read_the_fleet(world: World) -> None:
    """A device token is no user's."""
    admin = Admin(world.channel, ORG.id)
    admin.metadata = world.device().metadata
    for call in (admin.devices(), admin.events(), admin.export()):
        assert await code(call) is grpc.StatusCode.UNAUTHENTICATED
