"""Policies of groups and of single devices: who gets what, and what is said of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc
import httpx
import pytest
from google.protobuf.json_format import MessageToDict

from evergreen.v1 import enrollment_pb2, policy_pb2
from servicekit.rpc.values import from_value
from services.policy.layers.fields import FIELDS
from tests.services.policy.delivery.test_delivery import internal
from tests.services.policy.layers.test_layers import nothing_is_made
from tests.support.policy import (
    ORG,
    RESELLER,
    SISTER,
    TOKEN_LIFE,
    Admin,
    Device,
    World,
    verified,
    world,
)
from tests.support.refusals import refusal
from tests.support.stack import PATIENCE

__all__ = ["world"]

SECRET = "the staff's own passphrase"
STAFF = {"ssid": "Staff", "passphrase": SECRET, "security": "wpa-psk"}
GUESTS = {"ssid": "Guests", "security": "none"}


def for_groups(*ids: UUID) -> policy_pb2.PolicyTargetsChange:
    return policy_pb2.PolicyTargetsChange(group_ids=map(str, ids))


def for_devices(*ids: UUID) -> policy_pb2.PolicyTargetsChange:
    return policy_pb2.PolicyTargetsChange(device_ids=map(str, ids))


async def publish(
    world: World, bundle: Any, targets: policy_pb2.PolicyTargetsChange, name: str = "Policy"
) -> policy_pb2.Policy:
    policy: policy_pb2.Policy = await world.admin.call(
        "CreatePolicy", org_id=str(ORG.id), name=name, bundle=bundle, targets=targets, signed=True
    )
    return policy


def new_device(world: World, *groups: UUID, org: UUID = ORG.id) -> Device:
    """A device that is in groups."""
    device = Device(world.kit, world.channel, uuid4(), org)
    world.neighbours.registry.put(device.id, org, *groups)
    return device


async def delivered(world: World, device: Device, has: int = 0) -> tuple[int, dict[str, Any]]:
    """What a device gets above a number, a moment later."""
    async with asyncio.timeout(PATIENCE):
        while (answer := await device.pull(str(has or ""))).status_code == 304:
            await asyncio.sleep(0.05)
    verified(await world.pem(), answer)
    envelope = answer.json()
    assert int(envelope["version"]) > has
    return int(envelope["version"]), envelope["policy"]


async def explained(
    world: World, device: Device, state: str = "CURRENT"
) -> policy_pb2.EffectivePolicy:
    """What is said of a device, once it is so."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                found: policy_pb2.EffectivePolicy = await world.admin.call(
                    "GetEffectivePolicy", id=str(device.id)
                )
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.NOT_FOUND
            else:
                if found.state == state:
                    return found
            await asyncio.sleep(0.05)


def again(found: policy_pb2.EffectivePolicy) -> dict[str, Any]:
    """The document that the fields of an answer make."""
    document: dict[str, Any] = {}
    for field in FIELDS:
        section, _, name = field.path.partition(".")
        values = [
            from_value(one.value)
            for one in found.fields
            if one.path == field.path and one.HasField("source") and one.HasField("value")
        ]
        if values:
            document.setdefault(section, {})[name] = values if field.items else values[0]
    return document


def ssids(policy: dict[str, Any]) -> list[str]:
    return [network["ssid"] for network in policy["network"]["wifi"] or ()]


