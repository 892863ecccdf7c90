"""What numbers stand for, whoever published them, and numbers drawn for devices."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib.resources import files
from uuid import UUID, uuid4

import asyncpg
import pytest
from prometheus_client import REGISTRY

from services.policy.stamps import store as stamps_store
from services.policy.stamps.cache import Cache
from services.policy.stamps.domain import Document
from tests.support.policy import ORG, TOKEN_LIFE, Admin, Device, World, verified, world
from tests.support.stack import PATIENCE

__all__ = ["world"]

FIRST = {"security": {"selinux_enforce": True}}
SECOND = {"security": {"selinux_enforce": True, "ssh_enabled": True}}


@asynccontextmanager
async def superuser(world: World) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await world.database.superuser()
    await connection.execute("SET evergreen.scope = '*'")
    try:
        yield connection
    finally:
        await connection.close()


def new_device(world: World, **token: timedelta) -> Device:
    return Device(world.kit, world.channel, uuid4(), ORG.id, **token)


async def move_to(world: World, version: int) -> None:
    """Brings back what an older number stands for, as a change of groups does."""
    async with superuser(world) as connection:
        await connection.execute(
            "UPDATE policy.assignments SET version = $1, changed_xid = pg_current_xact_id()"
            " WHERE tenant_id = $2",
            version,
            ORG.id,
        )


async def stamps(world: World) -> list[tuple[int, bool, str]]:
    async with superuser(world) as connection:
        rows = await connection.fetch(
            "SELECT version, stands, cause FROM policy.stamps ORDER BY version"
        )
    return [tuple(row) for row in rows]


async def drawn_for(device: Device, version: str) -> str:
    """The number that a device gets above its own, a moment later."""
    async with asyncio.timeout(PATIENCE):
        while (answer := await device.pull(version)).status_code == 304:
            await asyncio.sleep(0.05)
    return str(answer.json()["version"])


async def test_devices_that_move_alike_share_a_number(world: World) -> None:
    """Who has the content under an older number is left alone; the others get a new number."""
    policy = await world.admin.published(ORG.id, FIRST)
    stayed = new_device(world)
    assert (await stayed.pull("1")).status_code == 304
    await world.admin.call("UpdatePolicy", id=policy.id, bundle=SECOND, signed=True)
    await move_to(world, 1)
    moved = [new_device(world) for _ in range(5)]
    assert {await drawn_for(device, "2") for device in moved} == {"3"}
    pem = await world.pem()
    envelope = verified(pem, await moved[0].pull("2"))
    assert envelope["policy"]["security"]["ssh_enabled"] is False
    # Both numbers stand for it; a new token travels with the one that the device has.
    for has in ("1", "3"):
        assert (await stayed.pull(has)).status_code == 304
        old = new_device(world, age=TOKEN_LIFE / 2 + timedelta(days=1))
        assert verified(pem, await old.pull(has))["version"] == has
    assert (await new_device(world).pull()).json()["version"] == "3"
    over_grpc = await new_device(world).pull_grpc("2")
    payload = json.loads(over_grpc.statement.payload)
    assert (over_grpc.version, payload["version"]) == ("3", "3")
    assert await stamps(world) == [(1, True, "publish"), (2, True, "publish"), (3, True, "draw")]
    # A publish moves everybody to its number, as ever.
    await world.admin.call("RollbackPolicy", id=policy.id, version="1")
    for has in ("1", "2", "3"):
        assert verified(pem, await stayed.pull(has))["version"] == "4"
    assert (await stamps(world))[0] == (1, False, "publish")


async def test_numbers_that_nobody_gave_out_draw_none(world: World) -> None:
    """Nor do many moves within a minute: the eleventh device waits."""
    policy = await world.admin.published(ORG.id, FIRST)
    await world.admin.call("UpdatePolicy", id=policy.id, bundle=SECOND, signed=True)
    async with superuser(world) as connection:
        # As after a restore: numbers were left out.
        await connection.execute("UPDATE policy.version_counters SET last_version = 100")
    await world.admin.call("PublishPolicy", id=policy.id)
    await move_to(world, 1)
    assert await drawn_for(new_device(world), "2") == "102"
    await move_to(world, 101)
    assert await drawn_for(new_device(world), "102") == "103"
    await move_to(world, 1)
    await asyncio.sleep(1.2)
    liar = new_device(world)
    # Above the number that stands for it, and given to nobody.
    async with superuser(world) as connection:
        await connection.execute("UPDATE policy.version_counters SET last_version = 200")
    await move_to(world, 101)
    await world.admin.call("PublishPolicy", id=policy.id)
    await move_to(world, 1)
    await asyncio.sleep(1.2)
    assert (await liar.pull("150")).status_code == 304
    outcomes = "evergreen_policy_draws_total"
    assert REGISTRY.get_sample_value(outcomes, {"outcome": "unknown_number"})
    assert await drawn_for(liar, "201") == "202"
    version, wanted = 202, 101
    for _ in range(7):
        await move_to(world, wanted)
        version, wanted = int(await drawn_for(new_device(world), str(version))), 102 - wanted
    await move_to(world, wanted)
    await asyncio.sleep(1.2)
    assert (await new_device(world).pull(str(version))).status_code == 304
    assert REGISTRY.get_sample_value(outcomes, {"outcome": "deferred"})


async def test_nothing_is_drawn_without_the_database(world: World) -> None:
    """What is known is delivered, and a device that would need a new number waits."""
    policy = await world.admin.published(ORG.id, FIRST)
    await world.admin.call("UpdatePolicy", id=policy.id, bundle=SECOND, signed=True)
    await move_to(world, 1)
    await asyncio.sleep(1.5)
    admin = await world.database.servers.postgres.connect()
    assert admin is not None
    name = world.database.name
    await admin.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
    )
    assert (await new_device(world).pull("2")).status_code == 304
    assert verified(await world.pem(), await new_device(world).pull())["version"] == "1"
    await admin.execute(f"ALTER DATABASE {name} CONNECTION LIMIT -1")
    await admin.close()
    assert await drawn_for(new_device(world), "2") == "3"


async def test_a_feed_that_cannot_be_read_stops_no_delivery(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even by a defect: devices get what is known, as without the database."""
    await world.admin.published(ORG.id, FIRST)

    async def broken(*_: object) -> None:
        raise ValueError("a row that nobody can read")

    monkeypatch.setattr(stamps_store, "changed_since", broken)
    assert verified(await world.pem(), await new_device(world).pull())["version"] == "1"
    assert (await new_device(world).pull("1")).status_code == 304


