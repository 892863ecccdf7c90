"""A school's own values in templates of its district: they count where the district lets them, and
give nothing away."""

from __future__ import annotations

import asyncio
import copy
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest

from evergreen.v1 import policy_pb2, policy_pb2_grpc
from servicekit.call import H_AUTHENTICATED
from tests.services.policy.layers.test_layers import settled
from tests.services.policy.variables.test_variables import SECRET, TEMPLATE, Keeper
from tests.support.policy import ORG, RESELLER, ROOT, SISTER, Device, World, verified, world
from tests.support.refusals import refusal

__all__ = ["world"]

PATIENCE = 30
OWN = "what opens the school's network"
VPN: dict[str, Any] = {
    "template": {
        "network": {
            "vpns": [
                {
                    "name": "Home",
                    "data": {"gateway": "{{var.gateway}}"},
                    "secrets": {"password": "{{secret.vpn}}"},
                }
            ]
        }
    }
}


class Seen:
    """A device of a school, and what it has."""

    def __init__(self, world: World, org: UUID) -> None:
        self._device = Device(world.kit, world.channel, uuid4(), org)
        self._world = world
        self.version = ""
        self.policy: dict[str, Any] = {}

    async def gets(self) -> dict[str, Any]:
        """What comes next."""
        async with asyncio.timeout(PATIENCE):
            while True:
                answer = await self._device.pull(self.version)
                if answer.status_code == 200:
                    break
                assert answer.status_code == 304, answer.text
                await asyncio.sleep(0.05)
        verified(await self._world.pem(), answer)
        got = answer.json()
        assert int(got["version"]) > int(self.version or 0)
        self.version, self.policy = got["version"], got["policy"]
        return self.policy

    async def has(self) -> tuple[str, str]:
        """What it has next: the homepage and the passphrase of the first network."""
        policy = await self.gets()
        return policy["browser"]["homepage"], policy["network"]["wifi"][0]["passphrase"]

    async def stays(self) -> bool:
        return (await self._device.pull(self.version)).status_code == 304


@pytest.fixture
def district(world: World) -> Keeper:
    return Keeper(world.channel, RESELLER.id)


@pytest.fixture
def school(world: World) -> Keeper:
    return Keeper(world.channel, ORG.id)


async def _put(keeper: Keeper, tenant: UUID, name: str, value: str, **more: Any) -> Any:
    return await keeper.variable("Create", org_id=str(tenant), name=name, value=value, **more)


async def _published(district: Keeper, *, overridable: bool = True) -> Any:
    await _put(district, RESELLER.id, "host", "district.example", overridable=overridable)
    await _put(district, RESELLER.id, "wifi", SECRET, secret=True, overridable=overridable)
    return await district.published(RESELLER.id, TEMPLATE)


async def _layered(keeper: Keeper, org: UUID = ORG.id) -> Any:
    return await keeper.call("GetLayeredPolicy", org_id=str(org))


async def test_a_school_has_its_own_values(world: World, district: Keeper, school: Keeper) -> None:
    """Each by itself, at once, and the district's again when it has none any more. A sister school
    keeps what it has."""
    above = await _published(district)
    device, other = Seen(world, ORG.id), Seen(world, SISTER.id)
    assert await device.has() == await other.has() == ("https://district.example/start", SECRET)
    host = await _put(school, ORG.id, "host", "school.example")
    assert list(host.taken_by) == ["Policy"]
    assert await device.has() == ("https://school.example/start", SECRET)
    wifi = await _put(school, ORG.id, "wifi", OWN, secret=True)
    assert await device.has() == ("https://school.example/start", OWN)
    await school.variable("Update", id=host.id, value="other.example")
    assert await device.has() == ("https://other.example/start", OWN)
    await _put(school, ORG.id, "unrelated", "x")
    assert await device.stays()
    # With a layer of its own, and with the next version of the district.
    await school.published(ORG.id, {"security": {"ssh_enabled": True}})
    assert await device.has() == ("https://other.example/start", OWN)
    assert device.policy["security"]["ssh_enabled"]
    changed = copy.deepcopy(TEMPLATE)
    changed["template"]["browser"]["homepage"] = "https://{{var.host}}/next"
    await district.call("UpdatePolicy", id=above.id, bundle=changed, signed=True)
    assert await device.has() == ("https://other.example/next", OWN)
    assert await other.has() == ("https://district.example/next", SECRET)
    await school.variable("Delete", id=wifi.id)
    assert await device.has() == ("https://other.example/next", SECRET)
    assert await other.stays()
    shown = await _layered(school)
    assert shown.state == "CURRENT"
    assert SECRET not in str(shown)


