"""What devices have and keep where nothing is in force, or where policies do not fit together."""

from __future__ import annotations

import asyncio
from typing import Any

from evergreen.v1 import policy_pb2
from tests.services.policy.layers.test_layers import settled
from tests.services.policy.simulation.test_simulation import (
    CHESS,
    GUESTS,
    HARD,
    SCHOOL,
    changed,
    codes,
    new_device,
    simulated,
)
from tests.services.policy.targets.test_targets import delivered, for_groups, publish
from tests.support.policy import ORG, RESELLER, Admin, Device, World, world
from tests.support.stack import PATIENCE

__all__ = ["world"]

BASE = {"apps": {"required": [CHESS]}, "network": {"wifi": [SCHOOL]}, "security": HARD}


def many_apps(count: int = 900) -> list[dict[str, str]]:
    """Applications that take some 280 bytes each."""
    return [{"id": f"org.example.{'x' * 230}{number}"} for number in range(count)]


def bookmarks(count: int = 300) -> list[dict[str, str]]:
    """Bookmarks that take some 1,100 bytes each."""
    return [
        {"name": "x" * 500, "url": f"https://{number}.example/{'y' * 500}"}
        for number in range(count)
    ]


async def with_version(world: World) -> Device:
    """A device that says that it has what it was given."""
    device = new_device(world)
    has, _ = await delivered(world, device)
    await device.pull(str(has))
    return device


async def until_codes(
    world: World, expected: dict[str, int], devices: int, admin: Admin | None = None, **asked: Any
) -> policy_pb2.SimulatePolicyResponse:
    """What is answered once what devices have is known."""
    async with asyncio.timeout(PATIENCE):
        while codes(found := await simulated(world, devices, admin, **asked)) != expected:
            await asyncio.sleep(0.05)
    return found


async def test_where_nothing_is_left_devices_keep_what_they_have(world: World) -> None:
    """They are counted, and nothing is different; so are those of a group."""
    policy = await world.admin.published(ORG.id, BASE)
    device = await with_version(world)
    new_device(world)
    asked: dict[str, Any] = {"policy_id": policy.id, "withdraw": True}
    found = await until_codes(world, {"ORPHANED": 1}, 2, **asked)
    assert list(found.warnings[0].sample_device_ids) == [str(device.id)]
    assert (found.devices_affected, found.editions, len(found.changes)) == (0, 0, 0)
    await world.admin.call("WithdrawPolicy", id=policy.id)
    assert (await device.pull(str(policy.version))).status_code == 304
    group = world.neighbours.registry.group(ORG.id, "staff", 10)
    staff = await publish(world, {"network": {"wifi": [GUESTS]}}, for_groups(group), "Staff")
    member = new_device(world, group)
    has, _ = await delivered(world, member)
    await member.pull(str(has))
    found = await until_codes(world, {"ORPHANED": 1}, 3, policy_id=staff.id, withdraw=True)
    assert list(found.warnings[0].sample_device_ids) == [str(member.id)]
    assert found.devices_affected == 0


async def test_a_publish_after_a_withdrawal_is_compared_with_what_devices_have(
    world: World,
) -> None:
    """Networks and applications are lost, of those that have them; what is unknown is said."""
    policy = await world.admin.published(ORG.id, BASE)
    await with_version(world)
    new_device(world)
    await world.admin.call("WithdrawPolicy", id=policy.id)
    new = {"browser": {"homepage": "https://school.example"}}
    expected = {
        "WIFI_LOST network.wifi": 1,
        "APPS_UNINSTALLED apps.required[org.gnome.Chess]": 1,
        "SECURITY_WEAKENED security.selinux_enforce": 1,
        "SECURITY_WEAKENED security.usbguard": 1,
        "UNSET_SECURITY security.selinux_enforce": 2,
        "UNSET_SECURITY security.usbguard": 2,
    }
    found = await until_codes(world, expected, 2, policy_id=policy.id, bundle=new)
    assert changed(found)["browser.homepage"] == (None, "https://school.example", 2)
    assert changed(found)["network.wifi[School]"][1:] == (None, 1)
    # The same passphrase is no change, and another one is.
    found = await simulated(world, 2, policy_id=policy.id)
    # The other device gets it for the first time.
    assert (found.devices_affected, {one.devices for one in found.changes}) == (2, {1})
    assert codes(found) == {}
    other = {**BASE, "network": {"wifi": [{**SCHOOL, "passphrase": "another passphrase"}]}}
    found = await simulated(world, 2, policy_id=policy.id, bundle=other)
    assert codes(found) == {"WIFI_CHANGED network.wifi[School]": 1}
    # A tenant above sees what is lost, and not whether the school's passphrase is guessed.
    district = Admin(world.channel, RESELLER.id)
    for_all: dict[str, Any] = {"org_id": str(RESELLER.id)}
    found = await simulated(world, 2, district, bundle=new, **for_all)
    assert codes(found) == expected
    answers = []
    for passphrase in (SCHOOL["passphrase"], "quite another one"):
        network = {"wifi": [{**SCHOOL, "passphrase": passphrase}]}
        bundle = {**BASE, "network": network}
        answers.append(await simulated(world, 2, district, bundle=bundle, **for_all))
    assert answers[0] == answers[1]
    assert codes(answers[0]) == {"WIFI_CHANGED network.wifi[School]": 1}
    # A number that stands for nothing.
    await new_device(world).pull("777")
    unknown = {**expected, "ORPHANED_BEFORE": 1}
    unknown |= {name: 3 for name in expected if name.startswith("UNSET")}
    await until_codes(world, unknown, 3, policy_id=policy.id, bundle=new)


