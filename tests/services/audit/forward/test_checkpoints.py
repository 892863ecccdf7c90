"""Once an hour a forwarder says where the log is: a receiver's copy convicts who rewrites it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from auditlog.keys import read_keys
from auditlog.notes import TreeCheckpoint
from tests.services.audit.forward.conftest import StartWorld, World
from tests.services.audit.forward.test_syslog import create, listening
from tests.support.audit import event
from tests.support.receivers import Posted

TOLD = "audit.checkpoint"


def told(world: World) -> list[dict[str, Any]]:
    return [e for e in world.receiver.events if e["data"]["action"] == TOLD]


async def noted_at(world: World) -> Any:
    """When a forwarder was told a checkpoint last, as it is noted."""
    (row,) = await world.audit.sql("SELECT checkpoint_at FROM audit.forwarder_state")
    return row["checkpoint_at"]


async def test_a_webhook_is_told_the_checkpoint(world: World) -> None:
    """Each hour, behind what waits; it is signed, and is no entry of the log."""
    await world.record(event(1), event(2))
    await world.create()
    await world.receiver.until_events(2)
    assert told(world) == []
    noted = set()
    for hours in (1, 2):
        world.time.move(hours=1)
        await world.receiver.until(lambda hours=hours: len(told(world)) == hours)
        # The next hour begins when the answer was noted.
        async with asyncio.timeout(60):
            while (at := await noted_at(world)) in {None, *noted}:
                await asyncio.sleep(0.02)
        noted.add(at)
    first, second = told(world)
    assert first["id"] != second["id"]
    assert "auditsequence" not in first
    said = first["data"]["after"]
    newest = (await world.audit.entries())[0]
    assert (said["sequence"], said["hash"]) == (newest.sequence, newest.hash)
    checkpoint = TreeCheckpoint.read(said["note"])
    assert (checkpoint.origin, checkpoint.size) == (said["origin"], said["size"])
    assert checkpoint.signed_by(read_keys(await world.audit.public_keys())) is True
    assert TOLD not in {entry.action for entry in await world.audit.entries()}


async def test_a_filter_leaves_checkpoints_out(world: World) -> None:
    """As it leaves out actions."""
    await world.create(filter={"excluded_actions": [TOLD]})
    await world.create(filter={"actions": ["policy.*"]})
    await world.record(event(1))
    await world.receiver.until_events(2)
    world.time.move(hours=3)
    await world.record(event(2))
    await world.receiver.until_events(4)
    await asyncio.sleep(1)
    assert told(world) == []


async def test_who_refuses_a_checkpoint_gets_entries_all_the_same(world: World) -> None:
    """A target that does not like the message is not at fault."""
    made = await world.create()
    refused: list[Posted] = []

    def answer(posted: Posted) -> int:
        if TOLD not in posted.body.decode():
            return 204
        refused.append(posted)
        return 400

    world.receiver.answer = answer
    world.time.move(hours=1)
    await world.receiver.until(lambda: refused)
    await world.record(event(1))
    await world.receiver.until_events(1)
    found = await world.get(made.id)
    assert (found.state.status, found.state.quarantined) == ("active", 0)


@pytest.mark.parametrize("records", [0, 3])
async def test_syslog_is_told_the_checkpoint(start_world: StartWorld, records: int) -> None:
    """Also when there is nothing else to send, and no connection yet."""
    async with listening() as lines:
        world = await start_world(forward_allow=lines.allowed)
        await create(world, lines)
        if records:
            await world.record(*(event(number) for number in range(records)))
            await lines.until(records)
        world.time.move(hours=1)
        await lines.until(records + 1)
        assert f'action="{TOLD}"' in lines.messages[-1]
