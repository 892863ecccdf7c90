"""What a publish would change, on the devices that there are."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from evergreen.v1 import policy_pb2
from servicekit.rpc.values import from_value
from services.policy.simulation import service as simulations
from tests.services.policy.layers.test_layers import settled
from tests.services.policy.targets.test_targets import again, delivered, for_groups, publish
from tests.support.policy import ORG, RESELLER, ROOT, SISTER, STRANGER, Admin, Device, World, world
from tests.support.refusals import refusal
from tests.support.stack import PATIENCE

__all__ = ["world"]

SECRET = "the district's own passphrase"
DISTRICT = {"ssid": "District", "passphrase": SECRET, "security": "wpa-psk"}
SCHOOL = {"ssid": "School", "passphrase": "the school's passphrase", "security": "wpa-psk"}
GUESTS = {"ssid": "Guests", "security": "none"}
HARD = {"selinux_enforce": True, "usbguard": True, "usbguard_rules": ["allow id 1d6b:0002"]}
CHESS, PAINT = {"id": "org.gnome.Chess"}, {"id": "org.kde.Paint"}


def new_device(world: World, *groups: UUID, org: UUID = ORG.id) -> Device:
    """An active device, in groups or in none."""
    device = Device(world.kit, world.channel, uuid4(), org)
    world.neighbours.registry.put(device.id, org, *groups)
    return device


async def simulated(
    world: World, devices: int, admin: Admin | None = None, **asked: Any
) -> policy_pb2.SimulatePolicyResponse:
    """What is answered once so many devices are known."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found: policy_pb2.SimulatePolicyResponse = await (admin or world.admin).call(
                "SimulatePolicy", **asked
            )
            if found.devices == devices:
                return found
            await asyncio.sleep(0.05)


def codes(found: policy_pb2.SimulatePolicyResponse) -> dict[str, int]:
    """The warnings, with their fields, and for how many devices each is."""
    return {
        f"{one.code} {one.path}[{one.item_key}]".replace("[]", "").strip(): one.devices
        for one in found.warnings
    }


def changed(found: policy_pb2.SimulatePolicyResponse) -> dict[str, tuple[Any, Any, int]]:
    """Before, after and devices of the fields and items."""
    return {
        f"{one.path}[{one.item_key}]".replace("[]", ""): (
            from_value(one.before) if one.HasField("before") else None,
            from_value(one.after) if one.HasField("after") else None,
            one.devices,
        )
        for one in found.changes
    }


async def rows(world: World) -> dict[str, int]:
    """How many rows each table has, with every change of one."""
    connection = await world.database.superuser()
    tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'policy'")
    found = {
        row["tablename"]: await connection.fetchval(
            "SELECT count(*)::text"
            # That an event was published is noted a moment later.
            + (
                ""
                if row["tablename"] == "outbox"
                else " || ' ' || coalesce(sum(hashtext(t::text)), 0)"
            )
            + f" FROM policy.{row['tablename']} t"
        )
        for row in tables
        # What devices say is written a moment later.
        if not row["tablename"].endswith("cursor") and row["tablename"] != "applied_versions"
    }
    await connection.close()
    return found


