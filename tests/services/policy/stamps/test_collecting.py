"""Documents go when no device has or is to have them, and numbers stay."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from prometheus_client import REGISTRY

from servicekit.rpc.channels import open_channel
from services.policy.__main__ import build
from services.policy.settings import PolicySettings
from services.policy.stamps import collecting
from services.policy.stamps.collecting import Collector
from tests.conftest import MakeKit, ServeService
from tests.services.policy.stamps.test_stamps import FIRST, SECOND, superuser
from tests.services.policy.targets.test_targets import delivered, new_device
from tests.support.neighbours import until_ready
from tests.support.policy import ORG, RESELLER, TOKEN_LIFE, TREE, Admin, Device, World, world
from tests.support.stack import PATIENCE

__all__ = ["world"]


async def collected(world: World, *, days: int) -> None:
    """A round some days from now."""
    now = datetime.now(UTC) + timedelta(days=days)
    collector = Collector(world.kit.database, lambda: now)
    while await collector.step():
        pass


async def _count(world: World, table: str) -> int:
    async with superuser(world) as connection:
        found: int = await connection.fetchval(f"SELECT count(*) FROM policy.{table}")
    return found


async def _reports(world: World, device: Device, version: int) -> None:
    """Lets a device say what it has, until that is written."""
    await device.pull(str(version))
    async with superuser(world) as connection, asyncio.timeout(PATIENCE):
        while version != await connection.fetchval(
            "SELECT version FROM policy.applied_versions WHERE device_id = $1", device.id
        ):
            await asyncio.sleep(0.05)


async def test_a_document_goes_when_no_device_has_it(
    world: World, make_kit: MakeKit, serve: ServeService
) -> None:
    """Not before it was unused for a while; a round looks at some at a time. What a device that
    comes back with its number is answered is no error."""
    district = Admin(world.channel, RESELLER.id)
    above = await district.published(RESELLER.id, FIRST)
    device = new_device(world)
    first, _ = await delivered(world, device)
    await _reports(world, device, first)
    await district.call("UpdatePolicy", id=above.id, bundle=SECOND, signed=True)
    second, _ = await delivered(world, device, first)
    for days in (0, 8, 16):
        await collected(world, days=days)
        assert await _count(world, "documents") == 2
    await _reports(world, device, second)
    numbers = await _count(world, "stamps")
    counted = REGISTRY.get_sample_value("evergreen_policy_documents_collected_total") or 0
    for days, left in ((0, 2), (6, 2), (8, 1), (16, 1)):
        await collected(world, days=days)
        assert await _count(world, "documents") == left
    assert await _count(world, "signatures") == 1
    assert await _count(world, "stamps") == numbers
    assert REGISTRY.get_sample_value("evergreen_policy_documents_collected_total") == counted + 1
    returned = new_device(world)
    assert (await delivered(world, returned, first))[0] == second
    # Nothing is in force any more: an old token is renewed with what the device has. Another
    # process has no document in memory.
    await district.call("WithdrawPolicy", id=above.id)
    async with asyncio.timeout(PATIENCE):
        while (await returned.pull(str(first))).status_code == 200:
            await asyncio.sleep(0.05)
    settings = {
        name: f"{getattr(world.kit.settings, name)}2"
        for name in ("grpc_listen", "internal_listen", "http_listen")
    }
    kit = await make_kit("policy", PolicySettings, tenants=TREE, **settings)
    await serve(kit, build)
    channel = open_channel(kit.settings.grpc_listen, "test")
    await until_ready(channel)
    old = Device(kit, channel, device.id, ORG.id, age=TOKEN_LIFE / 2 + timedelta(1))
    assert (await old.pull(str(second))).json()["version"] == str(second)
    assert (await old.pull(str(first))).status_code == 304
    await channel.close()


async def test_rounds_look_at_some_documents_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "_AT_ONCE", 1)
    policy = await world.admin.published(ORG.id, FIRST)
    await world.admin.call("UpdatePolicy", id=policy.id, bundle=SECOND, signed=True)
    for days in (0, 8):
        await collected(world, days=days)
    assert await _count(world, "documents") == 1


async def test_what_is_needed_again_is_stored_again(world: World) -> None:
    """Also by who publishes it while it goes."""
    policy = await world.admin.published(ORG.id, FIRST)
    await world.admin.call("UpdatePolicy", id=policy.id, bundle=SECOND, signed=True)
    device = new_device(world)
    has, _ = await delivered(world, device)
    async with superuser(world) as connection:
        going = connection.transaction()
        await going.start()
        gone = await connection.fetchrow(
            "SELECT tenant_id, digest FROM policy.documents"
            " WHERE digest = (SELECT digest FROM policy.stamps WHERE version = 1) FOR UPDATE"
        )
        assert gone is not None
        await _delete(connection, gone)
        again = asyncio.create_task(
            world.admin.call("RollbackPolicy", id=policy.id, version="1"), name="rollback"
        )
        await asyncio.sleep(0.5)
        assert not again.done()
        await going.commit()
        await again
    _, got = await delivered(world, device, has)
    assert got["security"]["ssh_enabled"] is False
    # Who holds one keeps it from going.
    await world.admin.call("UpdatePolicy", id=policy.id, bundle=SECOND, signed=True)
    await collected(world, days=0)
    async with superuser(world) as connection, connection.transaction():
        await connection.execute("SELECT FROM policy.documents FOR KEY SHARE")
        await collected(world, days=8)
    assert await _count(world, "documents") == 2
    await collected(world, days=8)
    assert await _count(world, "documents") == 1


async def _delete(connection: asyncpg.Connection[asyncpg.Record], gone: asyncpg.Record) -> None:
    for table in ("signatures", "documents"):
        await connection.execute(
            f"DELETE FROM policy.{table} WHERE tenant_id = $1 AND digest = $2", *gone.values()
        )