async def test_the_greater_priority_and_the_device_have_the_last_word(world: World) -> None:
    """Over the organisation's; whoever moves gets what is right, under a number above its own."""
    registry = world.neighbours.registry
    low, high = registry.group(ORG.id, "low", 10), registry.group(ORG.id, "high", 20)
    base = {"browser": {"homepage": "https://school"}, "network": {"wifi": [GUESTS]}}
    await world.admin.published(ORG.id, base)
    other, device = new_device(world), new_device(world, low, high)
    has, policy = await delivered(world, device)
    assert policy["browser"]["homepage"] == "https://school"
    await publish(
        world,
        {"browser": {"homepage": "https://high"}, "updates": {"channel": "beta"}},
        for_groups(high),
    )
    has, policy = await delivered(world, device, has)
    assert (policy["browser"]["homepage"], ssids(policy)) == ("https://high", ["Guests"])
    await publish(
        world,
        {"browser": {"homepage": "https://low"}, "network": {"wifi": [STAFF]}},
        for_groups(low),
    )
    has, policy = await delivered(world, device, has)
    assert (policy["browser"]["homepage"], ssids(policy)) == ("https://high", ["Guests", "Staff"])
    own = await publish(world, {"browser": {"homepage": "https://own"}}, for_devices(device.id))
    has, policy = await delivered(world, device, has)
    assert (policy["browser"]["homepage"], policy["updates"]["channel"]) == ("https://own", "beta")
    await device.pull(str(has))
    found = await explained(world, device)
    assert [one.level for one in found.layers] == ["ORG", "GROUP", "GROUP", "DEVICE"]
    assert [one.group_alias for one in found.layers] == ["", "low", "high", ""]
    homepage = next(one for one in found.fields if one.path == "browser.homepage")
    assert (homepage.how, homepage.source.level) == ("MERGED", "DEVICE")
    assert [lost.source.group_alias for lost in homepage.overridden] == ["", "low", "high"]
    assert again(found) == MessageToDict(found.document)
    assert SECRET not in json.dumps(MessageToDict(found))
    # The others have what they had.
    first, policy = await delivered(world, other)
    assert (first, ssids(policy)) == (1, ["Guests"])
    # The priorities change places.
    await world.admin.call("WithdrawPolicy", id=own.id)
    has, policy = await delivered(world, device, has)
    assert policy["browser"]["homepage"] == "https://high"
    registry.group(ORG.id, "low", 30, low)
    has, policy = await delivered(world, device, has)
    assert policy["browser"]["homepage"] == "https://low"
    # It moves out of one, and out of both.
    registry.put(device.id, ORG.id, high)
    has, policy = await delivered(world, device, has)
    assert (policy["browser"]["homepage"], ssids(policy)) == ("https://high", ["Guests"])
    registry.put(device.id, ORG.id)
    has, policy = await delivered(world, device, has)
    assert (policy["browser"]["homepage"], has > first) == ("https://school", True)
    assert (await device.pull(str(has))).status_code == 304
    assert (await other.pull(str(first))).status_code == 304
    # A number that was another group's opens nothing to a device that names it.
    liar = Device(world.kit, world.channel, other.id, ORG.id)
    for number in range(1, has + 1):
        answer = await liar.pull(str(number))
        assert SECRET not in answer.text


async def test_a_device_enrolls_with_its_groups_policy(world: World) -> None:
    """Before the registry's feed tells of it, and whoever else is in the group."""
    registry = world.neighbours.registry
    group = registry.group(ORG.id, "staff", 10)
    await publish(world, {"network": {"wifi": [STAFF]}}, for_groups(group))
    device = Device(world.kit, world.channel, uuid4(), ORG.id)
    question = policy_pb2.GetDevicePolicyRequest(
        tenant_id=str(ORG.id),
        device_id=str(device.id),
        first=True,
        membership=enrollment_pb2.Membership(group_ids=[str(group)], revision=1),
    )
    envelope = json.loads((await internal(world, "GetDevicePolicy", question)).envelope)
    assert ssids(envelope["policy"]) == ["Staff"]
    registry.put(device.id, ORG.id, group)
    assert (await device.pull(envelope["version"])).status_code == 304
    # One that is in no group gets nothing, and without the word of the caller what is known counts.
    question.membership.ClearField("group_ids")
    assert (await internal(world, "GetDevicePolicy", question)).envelope == b""
    question.ClearField("membership")
    async with asyncio.timeout(PATIENCE):
        while not (answer := (await internal(world, "GetDevicePolicy", question)).envelope):
            await asyncio.sleep(0.05)
    assert json.loads(answer) == envelope


