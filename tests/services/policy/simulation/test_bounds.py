"""How much a simulation takes and answers, and what it says of what it could not see."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest

from evergreen.v1 import policy_pb2
from services.policy.simulation import domain
from services.policy.simulation import service as simulations
from tests.services.policy.simulation.test_in_force import many_apps
from tests.services.policy.simulation.test_simulation import (
    DISTRICT,
    GUESTS,
    HARD,
    codes,
    new_device,
    simulated,
)
from tests.services.policy.targets.test_targets import for_devices, for_groups, publish
from tests.support.policy import ORG, RESELLER, SISTER, Admin, World, world
from tests.support.refusals import Refused, refusal

__all__ = ["world"]

_LIMIT = 512 * 1024


async def test_a_policy_of_many_groups_is_read_once(world: World) -> None:
    """Not once for each of them: a school's Admin does not fill the service's memory."""
    groups = [world.neighbours.registry.group(ORG.id, f"g{n}", n) for n in range(100)]
    big = {"apps": {"required": many_apps(1000)}, "security": HARD}
    policy = await publish(world, big, for_groups(*groups))
    new_device(world, groups[0])
    await simulated(world, 1, policy_id=policy.id)
    tracemalloc.start()
    try:
        found = await simulated(world, 1, policy_id=policy.id, bundle={"network": {}})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.devices_affected == 1
    assert peak < 30 << 20


async def test_one_simulation_of_a_tenant_runs_at_a_time(world: World) -> None:
    """Another one is told to come again; another tenant's waits for it."""
    big = {"apps": {"required": many_apps(1000)}, "security": HARD}
    policy = await world.admin.published(ORG.id, big)
    new_device(world)
    await simulated(world, 1, policy_id=policy.id)
    asked: dict[str, Any] = {"policy_id": policy.id, "bundle": {"network": {"wifi": [GUESTS]}}}
    sister = Admin(world.channel, SISTER.id)

    async def ask(admin: Admin, **asked: Any) -> Refused | policy_pb2.SimulatePolicyResponse:
        try:
            found: policy_pb2.SimulatePolicyResponse = await admin.call("SimulatePolicy", **asked)
        except grpc.aio.AioRpcError as error:
            return Refused(error.code(), {})
        return found

    mine = [ask(world.admin, **asked) for _ in range(5)]
    *found, theirs = await asyncio.gather(*mine, ask(sister, org_id=str(SISTER.id), bundle=big))
    assert isinstance(theirs, policy_pb2.SimulatePolicyResponse)
    refused = [one for one in found if isinstance(one, Refused)]
    assert {one.code for one in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert 0 < len(refused) < len(found)


async def test_the_gravest_warnings_are_answered(world: World) -> None:
    """At most so many, and the number of the others; the loss of all networks comes first."""
    apps = {"apps": {"required": many_apps(700)}}
    policy = await world.admin.published(ORG.id, {**apps, "network": {"wifi": [GUESTS]}})
    new_device(world)
    found = await simulated(world, 1, policy_id=policy.id, bundle={"security": HARD})
    assert (len(found.warnings), found.warnings_omitted) == (500, 201)
    assert [one.code for one in found.warnings][:2] == ["WIFI_LOST", "APPS_UNINSTALLED"]
    assert len(found.changes) + found.changes_omitted == 700 + 1 + 3


async def test_what_still_fits_tells_nothing_of_a_districts_passphrase(world: World) -> None:
    """A school cannot measure it: what is refused is the same, however long it is."""
    district = Admin(world.channel, RESELLER.id)
    above = await district.create(RESELLER.id, {"network": {"wifi": [DISTRICT]}})
    answers: list[list[bool]] = []
    for passphrase in ("12345678", "y" * 63, "<" * 20):
        bundle = {"network": {"wifi": [{**DISTRICT, "passphrase": passphrase}]}}
        await district.call("UpdatePolicy", id=above.id, bundle=bundle, signed=True)
        answers.append([await _is_refused(world, room) for room in range(540, 360, -20)])
    assert answers[0] == answers[1] == answers[2]
    assert {*answers[0]} == {False, True}


async def _is_refused(world: World, room: int) -> bool:
    """Whether a school may add what leaves so many bytes for all else."""
    names = ["x" * 8000] * 65 + [""]
    size = sum(map(len, names)) + len(names) * len('{"name":"","url":"https://00.example"},')
    names[-1] = "x" * (_LIMIT - room - size)
    bundle = {
        "browser": {
            "managed_bookmarks": [
                {"name": name, "url": f"https://{number:02}.example"}
                for number, name in enumerate(names)
            ]
        }
    }
    try:
        await world.admin.call("SimulatePolicy", org_id=str(ORG.id), bundle=bundle)
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        return True
    return False


async def test_a_registry_that_is_away_is_said(world: World) -> None:
    """The counts are those of before; groups that are named need its answer."""
    group = world.neighbours.registry.group(ORG.id, "staff", 10)
    policy = await world.admin.published(ORG.id, {"security": HARD})
    new_device(world)
    await simulated(world, 1, policy_id=policy.id)
    world.neighbours.registry.down = True
    found = await world.admin.call("SimulatePolicy", policy_id=policy.id)
    assert codes(found) == {"STALE": 1}
    named: dict[str, Any] = {"org_id": str(ORG.id), "bundle": {}, "targets": for_groups(group)}
    refused = await refusal(world.admin.call("SimulatePolicy", **named))
    assert refused.code is grpc.StatusCode.UNAVAILABLE


async def test_a_withdrawal_takes_nothing_else(world: World) -> None:
    """It works when a target is gone, and refuses what would be ignored, by its field."""
    device = new_device(world)
    await simulated(world, 1, org_id=str(ORG.id), bundle={})
    policy = await publish(world, {"security": HARD}, for_devices(device.id))
    connection = await world.database.superuser()
    await connection.execute("DELETE FROM policy.devices WHERE device_id = $1", device.id)
    await connection.close()
    found = await world.admin.call("SimulatePolicy", policy_id=policy.id, withdraw=True)
    assert (found.devices, found.complete) == (0, True)
    merging = policy_pb2.PolicyMergingChange(locked_fields=["security"])
    for name, given in (
        ("bundle", {}),
        ("merging", merging),
        ("targets", for_groups(uuid4())),
    ):
        more: dict[str, Any] = {name: given}
        refused = await refusal(
            world.admin.call("SimulatePolicy", policy_id=policy.id, withdraw=True, **more)
        )
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert name in str(refused.body)


async def test_what_is_too_much_is_refused_or_said(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Targets beyond what an organisation may have, sets that are not made, and long work."""
    registry = world.neighbours.registry
    groups: list[UUID] = [registry.group(ORG.id, f"g{number}", number) for number in range(3)]
    policy = await publish(world, {"security": HARD}, for_groups(groups[0], groups[1]))
    for group in groups:
        new_device(world, group)
    bundle = {"network": {"wifi": [GUESTS]}, "security": HARD}
    asked: dict[str, Any] = {"policy_id": policy.id, "bundle": bundle}
    assert codes(await simulated(world, 3, **asked)).keys() == set()
    monkeypatch.setattr(simulations, "MOST_PROFILES", 1)
    assert codes(await simulated(world, 3, **asked)) == {"TOO_MANY_SETS": 1}
    monkeypatch.setattr(domain, "_MANY_MADE", 1)
    assert codes(await simulated(world, 3, **asked))["MANY_EDITIONS"] == 1
    monkeypatch.setattr(simulations, "MOST_BOUND", 2)
    await simulated(world, 3, **asked)
    refused = await refusal(
        world.admin.call("SimulatePolicy", **asked, targets=for_groups(*groups))
    )
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "TOO_MANY_TARGETS",
    )


async def test_a_simulation_waits_for_no_change_of_a_group(world: World) -> None:
    """And holds none up: it locks no row."""
    group = world.neighbours.registry.group(ORG.id, "staff", 10)
    asked: dict[str, Any] = {"org_id": str(ORG.id), "bundle": {}, "targets": for_groups(group)}
    await world.admin.call("SimulatePolicy", **asked)
    connection = await world.database.superuser()
    async with connection.transaction():
        await connection.execute("SELECT FROM policy.groups FOR UPDATE")
        found = await world.admin.call("SimulatePolicy", **asked)
    await connection.close()
    assert found.complete