async def test_a_district_decides_which_values_are_open(
    world: World, district: Keeper, school: Keeper
) -> None:
    """What it does not say is not; and it counts with its next publish."""
    await _published(district, overridable=False)
    device = Seen(world, ORG.id)
    host = await _put(school, ORG.id, "host", "school.example")
    await _put(school, ORG.id, "wifi", OWN, secret=True)
    assert not host.taken_by
    assert await device.has() == ("https://district.example/start", SECRET)
    found = await district.variable("List", org_id=str(RESELLER.id))
    names = {one.name: one for one in found.variables if one.org_id == str(RESELLER.id)}
    opened = await district.variable("Update", id=names["wifi"].id, overridable=True)
    assert (opened.overridable, opened.policies[0].has_older_value) == (True, True)
    assert await device.stays()
    await district.variable("Update", id=names["wifi"].id, overridable=True, apply="NOW")
    assert await device.has() == ("https://district.example/start", OWN)
    refused = await refusal(district.variable("Update", id=names["host"].id))
    assert refused.fields == ["value"]


async def test_code_and_name_of_the_school(world: World, district: Keeper, school: Keeper) -> None:
    """In its own policies, and in the district's for each school."""
    template = {"template": {"browser": {"homepage": "https://x.example/{{org.code}}"}}}
    device, other = Seen(world, ORG.id), Seen(world, SISTER.id)
    own = await school.published(ORG.id, template)
    assert (await device.gets())["browser"]["homepage"] == f"https://x.example/{ORG.code}"
    await school.call("WithdrawPolicy", id=own.id)
    template["template"]["browser"]["managed_bookmarks"] = [
        {"name": "{{org.name}}", "url": "https://y.example"}
    ]
    await district.published(RESELLER.id, template)
    for one, org in ((device, ORG), (other, SISTER)):
        browser = (await one.gets())["browser"]
        assert browser["homepage"] == f"https://x.example/{org.code}"
        assert browser["managed_bookmarks"][0]["name"] == org.name


async def test_no_school_sends_a_secret_of_its_district_elsewhere(
    world: World, district: Keeper, school: Keeper
) -> None:
    """A network or VPN has either all secrets of a tenant with its values, or none of them."""
    gateway = await _put(district, RESELLER.id, "gateway", "vpn.district.example", overridable=True)
    vpn = await _put(district, RESELLER.id, "vpn", SECRET, secret=True)
    inline = copy.deepcopy(VPN)
    inline["template"]["network"]["vpns"][0]["secrets"]["password"] = "inline"
    named = copy.deepcopy(VPN)
    named["template"]["network"]["vpns"][0]["data"]["gateway"] = "{{org.name}}.example"
    for bundle in (VPN, inline, named):
        refused = await refusal(district.create(RESELLER.id, bundle))
        assert refused.fields == ["bundle.template.network.vpns[0]"]
    await district.variable("Update", id=vpn.id, overridable=True)
    await district.published(RESELLER.id, VPN)
    device = Seen(world, ORG.id)

    async def has() -> tuple[str, str]:
        (found,) = (await device.gets())["network"]["vpns"]
        return found["data"]["gateway"], found["secrets"]["password"]

    assert await has() == ("vpn.district.example", SECRET)
    taken = await _put(school, ORG.id, "gateway", "vpn.elsewhere.example")
    assert taken.taken_by
    await _layered(school)
    own = await _put(school, ORG.id, "vpn", OWN, secret=True)
    while await has() == ("vpn.district.example", SECRET):
        pass
    (found,) = device.policy["network"]["vpns"]
    assert (found["data"]["gateway"], found["secrets"]["password"]) == (
        "vpn.elsewhere.example",
        OWN,
    )
    await school.variable("Delete", id=own.id)
    assert await has() == ("vpn.district.example", SECRET)
    assert gateway.overridable