async def test_what_a_district_changes_reaches_groups(world: World) -> None:
    """And an organisation's next publish, which has one number for those in no group."""
    registry = world.neighbours.registry
    group = registry.group(ORG.id, "staff", 10)
    locks = policy_pb2.PolicyMergingChange(locked_fields=["updates"])
    device = new_device(world, group)
    await publish(
        world,
        {"updates": {"channel": "nightly"}, "browser": {"homepage": "https://staff"}},
        for_groups(group),
    )
    has, policy = await delivered(world, device)
    assert policy["updates"]["channel"] == "nightly"
    district = Admin(world.channel, RESELLER.id)
    above = await district.create(RESELLER.id, {"updates": {"channel": "stable"}})
    await district.call("UpdatePolicy", id=above.id, merging=locks, signed=True)
    has, policy = await delivered(world, device, has)
    assert policy["updates"]["channel"] == "stable"
    mine = await world.admin.published(ORG.id, {"network": {"wifi": [GUESTS]}})
    has, policy = await delivered(world, device, has)
    assert (ssids(policy), policy["browser"]["homepage"]) == (["Guests"], "https://staff")
    number, policy = await delivered(world, new_device(world))
    assert (str(number), policy["browser"]["homepage"]) == (mine.version, "")
    # What organisations and groups are to have is shown without a device, too.
    shown = await world.admin.call("GetLayeredPolicy", group_ids=[str(group)])
    assert [one.level for one in shown.layers] == ["RESELLER", "ORG", "GROUP"]
    refused = await refusal(
        Admin(world.channel, SISTER.id).call("GetLayeredPolicy", group_ids=[str(group)])
    )
    assert refused.code is grpc.StatusCode.NOT_FOUND


async def test_policies_of_groups_end(world: World) -> None:
    """By a withdrawal, a deletion, another policy, and with the group."""
    registry = world.neighbours.registry
    groups = [registry.group(ORG.id, f"g{number}", number + 1) for number in range(4)]
    device = new_device(world, *groups)
    policies = [
        await publish(
            world, {"browser": {"extensions": [f"e{number}"]}}, for_groups(group), f"P{number}"
        )
        for number, group in enumerate(groups)
    ]
    question = policy_pb2.ListGroupPoliciesRequest(tenant_id=str(ORG.id), group_id=str(groups[0]))
    asked = await internal(world, "ListGroupPolicies", question)
    assert [one.name for one in asked.policies] == ["P0"]

    async def comes_to(wanted: list[str], has: int = 0) -> int:
        async with asyncio.timeout(PATIENCE):
            while True:
                has, policy = await delivered(world, device, has)
                if (policy["browser"]["extensions"] or []) == wanted:
                    return has

    has = await comes_to(["e0", "e1", "e2", "e3"])
    await world.admin.call("WithdrawPolicy", id=policies[0].id)
    has = await comes_to(["e1", "e2", "e3"], has)
    assert not (await internal(world, "ListGroupPolicies", question)).policies
    refused = await refusal(world.admin.call("DeletePolicy", id=policies[1].id))
    assert refused.reason == "POLICY_IN_FORCE"
    await world.admin.call("DeletePolicy", id=policies[1].id, force=True)
    has = await comes_to(["e2", "e3"], has)
    other = await publish(world, {"browser": {"extensions": ["other"]}}, for_groups(groups[2]))
    has = await comes_to(["other", "e3"], has)
    replaced = await world.admin.call("GetPolicy", id=policies[2].id)
    assert (replaced.in_force, replaced.signed) == (False, False)
    # The same once more changes nothing for devices.
    await world.admin.call("PublishPolicy", id=other.id)
    same = await world.admin.call("UpdatePolicy", id=other.id, name="Policy", signed=True)
    assert (same.in_force, same.signed) == (True, True)
    # Other targets count with the next publish.
    moved = await world.admin.call("UpdatePolicy", id=other.id, targets=for_groups(groups[0]))
    assert (moved.has_unpublished_changes, moved.in_force) == (True, True)
    await world.admin.call("PublishPolicy", id=other.id)
    gone = enrollment_pb2.GroupChange()
    gone.CopyFrom(next(one for one in registry.groups if one.group_id == str(groups[3])))
    gone.deleted = True
    registry.groups.append(gone)
    has = await comes_to(["other"], has)
    assert not (await world.admin.call("GetPolicy", id=policies[3].id)).in_force
    refused = await refusal(world.admin.call("PublishPolicy", id=policies[3].id))
    assert refused.body["message"].startswith("targets.groupIds[0]: is no group")
    await world.admin.call("WithdrawPolicy", id=other.id)
    await device.pull(str(has))
    found = await explained(world, device, "ORPHANED")
    assert not found.layers
    orphans = await world.admin.call("ListOrphanedDevices")
    assert [one.device_id for one in orphans.devices] == [str(device.id)]


