"""One bad row, and all that goes on around it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from nats.js import JetStreamContext
from prometheus_client import REGISTRY

from cli.doctor import database as doctor
from cli.doctor.database import Login
from cli.doctor.finding import findings
from contract.events.identity.sign_in import LoginAttempt, LoginFailed
from contract.subjects import EVENTS
from deploy.launcher.home import password
from deploy.launcher.postgres import MIGRATOR_SECRET
from deploy.postgres import roles
from servicekit.app import Kit
from servicekit.data import quarantine
from servicekit.data.quarantine import Keeper
from servicekit.messaging.events import CloudEvent
from tests.conftest import MakeKit
from tests.support.servers import Servers, TestDatabase
from tests.support.stack import PATIENCE
from tests.support.streams import read_stream


@pytest.fixture(autouse=True)
def _no_notes_of_others() -> None:
    """Other tests of this process may have left notes that no service took."""
    quarantine._waiting.clear()


@pytest_asyncio.fixture
async def jetstream(servers: Servers) -> AsyncIterator[JetStreamContext]:
    client = await servers.operator()
    yield client.jetstream()
    await client.close()


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await check():
            await asyncio.sleep(0.05)


def counted(where: str) -> float:
    return REGISTRY.get_sample_value("evergreen_rows_quarantined_total", {"where": where}) or 0.0


@contextlib.asynccontextmanager
async def relaying(kit: Kit) -> AsyncIterator[None]:
    tasks = [
        asyncio.create_task(kit.outbox.run(kit.messaging)),
        asyncio.create_task(Keeper(kit.database, kit.context).run()),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def write(kit: Kit, tenant: UUID, text: str = "") -> str:
    event = CloudEvent(LoginFailed(id=tenant, after=LoginAttempt(email=text)), tenant)
    async with kit.database.system_transaction("a test works on all rows") as connection:
        await kit.outbox.append(connection, event)
    return str(event.id)


async def received(jetstream: JetStreamContext, tenant: UUID) -> list[str]:
    """The ids of what the stream has of a tenant."""
    messages = await read_stream(jetstream, EVENTS.name, f"evergreen.v1.{tenant}.>")
    return [m["id"] for m in messages]


async def notes(kit: Kit) -> dict[str, str]:
    async with kit.database.system_transaction("a test works on all rows") as connection:
        rows = await connection.fetch(f"SELECT key, reason FROM {kit.context}.quarantined_row")
    return {row["key"]: row["reason"] for row in rows}


def owner(servers: Servers, database: TestDatabase) -> Login:
    return Login(
        servers.postgres.dsn(roles.MIGRATOR, database.name),
        servers.home.secret(MIGRATOR_SECRET, password),
    )


async def test_an_event_that_nobody_can_publish_stops_no_other(
    make_kit: MakeKit, jetstream: JetStreamContext, servers: Servers, database: TestDatabase
) -> None:
    """Neither its own tenant's nor another's. It is noted, told by the doctor, kept, left alone,
    and published when the service starts again and can."""
    kit = await make_kit("identity")
    tenant, other = uuid4(), uuid4()
    before = counted("identity.outbox")
    large = await write(kit, tenant, text="x" * (4 << 20))
    ours, theirs = await write(kit, tenant), await write(kit, other)
    connection = await database.superuser()
    try:
        # A space would end the subject, and the server would close the connection.
        for subject in ("no subject", f"evergreen.v1.{tenant}.identity.a b", "x", ""):
            await connection.execute(
                "INSERT INTO identity.outbox (id, subject, payload, created_at)"
                " VALUES (gen_random_uuid(), $1, '{}', '-infinity')",
                subject,
            )
        async with relaying(kit):
            await eventually(lambda: _has(received(jetstream, tenant), ours))
            await eventually(lambda: _has(received(jetstream, other), theirs))

            async def all_noted() -> bool:
                return len(await notes(kit)) == 5

            await eventually(all_noted)
            assert "MaxPayload" in (await notes(kit))[large]
            assert counted("identity.outbox") == before + 5
            since = await connection.fetchval("SELECT max(quarantined_at) FROM identity.outbox")
            later = await write(kit, tenant)
            await eventually(lambda: _has(received(jetstream, tenant), later))
            # Nobody tries them again and again.
            assert since == await connection.fetchval(
                "SELECT max(quarantined_at) FROM identity.outbox"
            )
        found = findings(await doctor.checks(owner(servers, database)))
        (finding,) = [f for f in found if f.code == "ROWS_QUARANTINED"]
        assert "identity left out 5 rows" in finding.what
        # What would have to be repaired, is; the next start publishes it.
        assert await connection.fetchval("SELECT count(*) FROM identity.outbox") == 8
        await connection.execute(
            "UPDATE identity.outbox SET payload = replace(payload, repeat('x', 1000), '')"
            " WHERE id = $1",
            UUID(large),
        )
        quarantine._remembered.clear()
        again = await make_kit("identity")
        async with relaying(again):
            await eventually(lambda: _has(received(jetstream, tenant), large))

            async def forgotten() -> bool:
                return large not in await notes(again) and len(await notes(again)) == 4

            await eventually(forgotten)
    finally:
        await connection.close()


async def _has(ids: Awaitable[list[str]], wanted: str) -> bool:
    return wanted in await ids


async def test_notes_are_bounded(make_kit: MakeKit, database: TestDatabase) -> None:
    """In number, in length, and in how often a row is noted; the latest stay."""
    kit = await make_kit("policy")
    where = quarantine.place("policy", "test")
    keeper = Keeper(kit.database, "policy")
    before = counted(where)
    for number in range(quarantine.MOST_KEPT - 1):
        quarantine.note(where, number, ValueError("x"))
    await keeper.write()
    quarantine.note(where, "long", ValueError("x" * 10_000))
    for key in ("a\0b", "\ud800", "k" * 10_000, "k" * 10_000):
        quarantine.note(where, key, "bad")
    quarantine.note("identity.test", "another service's", "bad")
    await keeper.write()
    assert counted(where) == before + quarantine.MOST_KEPT + 3
    found = await notes(kit)
    assert len(found) == quarantine.MOST_KEPT
    assert {"a\ufffdb", "?", "k" * 200} <= set(found)
    assert max(map(len, found.values())) <= 500
    connection = await database.superuser()
    try:
        await connection.execute(
            "UPDATE policy.quarantined_row SET last_seen = now() - interval '31 days',"
            " place = CASE key WHEN '?' THEN 'policy.outbox' ELSE place END"
        )
        quarantine.note(where, "new", "bad")
        await keeper.write()
        assert set(await notes(kit)) == {"?", "new"}
    finally:
        await connection.close()
