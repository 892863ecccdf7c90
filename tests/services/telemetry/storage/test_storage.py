"""Storage budgets: one device's flood fills neither the disk nor the budgets of others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prometheus_client import REGISTRY

from evergreen.v1 import device_pb2
from servicekit.call import Caller, CallerKind
from servicekit.errors import DomainError
from services.telemetry.reports import store as report_store
from services.telemetry.reports.events import BadEvent, NewEvent, quarantine
from services.telemetry.settings import TelemetrySettings
from services.telemetry.storage.service import Storage
from tests.conftest import MakeKit, ServeService
from tests.support.refusals import refusal
from tests.support.servers import TestDatabase
from tests.support.telemetry import ORG, STRANGER, Device, World, event, eventually, running

MIB = 1 << 20
SMALL: dict[str, Any] = {"device_event_bytes": MIB, "device_state_bytes": MIB}


def batch(begin: int, count: int = 4) -> list[dict[str, Any]]:
    """Events of 250 kB together."""
    return [event(n, payload={"x": "x" * 60_000}) for n in range(begin, begin + count)]


def refusals(what: str) -> float:
    return REGISTRY.get_sample_value("evergreen_storage_refused_total", {"what": what}) or 0.0


async def flood(device: Device, begin: int = 0) -> httpx.Response:
    """Sends until it is refused; answers the refusal."""
    answer: httpx.Response | None = None

    async def is_refused() -> bool:
        nonlocal begin, answer
        answer = await device.events(batch(begin))
        begin += 4
        return answer.status_code != 200

    await eventually(is_refused, 60)
    assert answer is not None
    return answer


@asynccontextmanager
async def world_with(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase, **settings: Any
) -> AsyncIterator[World]:
    async with running(make_kit, serve, database, **settings) as world:
        yield world


async def test_a_device_that_floods_is_refused_and_others_are_not(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase
) -> None:
    """With the limit, the reason and when to come again; and what it has stored stays."""
    async with world_with(make_kit, serve, database, **SMALL) as world:
        device, neighbour, stranger = world.device(), world.device(), world.device(STRANGER.id)
        before = refusals("device_events")
        answer = await flood(device)
        stored = await world.count()
        assert MIB <= stored * 60_000 < 3 * MIB
        assert answer.status_code == 429
        assert refusals("device_events") > before
        (info, retry) = answer.json()["details"]
        assert info["reason"] == "STORAGE_BUDGET_USED"
        assert info["metadata"] == {"limit": "device_events_a_day", "bytes": str(MIB)}
        assert str(MIB) in answer.json()["message"]
        now = datetime.now(UTC)
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        left = (midnight - now).total_seconds()
        assert left - 60 <= float(retry["retryDelay"][:-1]) <= left + 1_000
        assert int(answer.headers["retry-after"]) >= left - 60
        # In gRPC as well, and a state is something else.
        request = device_pb2.ReportEventsRequest(device_id=str(device.id))
        found = await refusal(device.grpc.ReportEvents(request, metadata=device.metadata))
        assert found.body["status"] == "RESOURCE_EXHAUSTED"
        assert (await device.state()).status_code == 200
        for other in (neighbour, stranger):
            assert (await other.events(batch(0))).json()["accepted"] == 4
        share = REGISTRY.get_sample_value("evergreen_storage_used_ratio", {"what": "device_events"})
        assert share is not None
        assert share >= 1

    # What is counted is there after a restart.
    async with world_with(make_kit, serve, database, **SMALL) as again:
        same = Device(again.http, again.channel, ORG.id, device.id)
        assert (await same.events(batch(1_000))).status_code == 429
        assert (await again.device().events(batch(0))).status_code == 200
    # And a larger budget counts at once.
    async with world_with(make_kit, serve, database, device_event_bytes=64 * MIB) as larger:
        same = Device(larger.http, larger.channel, ORG.id, device.id)
        assert (await same.events(batch(1_000))).json()["accepted"] == 4


async def test_a_queue_of_fifty_thousand_is_taken_whole(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase
) -> None:
    """What begins below the budget is stored, or a batch above it would never be."""
    async with world_with(make_kit, serve, database, **SMALL) as world:
        device = world.device()
        queued = [event(n) for n in range(50_000)]
        assert (await device.events(queued)).json()["accepted"] == 50_000
        (use,) = await world.rows(
            "SELECT * FROM telemetry.storage_use WHERE what = 'device_events'"
        )
        assert use["bytes"] > 50_000 * 256

        async def is_refused() -> bool:
            return (await device.events([event("more")])).status_code == 429

        await eventually(is_refused, 60)
        assert (await world.device().events([event("other")])).status_code == 200


async def test_states_have_a_budget_of_their_own(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase
) -> None:
    """A device that sends large ones all the time writes, too."""
    async with world_with(make_kit, serve, database, **SMALL) as world:
        device = world.device()

        async def is_refused() -> bool:
            return (await device.state(last_error="x" * 60_000)).status_code == 429

        await eventually(is_refused, 60)
        assert (await device.events([event(1)])).status_code == 200
        assert (await world.device().state()).status_code == 200


async def test_an_organisation_has_a_budget_for_the_devices_that_it_has(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase
) -> None:
    """Many devices that each keep to theirs do not fill the disk of other organisations."""
    settings = {"tenant_event_bytes": MIB, "tenant_event_bytes_per_device": MIB // 2}
    async with world_with(make_kit, serve, database, **settings) as world:
        # Two are one mebibyte's worth, as is the least; a third one, in another place, is not.
        devices = [world.device() for _ in range(2)]
        for device in devices:
            assert (await device.events([event(0)])).status_code == 200
        answer = await flood(devices[0])
        assert answer.json()["details"][0]["metadata"]["limit"] == "tenant_events_a_day"
        assert (await devices[1].events(batch(0))).status_code == 429
        assert (await world.device(STRANGER.id).events(batch(0))).status_code == 200


def told(count: int = 1, size: int = 300_000) -> list[NewEvent]:
    moment = datetime(2026, 11, 29, tzinfo=UTC)
    return [
        NewEvent(uuid4(), str(uuid4()), "t", "info", "t", f'"{"x" * size}"', moment)
        for _ in range(count)
    ]


async def test_processes_count_together_and_every_day_begins_anew(make_kit: MakeKit) -> None:
    """A device that spreads its flood over all replicas has one budget; what was refused is taken
    on the next day."""
    now = datetime(2026, 11, 29, 23, tzinfo=UTC)
    kit = await make_kit("telemetry", TelemetrySettings, tenants=[], **SMALL)
    assert isinstance(kit.settings, TelemetrySettings)
    one, two, three = (Storage(kit.database, kit.settings, lambda: now) for _ in range(3))
    tenant, device = UUID(int=1), UUID(int=2)
    caller = Caller(CallerKind.DEVICE, id=str(device), tenant_id=str(tenant))
    for storage in (one, two):
        storage.note_events(device, tenant, 600_000)
        storage.require_events(caller)
        await storage.tell()
    with pytest.raises(DomainError, match="2026-11-30T00:00Z"):
        two.require_events(caller)
    await one.tell()
    await three.load()
    for storage in (one, three):
        with pytest.raises(DomainError, match="device stored 1048576 bytes of events today"):
            storage.require_events(caller)
        storage.require_states(caller)
        storage.require_events(Caller(CallerKind.DEVICE, id=str(tenant), tenant_id=str(tenant)))
    now += timedelta(hours=2)
    for storage in (one, two, three):
        await storage.tell()
        storage.require_events(caller)
    # Nothing of a week ago is kept.
    now += timedelta(days=9)
    await one.tell()
    async with kit.database.system_transaction("a test works on all rows") as connection:
        assert await connection.fetchval("SELECT count(*) FROM telemetry.storage_use") == 0


async def test_rows_that_are_no_budgets_stop_no_service(make_kit: MakeKit) -> None:
    """What a later release counts, a limit of nothing, a sum that is too large: all others count
    on, at the start too."""
    kit = await make_kit("telemetry", TelemetrySettings, tenants=[], **SMALL)
    assert isinstance(kit.settings, TelemetrySettings)
    tenant, device, full = UUID(int=1), UUID(int=2), UUID(int=3)
    async with kit.database.system_transaction("a test works on all rows") as connection:
        await connection.executemany(
            "INSERT INTO telemetry.storage_use (day, what, subject, tenant_id, bytes, limit_bytes)"
            " VALUES ('2026-11-29', $1, $2, $3, $4, $5)",
            [
                ("device_photos", device, tenant, 9, 9),
                ("device_events", full, tenant, 2**63 - 1, 0),
                ("tenant_events", tenant, tenant, 0, 0),
            ],
        )
    storage = Storage(kit.database, kit.settings, lambda: datetime(2026, 11, 29, tzinfo=UTC))
    await storage.load()
    for subject in (full, device):
        storage.note_events(subject, tenant, 2 * MIB)
    await storage.tell()
    for subject in (full, device):
        with pytest.raises(DomainError, match="device stored 1048576 bytes of events today"):
            storage.require_events(
                Caller(CallerKind.DEVICE, id=str(subject), tenant_id=str(tenant))
            )


def bad(size: int) -> BadEvent:
    return quarantine(uuid4().bytes.hex().encode() + b"x" * size, "reason")


async def test_quarantines_are_bounded_in_bytes(make_kit: MakeKit) -> None:
    """A device keeps its latest; of an organisation the device with most gives way."""
    bounds = {"device_quarantine_bytes": MIB, "tenant_quarantine_bytes": 2 * MIB}
    kit = await make_kit("telemetry", TelemetrySettings, tenants=[], **bounds)
    assert isinstance(kit.settings, TelemetrySettings)
    storage = Storage(kit.database, kit.settings, lambda: datetime(2026, 11, 29, tzinfo=UTC))
    tenant, other = UUID(int=1), UUID(int=2)

    async def keep(owner: UUID, device: UUID, *events: BadEvent) -> None:
        async with kit.database.system_transaction("a test works on all rows") as connection:
            rows = [(device, owner, event) for event in events]
            sizes = await report_store.quarantine(
                connection, rows, datetime(2026, 11, 29, tzinfo=UTC)
            )
            await storage.trim_quarantines(connection, sizes)
        storage.note_quarantined({device: owner}, sizes)
        await storage.tell()

    async def kept(owner: UUID) -> dict[UUID, tuple[int, int]]:
        """As it is counted, and as it is."""
        async with kit.database.system_transaction("a test works on all rows") as connection:
            counted = await connection.fetch(
                "SELECT device_id, bytes, events FROM telemetry.quarantine_use"
                " WHERE tenant_id = $1",
                owner,
            )
            found = await connection.fetch(
                "SELECT device_id, sum(octet_length(content)) AS bytes, count(*) AS events"
                " FROM telemetry.quarantined_event WHERE tenant_id = $1 GROUP BY device_id",
                owner,
            )
        assert sorted(map(tuple, counted)) == sorted(map(tuple, found))
        return {row["device_id"]: (row["bytes"], row["events"]) for row in found}

    quiet = UUID(int=10)
    await keep(tenant, quiet, bad(1_000))
    await keep(tenant, UUID(int=11), *(bad(100_000) for _ in range(30)))
    size, events = (await kept(tenant))[UUID(int=11)]
    assert MIB * 3 // 4 < size <= MIB
    assert events == size // 100_000
    # One that is larger than the bound is kept alone: it was acknowledged.
    latest = bad(3 * MIB)
    await keep(tenant, UUID(int=11), latest)
    assert (await kept(tenant))[UUID(int=11)] == (len(latest.content), 1)
    for number in range(12, 18):
        await keep(other, UUID(int=number), *(bad(100_000) for _ in range(9)))
    sizes = await kept(other)
    assert len(sizes) == 6
    assert sum(size for size, _ in sizes.values()) <= 2 * MIB + 900_000 // 64
    assert (await kept(tenant))[quiet] == (1_032, 1)
