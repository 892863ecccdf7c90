"""Long lists: a page reads a bounded number of rows, and all pages together miss none."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from servicekit.app import Kit
from servicekit.data.postgres import SYSTEM, Scope
from servicekit.ids import now
from servicekit.rpc.pagination import TimePosition
from services.telemetry.events import store as event_store
from services.telemetry.events.domain import EventFilter, EventOrder
from services.telemetry.inventory import store as device_store
from services.telemetry.inventory.domain import DeviceFilter, NamePosition
from services.telemetry.inventory.query import DeviceQuery
from services.telemetry.reports import store as reports
from services.telemetry.reports.events import NewEvent, make_event
from services.telemetry.reports.state import State, StateReport
from tests.conftest import MakeKit

TENANTS = [UUID(int=number) for number in range(1, 6)]
SCOPES = [SYSTEM, Scope((TENANTS[0],)), Scope(tuple(TENANTS[:3])), Scope(tuple(TENANTS))]
START = now()


async def every_event(kit: Kit, scope: Scope, wanted: EventFilter, scan: int) -> list[UUID]:
    """All pages of three."""
    found: list[UUID] = []
    position: TimePosition | None = None
    while True:
        async with kit.database.transaction(scope) as connection:
            page = await event_store.list_events(connection, scope, wanted, position, 3, scan)
        assert len(page.items) <= 3
        found += [event.id for event in page.items]
        position = page.after
        if position is None:
            return found


async def every_device(kit: Kit, scope: Scope, wanted: DeviceFilter, scan: int) -> list[UUID]:
    found: list[UUID] = []
    position: NamePosition | None = None
    while True:
        async with kit.database.transaction(scope) as connection:
            page = await device_store.list_devices(
                connection, DeviceQuery(scope, wanted, position, 3, START, scan)
            )
        assert len(page.items) <= 3
        found += [device.id for device in page.items]
        position = page.after
        if position is None:
            return found


@pytest.fixture
async def kit(make_kit: MakeKit) -> Kit:
    return await make_kit("telemetry", tenants=[])


@pytest.mark.parametrize("scan", [1, 4, 1_000])
async def test_pages_of_events_miss_none_however_little_a_page_may_read(
    kit: Kit, scan: int
) -> None:
    """Whatever is looked for, by whomever; events of one moment, in several partitions."""
    chance = random.Random(7)
    stored = []
    later = START + timedelta(minutes=1)
    for number in range(60):
        event = make_event(
            event_id=str(number),
            type_=chance.choice(["app.installed", "update.failed", "disk_warning"]),
            occurred_at=START - timedelta(seconds=chance.randint(0, 12)),
            payload=None,
            value={"message": chance.choice(["firefox", "maps"])},
        )
        stored.append((UUID(int=chance.randint(1, 4)), chance.choice(TENANTS), event))
    async with kit.database.system_transaction("a test works on all rows") as connection:
        await reports.store_events(connection, stored[:30], (), START)
        await reports.store_events(connection, stored[30:], (), later)
    second = {event.id for _, _, event in stored[30:]}
    filters: list[tuple[EventFilter, Any]] = [
        (EventFilter(), lambda d, e: True),
        (EventFilter(type="update.failed"), lambda d, e: e.type == "update.failed"),
        (
            EventFilter(type="update.failed", severity="error", search="maps"),
            lambda d, e: (e.type, e.severity, e.message) == ("update.failed", "error", "maps"),
        ),
        (
            EventFilter(type="app.installed", device_id=UUID(int=2)),
            lambda d, e: d == UUID(int=2) and e.type == "app.installed",
        ),
        (EventFilter(severity="error"), lambda d, e: e.severity == "error"),
        (EventFilter(severity="info"), lambda d, e: e.severity == "info"),
        (EventFilter(search="FIRE"), lambda d, e: e.message == "firefox"),
        (EventFilter(search="nothing"), lambda d, e: False),
        (
            EventFilter(device_id=UUID(int=1), search="maps"),
            lambda d, e: d == UUID(int=1) and e.message == "maps",
        ),
        (
            EventFilter(occurred_from=START - timedelta(seconds=6), severity="warning"),
            lambda d, e: e.occurred_at >= START - timedelta(seconds=6) and e.severity == "warning",
        ),
        (EventFilter(received_from=later), lambda d, e: e.id in second),
        (
            EventFilter(received_before=later, type="update.failed"),
            lambda d, e: e.id not in second and e.type == "update.failed",
        ),
    ]
    for scope in SCOPES:
        for wanted, fits in filters:
            expected = [
                event
                for device, tenant, event in stored
                if (scope.tenant_ids is None or tenant in scope.tenant_ids) and fits(device, event)
            ]
            expected.sort(key=lambda e: (e.occurred_at, e.id.int), reverse=True)
            found = await every_event(kit, scope, wanted, scan)
            assert found == [event.id for event in expected], (scope, wanted)
            expected.sort(key=lambda e: (e.id in second, e.id.int), reverse=True)
            found = await every_event(kit, scope, replace(wanted, order=EventOrder.RECEIVED), scan)
            assert found == [event.id for event in expected], (scope, wanted, "received")


@pytest.mark.parametrize("scan", [1, 3, 1_000])
async def test_pages_of_devices_miss_none_however_little_a_page_may_read(
    kit: Kit, scan: int
) -> None:
    """Equal names, every filter, every scope."""
    chance = random.Random(8)
    devices = []
    for number in range(1, 51):
        state = State(START, None, disk_total_bytes=100, disk_free_bytes=chance.choice([1, 10, 90]))
        contact = START + timedelta(hours=chance.choice([-1, 1]))
        devices.append(StateReport(UUID(int=number), chance.choice(TENANTS), state, contact))
    async with kit.database.system_transaction("a test works on all rows") as connection:
        await reports.store_states(connection, devices)
        await connection.execute(
            "UPDATE telemetry.device SET name = 'same' WHERE id::text ~ '[0-4]$'"
        )
    filters: list[tuple[DeviceFilter, Any]] = [
        (DeviceFilter(), lambda d: True),
        (DeviceFilter(status="online"), lambda d: d.received_at >= START),
        (DeviceFilter(status="offline"), lambda d: d.received_at < START),
        (DeviceFilter(status="decommissioned"), lambda d: False),
        *(
            (DeviceFilter(health=health), lambda d, h=health: d.state.health.value == h)
            for health in ("healthy", "warning", "critical")
        ),
        (DeviceFilter(search="SAME"), lambda d: str(d.device_id)[-1] in "01234"),
        (DeviceFilter(search="0000-00000000002"), lambda d: 32 <= d.device_id.int < 48),
        (DeviceFilter(search="0-00000000002F"), lambda d: d.device_id.int == 47),
        (DeviceFilter(search="no such device"), lambda d: False),
        (
            DeviceFilter(search="same", health="critical"),
            lambda d: str(d.device_id)[-1] in "01234" and d.state.health.value == "critical",
        ),
        (
            DeviceFilter(search="000000", status="offline"),
            lambda d: d.received_at < START,
        ),
        (DeviceFilter(seen_before=START), lambda d: d.received_at < START),
    ]
    for scope in SCOPES:
        for wanted, fits in filters:
            expected = [
                device.device_id
                for device in devices
                if (scope.tenant_ids is None or device.tenant_id in scope.tenant_ids)
                and fits(device)
            ]
            found = await every_device(kit, scope, wanted, scan)
            assert sorted(found) == sorted(expected), (scope, wanted)


async def test_events_of_a_rare_type_are_on_the_first_page(kit: Kit) -> None:
    """Whoever asks, and however many others came since."""

    def event(number: int, type_: str) -> NewEvent:
        at = START + timedelta(seconds=number)
        return make_event(
            event_id=str(number), type_=type_, occurred_at=at, payload=None, value=None
        )

    events = [event(n, "rare" if n in (3, 4) else "app.installed") for n in range(60)]
    async with kit.database.system_transaction("a test works on all rows") as connection:
        stored = [(UUID(int=1), TENANTS[n % 2], one) for n, one in enumerate(events)]
        await reports.store_events(connection, stored, (), now())
    for scope in (SYSTEM, Scope(tuple(TENANTS[:3]))):
        async with kit.database.transaction(scope) as connection:
            page = await event_store.list_events(
                connection, scope, EventFilter(type="rare"), None, 10, 10
            )
        assert [one.id for one in page.items] == [events[4].id, events[3].id]
        assert page.after is None


async def test_tenants_without_rows_leave_their_share_to_the_others(kit: Kit) -> None:
    """A page of many tenants reads on where one of them has nearly all."""
    events = [
        make_event(
            event_id=str(number),
            type_="app.installed",
            occurred_at=START + timedelta(seconds=number),
            payload=None,
            value={"message": "wanted" if number < 50 else "no"},
        )
        for number in range(1_000)
    ]
    many = Scope((TENANTS[0], *(UUID(int=number) for number in range(1_000, 1_049))))
    async with kit.database.system_transaction("a test works on all rows") as connection:
        await reports.store_events(
            connection, [(UUID(int=1), TENANTS[0], one) for one in events], (), now()
        )
    async with kit.database.transaction(many) as connection:
        page = await event_store.list_events(
            connection, many, EventFilter(search="wanted"), None, 10, 1_000
        )
    assert [one.id for one in page.items] == [one.id for one in events[49:39:-1]]
