"""What the registry's deletions end: policies of groups and devices, and what is known of these."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest

from evergreen.v1 import enrollment_pb2, policy_pb2
from services.policy.targets.service import Seat
from tests.services.policy.delivery.test_delivery import internal
from tests.services.policy.rollouts.school import NEW, OLD, School
from tests.services.policy.rollouts.test_rollouts import TENTH, school
from tests.services.policy.targets.test_targets import (
    delivered,
    for_devices,
    for_groups,
    new_device,
    publish,
)
from tests.support.policy import ORG, World, world
from tests.support.refusals import refusal
from tests.support.stack import PATIENCE

__all__ = ["school", "world"]


def end_group(world: World, group: UUID) -> None:
    """Deletes a group in the registry."""
    gone = enrollment_pb2.GroupChange()
    gone.CopyFrom(
        next(one for one in world.neighbours.registry.groups if one.group_id == str(group))
    )
    gone.deleted = True
    world.neighbours.registry.groups.append(gone)


def end_device(world: World, device_id: UUID) -> None:
    """Decommissions and deletes a device in the registry: one change tells of both."""
    world.neighbours.registry.add(
        device_id,
        ORG.id,
        "decommissioned",
        deleted=True,
        membership=enrollment_pb2.Membership(revision=1_000_000),
    )


async def withdrawals(world: World) -> list[dict[str, Any]]:
    """What was told of policies that are not in force any more."""
    found = [event["data"] for event in await world.events()]
    return [one for one in found if one["action"] == "policy.withdrawn"]


async def bound(world: World, wanted: set[UUID]) -> None:
    """Waits until something is in force for some groups and devices, and for no others."""
    connection = await world.database.superuser()
    asked = "SELECT target_id FROM policy.bindings WHERE version IS NOT NULL"
    async with asyncio.timeout(PATIENCE):
        while {row[0] for row in await connection.fetch(asked)} != wanted:
            await asyncio.sleep(0.05)
    await connection.close()


@pytest.mark.parametrize("kind", ["group", "device"])
async def test_a_policy_whose_targets_are_deleted_is_told_of_as_withdrawn(
    world: World, kind: str
) -> None:
    """Once, when it is in force for nobody any more, by the system and not by whoever polled."""
    registry = world.neighbours.registry
    if kind == "group":
        targets = [registry.group(ORG.id, f"g{number}", number + 1) for number in range(2)]
        device, named = new_device(world, *targets), for_groups(*targets)
    else:
        device, other = new_device(world), new_device(world)
        targets, named = [other.id, device.id], for_devices(other.id, device.id)
    policy = await publish(world, {"browser": {"homepage": "https://theirs"}}, named)
    stays = await world.admin.published(ORG.id, {"browser": {"homepage": "https://all"}})
    has, _ = await delivered(world, device)
    end = end_group if kind == "group" else end_device
    end(world, targets[0])
    await bound(world, {targets[1]})
    assert (await world.admin.call("GetPolicy", id=policy.id)).in_force
    assert not await withdrawals(world)
    end(world, targets[1])
    # A call has the registry's feed read, before the feed is.
    await refusal(
        world.admin.call("CreatePolicy", org_id=str(ORG.id), name="x", bundle={}, targets=named)
    )
    await bound(world, set())
    (told,) = await withdrawals(world)
    assert (told["resource"], told["actor"]) == (f"policies/{policy.id}", "system")
    assert (told["before"]["inForce"], told["after"]["inForce"]) == (True, False)
    assert told["after"]["targets"] == told["before"]["targets"] != {}
    assert (await world.admin.call("GetPolicy", id=stays.id)).in_force
    if kind == "group":
        _, document = await delivered(world, device, has)
        assert document["browser"]["homepage"] == "https://all"


async def test_a_group_to_which_a_version_is_rolled_out_is_not_free(school: School) -> None:
    """Enrollment is told of the policy before it deletes the group."""
    world = school.world
    group = world.neighbours.registry.group(ORG.id, "staff", 10)
    await school.enroll(1, group)
    made = await world.admin.call(
        "CreatePolicy", org_id=str(ORG.id), name="Staff", bundle=NEW, targets=for_groups(group)
    )
    answer = await world.admin.call("PublishPolicy", id=made.id, plan=TENTH)
    question = policy_pb2.ListGroupPoliciesRequest(tenant_id=str(ORG.id), group_id=str(group))
    found = await internal(world, "ListGroupPolicies", question)
    assert [one.name for one in found.policies] == ["Staff"]
    await school.call("CancelRollout", id=answer.rollout_id)
    assert not (await internal(world, "ListGroupPolicies", question)).policies


async def test_a_rollout_goes_on_without_a_deleted_device(school: School) -> None:
    """It ends with the last one; what was completed is in force for those that are left."""
    world = school.world
    first, second, third = await school.enroll(3)
    targets = for_devices(first.device.id, second.device.id, third.device.id)
    policy = await world.admin.call(
        "CreatePolicy", org_id=str(ORG.id), name="x", bundle=OLD, targets=targets, signed=True
    )
    await school.quiet()
    begun = await school.roll_out(NEW, TENTH, policy.id)
    end_device(world, first.device.id)
    await bound(world, {second.device.id, third.device.id})
    await school.call("AdvanceRollout", id=begun.id)
    await school.quiet([second, third])
    assert second.homepage == third.homepage == "https://new"
    await school.call("AdvanceRollout", id=begun.id)
    assert (await school.rollout(begun.id)).state == "COMPLETED"
    await bound(world, {second.device.id, third.device.id})
    targets = for_devices(second.device.id, third.device.id)
    await world.admin.call("UpdatePolicy", id=policy.id, targets=targets)
    last = await school.roll_out(OLD, TENTH, policy.id)
    end_device(world, second.device.id)
    end_device(world, third.device.id)
    ended = await school.looked("SUPERSEDED", last.id)
    assert ended.reason == "TARGETS_DELETED"
    assert [one["resource"] for one in await withdrawals(world)] == [f"policies/{policy.id}"]
    connection = await world.database.superuser()
    for table in ("profiles", "memberships", "devices", "applied_versions"):
        column = "targets" if table == "profiles" else "ARRAY[device_id]"
        left = f"SELECT count(*) FROM policy.{table} WHERE {column} && $1"
        assert not await connection.fetchval(left, [one.device.id for one in school.laptops]), table
    await connection.close()


def seats(but: Sequence[Seat] = ()) -> list[Seat]:
    """The places of devices in memory, but for those of the tests before."""
    old = {id(one) for one in but}
    return [one for one in gc.get_objects() if isinstance(one, Seat) and id(one) not in old]


async def test_deleted_devices_leave_nothing_in_memory(world: World) -> None:
    """Nor is anything put together any more for the groups that they alone were in."""
    registry, before = world.neighbours.registry, seats()
    groups = [registry.group(ORG.id, f"g{number}", number + 1) for number in range(3)]
    for group in groups:
        await publish(world, {"browser": {"homepage": "https://first"}}, for_groups(group))
    key = uuid4().hex
    stays = new_device(world, groups[0])
    has, _ = await delivered(world, stays)
    gone = []
    for number in range(30):
        some = [one for at, one in enumerate(groups) if number >> at & 1]
        device = uuid4()
        registry.put(device, ORG.id, *some, key_id=key if number % 5 else "")
        gone.append(device)
    async with asyncio.timeout(PATIENCE):
        while len(seats(before)) < 10:
            await asyncio.sleep(0.5)
    for device in gone:
        end_device(world, device)
    async with asyncio.timeout(PATIENCE):
        while len(seats(before)) > 1:
            await asyncio.sleep(0.5)
    # The last groups are nobody's: what is published for them is put together for nobody.
    connection = await world.database.superuser()
    numbers = "SELECT count(*) FROM policy.stamps WHERE cause = 'layers'"
    made = await connection.fetchval(numbers)
    for number, group in enumerate((*groups[1:], groups[0])):
        await publish(world, {"browser": {"homepage": f"https://{number}"}}, for_groups(group))
    await delivered(world, stays, has)
    assert await connection.fetchval(numbers) == made + 1
    await connection.close()
