"""So many devices get a version within a minute, over all processes, and no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from evergreen.v1 import policy_pb2
from servicekit.rpc.channels import open_channel
from services.policy.__main__ import build
from services.policy.rollouts import worker
from services.policy.settings import PolicySettings
from tests.conftest import MakeKit, ServeService
from tests.services.policy.rollouts.school import NEW, School, opened
from tests.services.policy.rollouts.test_rollouts import with_devices
from tests.support.neighbours import until_ready
from tests.support.policy import ORG, TREE, Device
from tests.support.servers import TestDatabase
from tests.support.stack import PATIENCE

THREE = policy_pb2.RolloutPlan(
    batches=[policy_pb2.RolloutBatch(name="all", percent=100, soak="10m")], max_per_minute=3
)


@pytest_asyncio.fixture
async def school(
    make_kit: MakeKit,
    serve: ServeService,
    database: TestDatabase,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[School]:
    monkeypatch.setattr(worker, "LOOK_SECONDS", 0.25)
    async with opened(make_kit, serve, database) as found:
        # In the middle of a minute.
        found.now = found.now.replace(second=30)
        yield found


async def tried(school: School, wanted: int) -> None:
    """All poll until so many have the new version, and no more get it however often they poll."""
    async with asyncio.timeout(PATIENCE):
        while len(school.having("https://new")) < wanted:
            await school.poll()
            await asyncio.sleep(0.1)
    for _ in range(3):
        await asyncio.sleep(0.4)
        await school.poll()
    assert len(school.having("https://new")) == wanted


async def test_a_version_comes_at_its_pace(school: School) -> None:
    """The others are left alone until later minutes; one that was given it gets it again. The last
    batch does not end while too many wait."""
    policy_id = await with_devices(school, 8)
    begun = await school.roll_out(NEW, THREE, policy_id)
    assert begun.plan.max_per_minute == 3
    await tried(school, 3)
    assert len(school.having("https://old")) == 5
    found = await school.counted(begun.id, served=3, applied=3)
    assert found.counts.waiting == 5
    school.later(minutes=1)
    stuck = school.having("https://old")
    for laptop in stuck:
        laptop.applies = False
    await school.poll()
    asked = [one for one in stuck if one.numbers[-1] != one.has]
    assert len(asked) == 3
    found = await school.counted(begun.id, served=6)
    # Those that did not apply it are given it anew, without another turn.
    assert await school.poll(asked) == 3
    for laptop in stuck:
        laptop.applies = True
    await school.poll(asked)
    assert len(school.having("https://new")) == 6
    school.later(minutes=1)
    await tried(school, 8)


async def test_one_device_takes_no_turns_of_others(school: School) -> None:
    """One that asks for the same again, many times at once, has one turn of a minute."""
    policy_id = await with_devices(school, 4)
    await school.roll_out(NEW, THREE, policy_id)
    greedy, *others = school.laptops
    greedy.applies = False
    async with asyncio.timeout(PATIENCE):
        while not any(await asyncio.gather(*(greedy.poll() for _ in range(6)))):
            await asyncio.sleep(0.1)
    async with asyncio.timeout(PATIENCE):
        while len(school.having("https://new")) < 2:
            await school.poll(others)
            await asyncio.sleep(0.1)
    await school.poll(others)
    assert len(school.having("https://new")) == 2


async def test_the_last_batch_waits_for_those_that_wait(school: School) -> None:
    """At its end all get it that ask; so it does not end while more ask than have a turn."""
    policy_id = await with_devices(school, 10)
    begun = await school.roll_out(NEW, THREE, policy_id)
    await tried(school, 3)
    school.later(minutes=11)
    await tried(school, 6)
    found = await school.counted(begun.id, served=6, applied=6)
    school.later(minutes=11)
    # Another four, and the end for the last one.
    await school.poll()
    done = await school.looked("COMPLETED", begun.id)
    assert found.state == "RUNNING"
    assert done.counts.waiting <= 3
    await school.quiet()
    assert len(school.having("https://new")) == 10


async def test_two_processes_share_the_turns(
    school: School, make_kit: MakeKit, serve: ServeService
) -> None:
    """Each device is answered by whichever process; a minute has three turns in all."""
    policy_id = await with_devices(school, 10)
    settings = {
        name: f"{getattr(school.world.kit.settings, name)}2"
        for name in ("grpc_listen", "internal_listen", "http_listen")
    }
    twin = await make_kit("policy", PolicySettings, tenants=TREE, **settings)
    await serve(replace(twin, clock=lambda: school.now), build)
    channel = open_channel(twin.settings.grpc_listen, "test")
    await until_ready(channel)
    for laptop in school.laptops[::2]:
        laptop.device = Device(twin, channel, laptop.device.id, ORG.id)
    await school.roll_out(NEW, THREE, policy_id)
    for minute in range(3):
        await tried(school, 3 * (minute + 1))
        school.later(minutes=1)
    await channel.close()