@pytest.mark.parametrize(
    ("org", "targets", "field"),
    [
        (ORG.id, {"group_ids": [str(UUID(int=7))]}, "targets.groupIds[0]: is no group"),
        (ORG.id, {"device_ids": [str(UUID(int=7))]}, "targets.deviceIds[0]: is no device"),
        (ORG.id, {"group_ids": [str(UUID(int=7))] * 2}, "targets.groupIds[1]: is in the list"),
        (ORG.id, {"group_ids": ["x"]}, "targets.groupIds[0]: "),
        (
            ORG.id,
            {"device_ids": [str(UUID(int=n)) for n in range(101)]},
            "targets.deviceIds: must have at most",
        ),
        (RESELLER.id, {"group_ids": [str(UUID(int=7))]}, "targets: only a policy of an organ"),
    ],
)
async def test_targets_are_the_organisations(
    world: World, org: UUID, targets: dict[str, Any], field: str
) -> None:
    """What it does not have is refused by its place."""
    refused = await refusal(
        Admin(world.channel, RESELLER.id).call(
            "CreatePolicy", org_id=str(org), name="x", bundle={}, targets=targets
        )
    )
    assert (refused.code, refused.body["message"][: len(field)]) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        field,
    )


async def test_a_policy_does_not_change_sides_while_it_is_in_force(world: World) -> None:
    """Nor does the last release give a group's policy to all; another's groups are not there."""
    registry = world.neighbours.registry
    group, theirs = registry.group(ORG.id, "mine", 1), registry.group(SISTER.id, "theirs", 1)
    policy = await world.admin.published(ORG.id, {})
    refused = await refusal(
        world.admin.call("UpdatePolicy", id=policy.id, targets=for_groups(group))
    )
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "POLICY_IN_FORCE",
    )
    refused = await refusal(publish(world, {}, for_groups(theirs)))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    await world.admin.call("WithdrawPolicy", id=policy.id)
    changed = await world.admin.call(
        "UpdatePolicy", id=policy.id, targets=for_groups(group), signed=True
    )
    assert list(changed.targets.group_ids) == [str(group)]
    connection = await world.database.superuser()
    with pytest.raises(asyncpg.RaiseError, match="is for groups or devices"):
        await connection.execute(
            "INSERT INTO policy.assignments (id, tenant_id, policy_id, version)"
            " VALUES ($1, $2, $3, $4) ON CONFLICT (tenant_id, target)"
            " DO UPDATE SET policy_id = excluded.policy_id, version = excluded.version",
            uuid4(),
            ORG.id,
            UUID(policy.id),
            int(changed.version),
        )
    await connection.execute("DELETE FROM policy.policies WHERE id = $1", UUID(policy.id))
    count = "SELECT count(*) FROM policy.bindings WHERE version IS NOT NULL"
    assert await connection.fetchval(count) == 0
    await connection.close()
    told = [event for event in await world.events() if "policy.published" in event["type"]]
    assert told[-1]["data"]["after"]["targets"] == {"groupIds": [str(group)]}