async def test_what_does_not_fit_is_compared_with_what_locks_make(world: World) -> None:
    """It is what the devices get then, and what devices have meanwhile is compared later."""
    district = Admin(world.channel, RESELLER.id)
    school = {**BASE, "apps": {"required": many_apps()}}
    policy = await world.admin.published(ORG.id, school)
    device = await with_version(world)
    bundle: dict[str, Any] = {
        "browser": {"managed_bookmarks": bookmarks()},
        "network": {"wifi": []},
        "security": {"selinux_enforce": False},
    }
    merging = policy_pb2.PolicyMergingChange(
        locked_fields=["network.wifi", "security.selinux_enforce"]
    )
    asked: dict[str, Any] = {"org_id": str(RESELLER.id), "bundle": bundle, "merging": merging}
    found = await simulated(world, 1, district, **asked)
    assert codes(found) == {
        "WIFI_LOST network.wifi": 1,
        "HELD": 1,
        "SECURITY_WEAKENED security.selinux_enforce": 1,
        # What all would get that have no other policy.
        "UNSET_SECURITY security.usbguard": 0,
    }
    seen = {path: count for path, (*_, count) in changed(found).items() if count}
    assert seen == {"network.wifi[School]": 1, "security.selinux_enforce": 1}
    assert found.devices_affected == 1
    has = int((await world.admin.call("GetPolicy", id=policy.id)).version)
    await district.call("CreatePolicy", name="District", signed=True, **asked)
    held = await settled(world, ORG.id, "HELD")
    _, now = await delivered(world, device, has)
    assert (now["network"]["wifi"], now["security"]["selinux_enforce"]) == ([], False)
    assert len(now["apps"]["required"]) == 900
    assert now["browser"]["managed_bookmarks"] is None
    # It fits again: what devices have by then is what is compared.
    smaller = {**school, "apps": {"required": [CHESS]}}
    found = await simulated(world, 1, policy_id=policy.id, bundle=smaller)
    gone = [path for path, (_, after, count) in changed(found).items() if after is None and count]
    assert (
        len([path for path in gone if path.startswith("apps.required")]) + (found.changes_omitted)
        >= 900
    )
    assert "network.wifi[School]" not in changed(found)
    assert "HELD" not in codes(found)
    assert held.state == "HELD"


async def test_those_of_a_group_that_does_not_fit_keep_theirs(world: World) -> None:
    """They are counted as such, and not among those that get something else."""
    group = world.neighbours.registry.group(ORG.id, "staff", 10)
    base: dict[str, Any] = {"apps": {"required": many_apps()}, "security": HARD}
    policy = await world.admin.published(ORG.id, base)
    staff = {"browser": {"managed_bookmarks": bookmarks(240)}}
    await publish(world, staff, for_groups(group), "Staff")
    new_device(world)
    member = new_device(world, group)
    await delivered(world, member)
    bigger = {**base, "apps": {"required": many_apps(1000)}}
    found = await simulated(world, 2, policy_id=policy.id, bundle=bigger)
    assert codes(found) == {"BIG_DOWNLOAD apps.required": 1, "HELD": 1}
    (held,) = [one for one in found.warnings if one.code == "HELD"]
    assert list(held.sample_device_ids) == [str(member.id)]
    assert (found.devices_affected, {one.devices for one in found.changes}) == (1, {1})