async def test_a_value_that_does_not_fit(world: World, district: Keeper, school: Keeper) -> None:
    """It is refused where it is set. Where a district's next version makes it so, devices keep what
    they have, and those of other schools get the version."""
    above = await _published(district)
    await _put(district, RESELLER.id, "start", "start", overridable=True)
    device, other = Seen(world, ORG.id), Seen(world, SISTER.id)
    await device.has()
    await other.has()
    refused = await refusal(_put(school, ORG.id, "wifi", "a\nb", secret=True))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["value"])
    assert SECRET not in json.dumps(refused.body)
    assert not (await school.variable("List", org_id=str(ORG.id))).variables
    await _put(school, ORG.id, "start", "a\nb")
    changed = copy.deepcopy(TEMPLATE)
    changed["template"]["network"]["wifi"].append({"ssid": "{{var.start}}", "security": "none"})
    simulated = await district.call("SimulatePolicy", policy_id=above.id, bundle=changed)
    assert simulated.complete
    await district.call("UpdatePolicy", id=above.id, bundle=changed, signed=True)
    await other.has()
    assert [one["ssid"] for one in other.policy["network"]["wifi"]] == ["Pupils", "Staff", "start"]
    async with asyncio.timeout(PATIENCE):
        while (await _layered(school)).state != "HELD":
            await asyncio.sleep(0.05)
    assert await device.stays()
    found = await school.variable("List", org_id=str(ORG.id))
    await school.variable("Update", id=found.variables[0].id, value="fits")
    await device.has()
    assert [one["ssid"] for one in device.policy["network"]["wifi"]] == ["Pupils", "Staff", "fits"]


async def test_a_districts_value_has_to_fit_for_its_schools(
    world: World, district: Keeper, school: Keeper
) -> None:
    """Together with what these have of their own. One that does not fit anyway is in nobody's
    way."""
    root = Keeper(world.channel, ROOT.id)
    for name in ("start", "end"):
        await _put(root, ROOT.id, name, "x", overridable=True)
    network = {"ssid": "{{var.start}}{{var.end}}", "security": "none"}
    above = await root.published(ROOT.id, {"template": {"network": {"wifi": [network]}}})
    device = Seen(world, ORG.id)
    await device.gets()
    await _put(school, ORG.id, "end", "y" * 25)
    await device.gets()
    refused = await refusal(_put(district, RESELLER.id, "start", "z" * 10))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["value"])
    assert f"for {ORG.name} below" in json.dumps(refused.body)
    start = await _put(district, RESELLER.id, "start", "z" * 7)
    assert (await device.gets())["network"]["wifi"][0]["ssid"] == "z" * 7 + "y" * 25
    await _put(school, ORG.id, "more", "a\nb")
    network["passphrase"] = "{{var.more}}"
    await _put(root, ROOT.id, "more", "x", overridable=True)
    changed = {"template": {"network": {"wifi": [network]}}}
    await root.call("UpdatePolicy", id=above.id, bundle=changed, signed=True)
    await settled(world, ORG.id, "HELD")
    await district.variable("Update", id=start.id, value="z" * 8)