async def test_what_is_simulated_is_what_happens(world: World) -> None:
    """The same counts, fields and values, and until then nothing is written."""
    group = world.neighbours.registry.group(ORG.id, "staff", 10)
    base = {
        "apps": {"required": [CHESS, PAINT]},
        "network": {"wifi": [SCHOOL, GUESTS]},
        "security": HARD,
    }
    policy = await world.admin.published(ORG.id, base)
    await publish(world, {"apps": {"required": [PAINT]}}, for_groups(group), "Staff")
    plain, member, other = new_device(world), new_device(world, group), new_device(world, group)
    has, _ = await delivered(world, member)
    before = await settled(world, ORG.id)
    await simulated(world, 3, policy_id=policy.id)
    rows_before = await rows(world)
    new = {
        "network": {"wifi": [{**SCHOOL, "passphrase": "another passphrase of it"}, GUESTS]},
        "browser": {"homepage": "https://school.example"},
        "security": {**HARD, "selinux_enforce": False},
    }
    found = await simulated(world, 3, policy_id=policy.id, bundle=new)
    assert await rows(world) == rows_before
    assert (found.devices_affected, found.editions, found.complete) == (3, 2, True)
    assert found.already_pending == 3
    seen = changed(found)
    assert seen["browser.homepage"] == (None, "https://school.example", 3)
    # Those of the group keep what its policy says.
    assert seen["apps.required[org.kde.Paint]"] == ({**PAINT, "branch": "", "source": ""}, None, 1)
    assert seen["apps.required[org.gnome.Chess]"][2] == 3
    assert next(one for one in found.changes if one.item_key == "School").secret_changed
    assert "passphrase of it" not in str(found)
    assert codes(found) == {
        "WIFI_CHANGED network.wifi[School]": 3,
        "APPS_UNINSTALLED apps.required[org.gnome.Chess]": 3,
        "APPS_UNINSTALLED apps.required[org.kde.Paint]": 1,
        "SECURITY_WEAKENED security.selinux_enforce": 3,
    }
    samples = {tuple(one.sample_device_ids) for one in found.warnings if one.devices == 1}
    assert samples == {(str(plain.id),)}
    await world.admin.call("UpdatePolicy", id=policy.id, bundle=new, signed=True)
    after = await settled(world, ORG.id)
    # A plain device's fields are different where the simulation says so, and nowhere else.
    was, becomes = (_leaves(MessageToDict(one)["document"]) for one in (before, after))
    differs = {path for path in {*was, *becomes} if was.get(path) != becomes.get(path)}
    assert {path.partition("[")[0] for path, (*_, count) in seen.items() if count} == {
        *differs,
        # The secret is another one.
        "network.wifi",
    }
    assert again(after) == MessageToDict(after.document)
    _, delivered_now = await delivered(world, member, has)
    assert [one["id"] for one in delivered_now["apps"]["required"]] == [PAINT["id"]]
    assert other.id != member.id


def _leaves(document: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{name}": value
        for section, members in document.items()
        for name, value in members.items()
    }


async def test_what_is_to_be_looked_at(world: World) -> None:
    """Networks that are lost, locks, groups that differ, switches that nobody sets, and sizes."""
    registry = world.neighbours.registry
    low, high = registry.group(ORG.id, "low", 10), registry.group(ORG.id, "high", 20)
    district = Admin(world.channel, RESELLER.id)
    lock = policy_pb2.PolicyMergingChange(locked_fields=["updates.channel"])
    above = await district.create(RESELLER.id, {"updates": {"channel": "stable"}})
    await district.call("UpdatePolicy", id=above.id, merging=lock, signed=True)
    policy = await world.admin.published(ORG.id, {"network": {"wifi": [GUESTS]}, "security": HARD})
    await publish(world, {"browser": {"homepage": "https://high"}}, for_groups(high), "High")
    new_device(world)
    both = new_device(world, low, high)
    apps = [{"id": f"org.example.App{number}"} for number in range(11)]
    bundle = {"apps": {"required": apps}, "updates": {"channel": "beta"}}
    found = await simulated(world, 2, policy_id=policy.id, bundle=bundle)
    assert codes(found) == {
        "WIFI_LOST network.wifi": 2,
        "UNSET_SECURITY security.selinux_enforce": 2,
        "UNSET_SECURITY security.usbguard": 2,
        "SECURITY_WEAKENED security.selinux_enforce": 2,
        "SECURITY_WEAKENED security.usbguard": 2,
        "LOCKED_ABOVE updates.channel": 2,
        "BIG_DOWNLOAD apps.required": 2,
    }
    for_low: dict[str, Any] = {"org_id": str(ORG.id), "targets": for_groups(low)}
    found = await simulated(world, 2, bundle={"browser": {"homepage": "https://low"}}, **for_low)
    assert codes(found) == {"GROUP_CONFLICT browser.homepage": 1}
    assert list(found.warnings[0].sample_device_ids) == [str(both.id)]
    assert (found.devices_affected, [one.devices for one in found.changes]) == (0, [0])
    empty = registry.group(ORG.id, "empty", 30)
    asked: dict[str, Any] = {"org_id": str(ORG.id), "targets": for_groups(empty)}
    found = await simulated(world, 2, bundle={"updates": {"channel": "x"}}, **asked)
    assert codes(found) == {"LOCKED_ABOVE updates.channel": 0, "NO_DEVICES": 0}
    # A withdrawal leaves what is above.
    found = await simulated(world, 2, policy_id=policy.id, withdraw=True)
    assert changed(found)["security.usbguard"] == (True, None, 2)
    assert "WIFI_LOST network.wifi" in codes(found)
    # What would not fit is refused as a publish is, and told where groups have more.
    huge = {
        "network": {"vpn_dns": ["192.0.2.1"] * 1000},
        "apps": {"required": [{"id": f"org.example.{'x' * 400}{number}"} for number in range(900)]},
    }
    await publish(world, huge, for_groups(high), "Huge")
    bundle = {
        "browser": {
            "managed_bookmarks": [
                {"name": "x" * 200, "url": f"https://{'y' * 300}{number}.example"}
                for number in range(500)
            ]
        }
    }
    found = await simulated(world, 2, policy_id=policy.id, bundle=bundle)
    assert codes(found)["HELD"] == 1