async def test_what_was_in_force_before_is_stamped(world: World) -> None:
    """An upgrade finds every number that is in force standing for its document."""
    await world.admin.published(ORG.id, FIRST)
    await world.admin.published(ORG.id, SECOND)
    async with superuser(world) as connection:
        before = await connection.fetch("SELECT * FROM policy.stamps WHERE version = 2")
        await connection.execute(
            "DELETE FROM policy.stamps; DELETE FROM policy.signatures; DELETE FROM policy.documents"
        )
        migration = files("services.policy") / "migrations" / "0007_stamps_in_force.sql"
        await connection.execute(migration.read_text())
        after = await connection.fetch("SELECT * FROM policy.stamps")
    hidden = {"id", "changed_xid"}
    shown = [
        [{name: value for name, value in row.items() if name not in hidden} for row in rows]
        for rows in (before, after)
    ]
    assert shown[0] == shown[1]
    assert (await new_device(world).pull("2")).status_code == 304
    # A version of before that is not in force still carries a token.
    old = new_device(world, age=TOKEN_LIFE / 2 + timedelta(days=1))
    async with superuser(world) as connection:
        await connection.execute(
            "UPDATE policy.assignments SET policy_id = NULL, version = NULL,"
            " changed_xid = pg_current_xact_id()"
        )
    async with asyncio.timeout(PATIENCE):
        while (await new_device(world).pull()).status_code == 200:
            await asyncio.sleep(0.05)
    assert verified(await world.pem(), await old.pull("1"))["device_token"]


async def test_a_sister_sees_no_stamp(world: World) -> None:
    """What an organisation's numbers stand for is under its row security."""
    await world.admin.published(ORG.id, FIRST)
    connection = await asyncpg.connect(
        world.database.dsn("policy"),
        password=world.kit.settings.database_password_file.read_text().strip(),
    )
    try:
        for scope, rows in ((str(ORG.id), 1), (str(UUID(int=4)), 0), ("", 0)):
            await connection.execute("SELECT set_config('evergreen.scope', $1, false)", scope)
            for table in ("stamps", "documents", "signatures"):
                assert await connection.fetchval(f"SELECT count(*) FROM policy.{table}") == rows
    finally:
        await connection.close()
    assert await Admin(world.channel, ORG.id).call("ListPolicies")


def test_documents_have_a_bounded_amount_of_memory() -> None:
    """The ones that were not used for longest go first; one that is too large is not kept."""
    cache: Cache[str, Document] = Cache(10_000)
    document = Document(b"x" * 1_600, b"", "")
    for name in "abcde":
        cache.put(name, document)
    assert cache.full
    assert cache.get("a") is not None
    cache.put("f", document)
    assert [name in cache for name in "abf"] == [True, False, True]
    cache.put("f", Document(b"", b"", ""))
    assert not cache.full
    cache.put("g", Document(b"x" * 20_000, b"", ""))
    assert (cache.size, "g" in cache) == (0, False)


@pytest.mark.parametrize("limit", [1, 500_000])
async def test_what_has_no_room_is_read_again(
    world: World, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Memory bounds what is kept, and nothing that devices get."""
    monkeypatch.setattr(Cache, "full", limit == 1)
    monkeypatch.setattr(Cache, "put", lambda *_: None)
    await world.admin.published(ORG.id, FIRST)
    assert verified(await world.pem(), await new_device(world).pull())["version"] == "1"
