"""Numbers follow one another, so devices can name those of versions that are not for them."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest

from evergreen.v1 import policy_pb2
from tests.services.policy.rollouts.school import NEW, OLD, School
from tests.services.policy.rollouts.test_rollouts import school
from tests.support.policy import ORG, TOKEN_LIFE, Device
from tests.support.stack import PATIENCE

__all__ = ["school"]


class _Liar:
    """A device outside of all batches that names numbers which it never got."""

    def __init__(self, school: School) -> None:
        self._school = school
        self._world = school.world
        self._id = uuid4()
        self._world.neighbours.registry.put(self._id, ORG.id)

    def _device(self, **token: Any) -> Device:
        return Device(self._world.kit, self._world.channel, self._id, ORG.id, **token)

    async def gets(self) -> str:
        """All that it is answered: with a token that is to be replaced, and when it is asked to
        apply its policy again."""
        connection = await self._world.database.superuser()
        last = await connection.fetchval(
            "SELECT last_version FROM policy.version_counters WHERE tenant_id = $1", ORG.id
        )
        await connection.close()
        answers = []
        for number in range(1, last + 3):
            old = self._device(age=TOKEN_LIFE * 0.7)
            answers.append((await old.pull(str(number))).text)
            answers.append(str((await old.pull_grpc(str(number))).policy))
            await self._world.admin.call("SyncDevice", id=str(self._id))
            answers.append((await self._device().pull(str(number))).text)
        return "\n".join(answers)


@pytest.mark.parametrize("end", ["", "Cancel", "RollBack", "supersede"])
async def test_a_number_is_no_key_to_what_is_rolled_out(school: School, end: str) -> None:
    """While a batch has it, when the rollout came to nothing, and when nothing is in force."""
    world = school.world
    base = await world.admin.published(ORG.id, OLD)
    group: UUID = world.neighbours.registry.group(ORG.id, "first", 1)
    (guinea_pig,) = await school.enroll(1, group)
    first = policy_pb2.RolloutBatch(name="first", group_ids=[str(group)], soak="1d")
    begun = await school.roll_out(NEW, policy_pb2.RolloutPlan(batches=[first]), base.id)
    async with asyncio.timeout(PATIENCE):
        while guinea_pig.homepage != "https://new":
            await guinea_pig.poll()
            await asyncio.sleep(0.1)
    if end == "supersede":
        await world.admin.call("UpdatePolicy", id=base.id, bundle=OLD, signed=True)
    elif end:
        await school.call(f"{end}Rollout", id=begun.id, reason="Because")
    liar = _Liar(school)
    found = await liar.gets()
    assert "https://new" not in found
    # It was answered.
    assert "https://old" in found
    await world.admin.call("WithdrawPolicy", id=base.id)
    assert "https://new" not in await liar.gets()