async def test_without_the_registry_nothing_is_drawn(world: World) -> None:
    """A device that would need a number keeps what it has; unchanged polls are answered."""
    registry = world.neighbours.registry
    group = registry.group(ORG.id, "staff", 10)
    await world.admin.published(ORG.id, {})
    device = new_device(world, group)
    await publish(world, {"browser": {"homepage": "https://staff"}}, for_groups(group))
    has, _ = await delivered(world, device)
    while has < 2:
        has, _ = await delivered(world, device, has)
    registry.put(device.id, ORG.id)
    has, policy = await delivered(world, device, has)
    assert policy["browser"]["homepage"] == ""
    assert (await device.pull(str(has))).status_code == httpx.codes.NOT_MODIFIED
    registry.put(device.id, ORG.id, group)
    async with asyncio.timeout(PATIENCE):
        while (await explained(world, device, "PENDING")).layers[-1].level != "GROUP":
            await asyncio.sleep(0.05)
    registry.down = True
    assert (await device.pull(str(has))).status_code == httpx.codes.NOT_MODIFIED
    registry.down = False
    async with asyncio.timeout(3 * PATIENCE):
        has, policy = await delivered(world, device, has)
    assert policy["browser"]["homepage"] == "https://staff"


async def test_a_change_above_leaves_groups_with_what_they_had(world: World) -> None:
    """Until it is put together: also for a device that has nothing yet."""
    registry = world.neighbours.registry
    group = registry.group(ORG.id, "staff", 10)
    await publish(world, {"browser": {"homepage": "https://staff"}}, for_groups(group))
    first, _ = await delivered(world, new_device(world, group))
    async with nothing_is_made(world):
        await Admin(world.channel, RESELLER.id).published(
            RESELLER.id, {"updates": {"channel": "beta"}}
        )
        device = new_device(world, group)
        has, policy = await delivered(world, device)
        assert (has, policy["updates"]["channel"]) == (first, "")
    has, policy = await delivered(world, device, has)
    assert (policy["updates"]["channel"], policy["browser"]["homepage"]) == (
        "beta",
        "https://staff",
    )


