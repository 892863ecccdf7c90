"""A change above many organisations, which are put together in a few transactions."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from services.policy.authoring.document import MAX_DOCUMENT
from services.policy.editions import service
from tests.conftest import tenant
from tests.services.policy.layers.test_layers import settled
from tests.services.policy.targets.test_targets import delivered, for_groups, new_device, publish
from tests.services.policy.variables.test_variables import SECRET, TEMPLATE, Keeper
from tests.support.policy import ORG, RESELLER, SISTER, Admin, Device, World, world

__all__ = ["world"]

SCHOOLS = [tenant(200 + number, RESELLER) for number in range(9)]
DISTRICT = {"updates": {"channel": "beta"}}


def channel(policy: dict[str, Any]) -> str:
    found: str = policy["updates"]["channel"]
    return found


async def test_every_school_gets_a_districts_publish(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those with a policy of their own, those without one, one with more groups than fit into a
    transaction; and one whose layers do not fit together keeps what it had."""
    monkeypatch.setattr(service, "_TOGETHER", 4)
    world.kit.tenants.learn(SCHOOLS)
    schools: list[tuple[Device, int]] = []
    for number, school in enumerate(SCHOOLS):
        version = 0
        if number % 2:
            pages = {"homepage": f"https://{number}.example"}
            mine = await Admin(world.channel, school.id).published(school.id, {"browser": pages})
            version = int(mine.version)
        schools.append((new_device(world, org=school.id), version))
    long = {"usbguard_rules": [f"allow {number} {'x' * 8000}" for number in range(60)]}
    await Admin(world.channel, SISTER.id).published(SISTER.id, {"security": long})
    full = new_device(world, org=SISTER.id)
    before, _ = await delivered(world, full)
    registry = world.neighbours.registry
    groups = [registry.group(ORG.id, f"g{number}", number + 1) for number in range(6)]
    members = [new_device(world, group) for group in groups]
    for number, group in enumerate(groups):
        bundle = {"browser": {"extensions": [f"e{number}"]}}
        await publish(world, bundle, for_groups(group), f"P{number}")
    had = [(await delivered(world, device))[0] for device in members]

    apps = {"required": [{"id": f"org.a.B{n}", "source": "x" * 4000} for n in range(20)]}
    await Admin(world.channel, RESELLER.id).published(RESELLER.id, {**DISTRICT, "apps": apps})
    found = await asyncio.gather(*(delivered(world, *one) for one in schools))
    for number, (_, policy) in enumerate(found):
        assert channel(policy) == "beta"
        page = f"https://{number}.example" if number % 2 else ""
        assert policy["browser"]["homepage"] == page
    numbers = []
    for number, device in enumerate(members):
        version, policy = await delivered(world, device, had[number])
        assert (channel(policy), policy["browser"]["extensions"]) == ("beta", [f"e{number}"])
        assert (await device.pull(str(version))).status_code == 304
        numbers.append(version)
    assert len({*had, *numbers}) == 12
    held = await settled(world, SISTER.id, "HELD")
    assert held.state_reason.endswith(f"more than {MAX_DOCUMENT} bytes")
    assert (await full.pull(str(before))).status_code == 304


async def test_schools_have_their_own_values_beside_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where many are put together at once, for groups, too. A secret that is set
    has a number of its own, also where it is the district's or one that was there before."""
    monkeypatch.setattr(service, "_TOGETHER", 4)
    world.kit.tenants.learn(SCHOOLS)
    keepers = {one.id: Keeper(world.channel, one.id) for one in (RESELLER, ORG, *SCHOOLS)}

    async def created(tenant_id: UUID, name: str, value: str, **more: Any) -> str:
        values = {"org_id": str(tenant_id), "name": name, "value": value, **more}
        found = await keepers[tenant_id].variable("Create", **values)
        return str(found.id)

    await created(RESELLER.id, "host", "district.example", overridable=True)
    await created(RESELLER.id, "wifi", SECRET, secret=True, overridable=True)
    own = {one.id: f"{at}.example" for at, one in enumerate(SCHOOLS) if at % 2}
    for tenant_id, host in own.items():
        await created(tenant_id, "host", host)
    await keepers[ORG.id].published(ORG.id, {"security": {"ssh_enabled": True}})
    group = world.neighbours.registry.group(ORG.id, "g", 1)
    seen = {one.id: new_device(world, org=one.id) for one in SCHOOLS}
    devices = [new_device(world), new_device(world, group)]
    await publish(world, {"browser": {"extensions": ["e"]}}, for_groups(group), "P")
    numbers = [(await delivered(world, one))[0] for one in devices]

    await keepers[RESELLER.id].published(RESELLER.id, TEMPLATE)
    found = await asyncio.gather(*(delivered(world, one) for one in seen.values()))
    for school, (_, policy) in zip(SCHOOLS, found, strict=True):
        host = own.get(school.id, "district.example")
        assert policy["browser"]["homepage"] == f"https://{host}/start"
        assert policy["network"]["wifi"][0]["passphrase"] == SECRET
    secret = ""
    for value in (None, SECRET, "another one", SECRET):
        if secret and value:
            await keepers[ORG.id].variable("Update", id=secret, value=value)
        elif value:
            secret = await created(ORG.id, "wifi", value, secret=True)
        for who, extensions in enumerate((None, ["e"])):
            numbers[who], policy = await delivered(world, devices[who], numbers[who])
            assert policy["network"]["wifi"][0]["passphrase"] == (value or SECRET)
            assert policy["browser"]["extensions"] == extensions
        assert numbers[0] != numbers[1]