async def test_a_value_is_not_deleted_where_that_above_does_not_fit(
    world: World, district: Keeper, school: Keeper
) -> None:
    """A value in its place is tried as a new one is, for the schools below, too."""
    root = Keeper(world.channel, ROOT.id)
    await _put(root, ROOT.id, "start", "x" * 20, overridable=True)
    await _put(root, ROOT.id, "end", "x", overridable=True)
    network = {"ssid": "{{var.start}}{{var.end}}", "security": "none"}
    await root.published(ROOT.id, {"template": {"network": {"wifi": [network]}}})
    device = Seen(world, ORG.id)
    await device.gets()
    start = await _put(district, RESELLER.id, "start", "z")
    end = await _put(school, ORG.id, "end", "y" * 25)
    assert (await device.gets())["network"]["wifi"][0]["ssid"] == "z" + "y" * 25
    refused = await refusal(district.variable("Delete", id=start.id))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "VARIABLE_USED",
    )
    assert f"for {ORG.name} below" in json.dumps(refused.body)
    assert await device.stays()
    await school.variable("Delete", id=end.id)
    await device.gets()
    await district.variable("Delete", id=start.id)
    assert (await device.gets())["network"]["wifi"][0]["ssid"] == "x" * 21


async def test_a_lock_takes_no_value_away_that_fits(
    world: World, district: Keeper, school: Keeper
) -> None:
    """Where another one does not: a device without its school's passphrase is out of reach."""
    above = await _published(district)
    locks = policy_pb2.PolicyMergingChange(locked_fields=["network"])
    await district.call("UpdatePolicy", id=above.id, merging=locks, signed=True)
    await _put(district, RESELLER.id, "start", "start", overridable=True)
    await _put(school, ORG.id, "wifi", OWN, secret=True)
    await _put(school, ORG.id, "host", "school.example")
    await _put(school, ORG.id, "start", "a\nb")
    device = Seen(world, ORG.id)
    # The values may come one after the other.
    while await device.has() != ("https://school.example/start", OWN):
        pass
    changed = copy.deepcopy(TEMPLATE)
    changed["template"]["network"]["wifi"][1]["ssid"] = "New"
    changed["template"]["network"]["wifi"].append({"ssid": "{{var.start}}", "security": "none"})
    await district.call("UpdatePolicy", id=above.id, bundle=changed, signed=True)
    assert await device.has() == ("https://school.example/start", OWN)
    assert [one["ssid"] for one in device.policy["network"]["wifi"]] == ["Pupils", "New", "start"]
    assert (await _layered(school)).state == "HELD"


@pytest.mark.parametrize("layered", [False, True])
async def test_nothing_tells_that_a_value_is_the_districts(
    world: World, district: Keeper, school: Keeper, *, layered: bool
) -> None:
    """Devices get a new number whether a guess is right or not."""
    await _published(district)
    if layered:
        await school.published(ORG.id, {"security": {"ssh_enabled": True}})
    device = Seen(world, ORG.id)
    await device.has()
    guess = await _put(school, ORG.id, "wifi", "a wrong guess", secret=True)
    assert (await device.has())[1] == "a wrong guess"
    await school.variable("Update", id=guess.id, value=SECRET)
    assert (await device.has())[1] == SECRET
    first = int(device.version)
    await school.variable("Update", id=guess.id, value="a wrong guess")
    assert (await device.has())[1] == "a wrong guess"
    await school.variable("Delete", id=guess.id)
    assert (await device.has())[1] == SECRET
    assert int(device.version) > first