async def test_a_district_simulates_for_its_schools(world: World) -> None:
    """Its own and no others; a school without a policy counts, and secrets stay theirs."""
    district = Admin(world.channel, RESELLER.id)
    await world.admin.published(ORG.id, {"browser": {"homepage": "https://school"}})
    for org in (ORG.id, ORG.id, SISTER.id, STRANGER.id):
        new_device(world, org=org)
    bundle = {"browser": {"homepage": "https://district"}, "network": {"wifi": [DISTRICT]}}
    asked = {"org_id": str(RESELLER.id), "bundle": bundle}
    found = await simulated(world, 3, district, **asked)
    assert (found.devices_affected, found.editions) == (3, 2)
    assert changed(found)["browser.homepage"] == (None, "https://district", 1)
    assert changed(found)["network.wifi[District]"][2] == 3
    assert SECRET not in str(found)
    found = await simulated(
        world, 4, Admin(world.channel, ROOT.id), org_id=str(ROOT.id), bundle=bundle
    )
    assert found.devices_affected == 4


async def test_no_guess_of_a_districts_secret_is_told_right(world: World) -> None:
    """A school that names the district's network gets one answer, whatever it guesses."""
    district = Admin(world.channel, RESELLER.id)
    await district.published(RESELLER.id, {"network": {"wifi": [DISTRICT]}})
    policy = await world.admin.published(ORG.id, {"updates": {"channel": "stable"}})
    new_device(world)
    answers = []
    for guess in (SECRET, "quite another passphrase"):
        bundle = {"network": {"wifi": [{**DISTRICT, "passphrase": guess}]}}
        answers.append(await simulated(world, 1, policy_id=policy.id, bundle=bundle))
    assert answers[0] == answers[1]
    assert answers[0].devices_affected == 1
    assert SECRET not in json.dumps(MessageToDict(answers[0]))
    refused = await refusal(
        world.admin.call(
            "SimulatePolicy",
            policy_id=policy.id,
            bundle={"network": {"wifi": [{**DISTRICT, "passphrase": "[masked]"}]}},
        )
    )
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_cannot_be_simulated_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its field, of others' as if it was not there, and for those who see no secrets."""
    group = world.neighbours.registry.group(SISTER.id, "theirs", 1)
    policy = await world.admin.published(ORG.id, {})
    stranger = Admin(world.channel, SISTER.id)
    invalid, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    for admin, asked, code in (
        (world.admin, {}, invalid),
        (world.admin, {"org_id": str(ORG.id)}, invalid),
        (world.admin, {"org_id": str(ORG.id), "bundle": {"x": 1}}, invalid),
        (world.admin, {"org_id": str(RESELLER.id), "bundle": {}}, missing),
        (world.admin, {"policy_id": policy.id, "org_id": str(SISTER.id)}, invalid),
        (
            world.admin,
            {"org_id": str(ORG.id), "bundle": {}, "targets": for_groups(group)},
            invalid,
        ),
        (stranger, {"policy_id": policy.id}, missing),
        (stranger, {"org_id": str(ORG.id), "bundle": {}}, missing),
        (
            Admin(world.channel, ORG.id, "Auditor"),
            {"policy_id": policy.id},
            grpc.StatusCode.PERMISSION_DENIED,
        ),
    ):
        assert (await refusal(admin.call("SimulatePolicy", **asked))).code is code, asked
    # Where there is no time, it is said.
    new_device(world)
    await simulated(world, 1, policy_id=policy.id)
    monkeypatch.setattr(simulations, "_SECONDS", -1.0)
    found = await world.admin.call("SimulatePolicy", policy_id=policy.id, bundle={"security": HARD})
    assert (found.complete, found.devices) == (False, 0)
    assert changed(found)["security.usbguard"] == (None, True, 0)
