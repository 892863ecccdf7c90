"""A change above many organisations, which are put together in a few transactions."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.policy.authoring.document import MAX_DOCUMENT
from services.policy.editions import service
from tests.conftest import tenant
from tests.services.policy.layers.test_layers import settled
from tests.services.policy.targets.test_targets import delivered, for_groups, new_device, publish
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
