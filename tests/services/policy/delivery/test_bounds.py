"""One device, whatever it does, costs the others nothing and fills no log."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from services.policy import freshness
from services.policy.bounds import Hourly
from services.policy.delivery import service as delivery_service
from services.policy.delivery.tokens import AWAY_SECONDS, TOKENS_AN_HOUR
from tests.services.policy.delivery.test_delivery import DOCUMENT, HALF, new_device
from tests.services.policy.gate.fleet import opened
from tests.services.policy.gate.test_attacks import rotated, with_old_token
from tests.services.policy.targets.test_targets import for_groups, publish
from tests.support.policy import ORG, World, world
from tests.support.stack import PATIENCE

__all__ = ["world"]

_DRAWS = 3


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_service, "DRAWS_AN_HOUR", _DRAWS)


async def _told(world: World) -> int:
    actions = [event["data"]["action"] for event in await world.events()]
    return actions.count("policy.device_token_rotated")


async def test_a_device_that_keeps_its_old_token_fills_no_audit_log(world: World) -> None:
    """It is answered all the same, and others get theirs."""
    await world.admin.published(ORG.id, DOCUMENT)
    device = new_device(world, age=HALF)
    answers = [await device.pull("1") for _ in range(4 * TOKENS_AN_HOUR)]
    codes = [answer.status_code for answer in answers]
    assert codes == [200] * TOKENS_AN_HOUR + [304] * 3 * TOKENS_AN_HOUR
    # What it lacks it gets, without a token.
    late = await device.pull()
    assert (late.status_code, "device_token" in late.json()) == (200, False)
    assert await _told(world) == len(world.neighbours.identity.issued) == TOKENS_AN_HOUR
    assert (await new_device(world, age=HALF).pull("1")).json()["device_token"]


async def test_nobody_waits_for_an_identity_that_hangs(world: World) -> None:
    """But the one that found out."""
    await world.admin.published(ORG.id, DOCUMENT)
    identity = world.neighbours.identity
    identity.at_once = asyncio.Barrier(2)
    assert (await new_device(world, age=HALF).pull("1")).status_code == 304
    assert len(identity.issued) == 1
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(10):
        device = new_device(world, age=HALF)
        assert (await device.pull("1")).status_code == 304
        assert (await device.pull()).status_code == 200
    # On a busy machine the polls take longer than nobody waits for it.
    assert len(identity.issued) <= 1 + (loop.time() - began) // AWAY_SECONDS


async def test_nobody_waits_for_a_registry_that_hangs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But one device at a time, which finds out when it is back."""
    monkeypatch.setattr(freshness, "AWAY_SECONDS", 0.0)
    registry = world.neighbours.registry
    group = registry.group(ORG.id, "staff", 1)
    await publish(world, DOCUMENT, for_groups(group))
    is_back = asyncio.Event()

    async def hang() -> None:
        await is_back.wait()

    registry.before_answer = hang
    await world.admin.published(ORG.id, DOCUMENT)
    monkeypatch.setattr(freshness, "WAIT_SECONDS", 0.3)
    assert (await new_device(world).pull()).status_code == 200
    monkeypatch.setattr(freshness, "WAIT_SECONDS", 10 * PATIENCE)
    calls = [asyncio.create_task(new_device(world).pull()) for _ in range(20)]
    async with asyncio.timeout(PATIENCE):
        while sum(call.done() for call in calls) < 19:
            await asyncio.sleep(0.01)
    assert not all(call.done() for call in calls)
    is_back.set()
    assert {answer.status_code for answer in await asyncio.gather(*calls)} == {200}


async def test_no_device_has_all_numbers_of_its_organisation(world: World) -> None:
    """One that lies about what it has gets some, and then keeps what it has."""
    fleet = await opened(world, "FAILED", "VERIFIED")
    await fleet.enforce(1)
    await fleet.have("other", "normal")
    liar = with_old_token(fleet)
    got = []
    for turn in range(_DRAWS + 2):
        answer = await liar.pull(await rotated(fleet, f"secret{turn}"))
        assert "secret" not in answer.text
        got.append(answer.status_code)
    assert got == [200] * _DRAWS + [304] * 2


def test_an_hour_later_there_are_more() -> None:
    """What came to nothing is not counted."""
    now = datetime(2026, 11, 30, tzinfo=UTC)
    times = [now]
    bound = Hourly(2, lambda: times[-1])
    assert [bound.take("a") for _ in range(3)] == [True, True, False]
    bound.give_back("a")
    assert (bound.take("a"), bound.take("a"), bound.take("b")) == (True, False, True)
    bound.give_back("c")
    times.append(now + timedelta(hours=1))
    assert bound.take("a")