async def test_freezes_and_second_persons_count(
    world: World, district: Keeper, school: Keeper
) -> None:
    """What policies above take changes devices at once: it is refused as a publish is."""
    await _published(district)
    settings = policy_pb2_grpc.PolicyRolloutServiceStub(world.channel)
    owner = Keeper(world.channel, ORG.id, "Owner")
    today = datetime.now(UTC).date()
    freeze = policy_pb2.PolicyFreezeChange(
        name="Exams",
        first_day=str(today - timedelta(days=1)),
        last_day=str(today + timedelta(days=1)),
    )

    async def say(**said: Any) -> None:
        request = policy_pb2.UpdatePolicySettingsRequest(org_id=str(ORG.id), **said)
        now = str(int(datetime.now(UTC).timestamp()))
        fresh = (*owner.metadata, (H_AUTHENTICATED, now))
        await settings.UpdatePolicySettings(request, metadata=fresh, timeout=60)

    await say(require_approval=True)
    refused = await refusal(_put(school, ORG.id, "host", "school.example"))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "OWNER_NEEDED",
    )
    host = await _put(owner, ORG.id, "host", "school.example")
    await say(freezes=policy_pb2.PolicyFreezesChange(items=[freeze]))
    asked: dict[str, Any] = {"id": host.id, "value": "other.example"}
    for refused in (
        await refusal(owner.variable("Update", **asked)),
        await refusal(owner.variable("Delete", id=host.id)),
    ):
        assert refused.reason == "POLICIES_FROZEN"
    await owner.variable("Update", **asked, urgent=True)
    await _put(school, ORG.id, "unrelated", "x")
    async with asyncio.timeout(PATIENCE):
        while (await Seen(world, ORG.id).has())[0] != "https://other.example/start":
            await asyncio.sleep(0.05)


async def test_a_simulation_has_the_schools_own_values(
    world: World, district: Keeper, school: Keeper
) -> None:
    """A district sees what each school would get; and nothing where nothing changes."""
    above = await _published(district)
    await _put(school, ORG.id, "host", "school.example")
    for org in (ORG, SISTER):
        world.neighbours.registry.add(uuid4(), org.id)
    changed = copy.deepcopy(TEMPLATE)
    changed["template"]["browser"]["homepage"] = "https://{{var.host}}/next"
    async with asyncio.timeout(PATIENCE):
        while True:
            found = await district.call("SimulatePolicy", policy_id=above.id, bundle=changed)
            if found.devices == 2:
                break
            await asyncio.sleep(0.05)
    got = {one.after.string_value: one.devices for one in found.changes}
    assert got["https://school.example/next"] == 1
    assert got["https://district.example/next"] == 1
    assert not (await district.call("SimulatePolicy", policy_id=above.id)).changes


async def test_a_value_of_impossible_length_gets_advice(
    world: World, district: Keeper, school: Keeper
) -> None:
    """Of the district's own policies, and of those above a school; never the value. What was not
    given, and fields that others have a part in, get none."""
    host = await _put(district, RESELLER.id, "host", "district.example", overridable=True)
    wifi = await _put(district, RESELLER.id, "wifi", SECRET, secret=True, overridable=True)
    assert not host.warnings
    assert not wifi.warnings
    template = copy.deepcopy(TEMPLATE)
    template["template"]["network"]["wifi"] = [
        {"ssid": "A", "security": "wpa-psk", "passphrase": "{{secret.wifi}}"},
        {"ssid": "B", "security": "sae", "passphrase": "{{secret.wifi}}"},
        {"ssid": "C", "security": "wpa-psk", "passphrase": "{{secret.wifi}}{{secret.wifi}}"},
    ]
    await district.published(RESELLER.id, template)
    field = "bundle.template.network.wifi[0].passphrase"
    told = [("Policy", field, "psk-size")]

    def advice(answer: Any) -> list[tuple[str, str, str]]:
        assert "short" not in str(answer)
        return [(one.policy_name, one.field, one.rule) for one in answer.warnings]

    assert advice(await _put(school, ORG.id, "wifi", "short", secret=True)) == told
    assert advice(await district.variable("Update", id=wifi.id, value="short", apply="NOW")) == told
    again = await district.variable("Update", id=wifi.id, value="short")
    assert advice(again) == told
    assert not advice(await district.variable("Update", id=wifi.id, overridable=False))
    assert not advice(await district.variable("Get", id=wifi.id))
    assert not advice(await district.variable("Update", id=wifi.id, value=SECRET))