async def test_a_device_enrolls_with_its_organisations_policy_at_least(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are too many sets of policies for another one."""
    registry = world.neighbours.registry
    group = registry.group(ORG.id, "staff", 10)
    mine = await world.admin.published(ORG.id, {"network": {"wifi": [GUESTS]}})
    monkeypatch.setattr("services.policy.editions.service.MOST_PROFILES", 0)
    await publish(world, {"network": {"wifi": [STAFF]}}, for_groups(group))
    question = policy_pb2.GetDevicePolicyRequest(
        tenant_id=str(ORG.id),
        device_id=str(uuid4()),
        first=True,
        membership=enrollment_pb2.Membership(group_ids=[str(group)], revision=1),
    )
    envelope = json.loads((await internal(world, "GetDevicePolicy", question)).envelope)
    assert (envelope["version"], ssids(envelope["policy"])) == (mine.version, ["Guests"])


async def test_what_groups_had_first_may_become_everybodys(world: World) -> None:
    """Then a device keeps it, with new tokens, also when nothing is in force any more."""
    registry = world.neighbours.registry
    group = registry.group(ORG.id, "staff", 10)
    page = {"browser": {"homepage": "https://staff"}}
    mine = await world.admin.published(ORG.id, {"network": {"wifi": [GUESTS]}})
    await publish(world, page, for_groups(group))
    number, _ = await delivered(world, new_device(world, group))
    district = Admin(world.channel, RESELLER.id)
    theirs = await district.published(RESELLER.id, page)
    device, has = new_device(world), 0
    while has < number:
        has, policy = await delivered(world, device, has)
    assert (has, policy["browser"]["homepage"]) == (number, "https://staff")
    await world.admin.call("WithdrawPolicy", id=mine.id)
    await district.call("WithdrawPolicy", id=theirs.id)
    async with asyncio.timeout(PATIENCE):
        while (await world.admin.call("GetLayeredPolicy")).state != "NONE":
            await asyncio.sleep(0.05)
    later = Device(world.kit, world.channel, device.id, ORG.id, age=0.6 * TOKEN_LIFE)
    answer = (await later.pull(str(has))).json()
    assert (answer["version"], "device_token" in answer) == (str(has), True)


async def test_no_number_tells_whether_a_secret_was_guessed(world: World) -> None:
    """Two sets of policies that make one document, and one before and after, share none."""
    registry = world.neighbours.registry
    groups = [registry.group(ORG.id, f"g{number}", number + 1) for number in range(2)]
    await Admin(world.channel, RESELLER.id).published(
        RESELLER.id, {"network": {"wifi": [STAFF, GUESTS]}}
    )
    devices = [new_device(world, group) for group in groups]
    await publish(world, {}, for_groups(groups[0]))
    first, policy = await delivered(world, devices[0])
    guess = {"network": {"wifi": [STAFF]}}
    guessing = await publish(world, guess, for_groups(groups[1]))
    second, same = await delivered(world, devices[1])
    assert (second > first, same) == (True, policy)
    await world.admin.call("PublishPolicy", id=guessing.id)
    third, same = await delivered(world, devices[1], second)
    assert (third > second, same) == (True, policy)
    answer = await devices[0].pull(str(first))
    assert answer.status_code == httpx.codes.NOT_MODIFIED
    assert (await devices[1].pull(str(third))).status_code == httpx.codes.NOT_MODIFIED


async def test_a_device_without_a_policy_in_force_gets_new_tokens(world: World) -> None:
    """With what it had by right for its group; one that only names the number gets nothing."""
    registry = world.neighbours.registry
    group = registry.group(ORG.id, "staff", 10)
    device = new_device(world, group)
    policy = await publish(world, {"network": {"wifi": [STAFF]}}, for_groups(group))
    has, _ = await delivered(world, device)
    old = {"org": ORG.id, "age": 0.6 * TOKEN_LIFE}
    liar = Device(world.kit, world.channel, uuid4(), **old)
    await liar.pull(str(has))
    await device.pull(str(has))
    await explained(world, device)
    await world.admin.call("WithdrawPolicy", id=policy.id)
    await explained(world, device, "ORPHANED")
    later = Device(world.kit, world.channel, device.id, **old)
    answer = await later.pull(str(has))
    assert (answer.json()["version"], "device_token" in answer.json()) == (str(has), True)
    assert (await liar.pull(str(has))).status_code == 304


async def test_a_publish_waits_for_the_end_of_a_group(world: World) -> None:
    """And is refused then: nothing is left in force for a group that is gone."""
    registry = world.neighbours.registry
    group = registry.group(ORG.id, "staff", 10)
    made = await world.admin.call(
        "CreatePolicy", org_id=str(ORG.id), name="x", bundle={}, targets=for_groups(group)
    )
    connection = await world.database.superuser()
    await connection.execute("SET evergreen.scope = '*'")
    async with connection.transaction():
        await connection.execute("UPDATE policy.groups SET deleted = true WHERE id = $1", group)
        publishing = asyncio.create_task(world.admin.call("PublishPolicy", id=made.id))
        await asyncio.sleep(0.5)
        assert not publishing.done()
    refused = await refusal(publishing)
    assert refused.body["message"].startswith("targets.groupIds[0]: is no group")
    assert await connection.fetchval("SELECT count(*) FROM policy.bindings") == 0
    await connection.close()
