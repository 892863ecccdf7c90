"""What holds for events and states: acknowledged after commit, and bounded."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest

from evergreen.v1 import device_pb2
from servicekit.rpc.server import H_ERROR
from tests.conftest import MakeKit, ServeService
from tests.support.servers import TestDatabase
from tests.support.telemetry import (
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

__all__ = ["world"]


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


async def test_a_device_that_was_just_approved_does_not_wait_for_the_registrys_word(
    world: World,
) -> None:
    """It has its token before the services hear that it waits no longer."""
    waiting, out = world.device(), world.device()
    world.registry.tell(waiting.id, status="pending")
    world.registry.tell(out.id, status="decommissioned")

    async def heard() -> bool:
        return (await out.state()).status_code == 401

    await eventually(heard, 60)
    assert (await waiting.state()).status_code == 200


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
    assert await world.count() == 200


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
    assert await world.count() == await world.count("device") == 0
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
        assert await world.count() == 10 * codes.count(200)
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


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No place that is kept, and no wait for one, ends by itself during a test."""
    for name in ("_KEPT_SECONDS", "PATIENCE_SECONDS"):
        monkeypatch.setattr(f"services.telemetry.reports.service.{name}", 600.0)


@pytest.mark.usefixtures("unhurried")
async def test_a_device_that_tells_its_queue_is_let_finish(
    make_kit: MakeKit,
    serve: ServeService,
    database: TestDatabase,
) -> None:
    """Between its old states its place is kept: a refusal would make it tell all of them again."""
    old = [f"2026-11-23T0{hour}:00:00Z" for hour in range(3)]
    async with running(make_kit, serve, database, emptied_queues=1, waiting_queues=0) as world:
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


@pytest.mark.usefixtures("unhurried")
async def test_some_devices_wait_until_others_have_told_their_queues(
    make_kit: MakeKit,
    serve: ServeService,
    database: TestDatabase,
) -> None:
    """They are many that come in one moment, and would all come back in one again."""
    old = "2026-11-23T00:00:00Z"
    async with running(make_kit, serve, database, emptied_queues=1, waiting_queues=1) as world:
        returning = world.device()
        assert (await returning.state(timestamp=old)).status_code == 200
        calls = {asyncio.create_task(world.device().state(timestamp=old)) for _ in range(2)}
        # There is room for one to wait; and once the other one is refused, it does.
        refused, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        (answer,) = (call.result() for call in refused)
        assert answer.status_code == 429
        assert answer.json()["details"][0]["reason"] == "TOO_MANY_QUEUES"
        assert (await returning.state()).status_code == 200
        (answer,) = await asyncio.gather(*waiting)
        assert answer.status_code == 200


@pytest.mark.usefixtures("unhurried")
async def test_a_large_old_state_does_not_wait_in_memory(
    make_kit: MakeKit,
    serve: ServeService,
    database: TestDatabase,
) -> None:
    """It is told to come later, as if there were no room to wait."""
    old = "2026-11-23T00:00:00Z"
    apps = [{"id": f"org.example.{n:0>80}", "version": "1", "branch": "stable"} for n in range(600)]
    async with running(make_kit, serve, database, emptied_queues=1) as world:
        returning, large = world.device(), world.device()
        assert (await returning.state(timestamp=old)).status_code == 200
        refused = await large.state(timestamp=old, installed_apps=apps)
        assert refused.status_code == 429
        assert refused.json()["details"][0]["reason"] == "TOO_MANY_QUEUES"
        assert (await returning.state()).status_code == 200
        assert (await large.state(timestamp=old, installed_apps=apps)).status_code == 200
