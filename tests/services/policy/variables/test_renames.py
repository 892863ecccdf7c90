"""Templates above with the name of a school, which gets another one."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from evergreen.v1 import policy_pb2, policy_pb2_grpc
from servicekit.call import H_AUTHENTICATED
from services.policy.editions import service
from tests.services.policy.layers.test_layers import settled
from tests.services.policy.variables.test_own_values import Seen
from tests.services.policy.variables.test_variables import Keeper
from tests.support.policy import ORG, RESELLER, SISTER, World, world

__all__ = ["world"]

TEMPLATE: dict[str, Any] = {
    "template": {
        "browser": {"homepage": "https://{{var.host}}/{{org.name}}"},
        "network": {"wifi": [{"ssid": "{{org.name}}", "security": "none"}]},
    }
}


async def _published(world: World) -> tuple[Seen, Seen]:
    district = Keeper(world.channel, RESELLER.id)
    await district.variable(
        "Create", org_id=str(RESELLER.id), name="host", value="x.example", overridable=True
    )
    await district.published(RESELLER.id, TEMPLATE)
    seen = Seen(world, ORG.id), Seen(world, SISTER.id)
    for one in seen:
        await one.gets()
    return seen


async def _frozen(world: World, *, days: int | None) -> None:
    """A school's freeze; none for `None`."""
    settings = policy_pb2_grpc.PolicyRolloutServiceStub(world.channel)
    owner = Keeper(world.channel, ORG.id, "Owner")
    today = datetime.now(UTC).date()
    items = []
    if days is not None:
        first, last = str(today - timedelta(days=1)), str(today + timedelta(days=days))
        items = [policy_pb2.PolicyFreezeChange(name="Exams", first_day=first, last_day=last)]
    request = policy_pb2.UpdatePolicySettingsRequest(
        org_id=str(ORG.id), freezes=policy_pb2.PolicyFreezesChange(items=items)
    )
    now = str(int(datetime.now(UTC).timestamp()))
    await settings.UpdatePolicySettings(
        request, metadata=(*owner.metadata, (H_AUTHENTICATED, now)), timeout=60
    )


async def test_a_new_name_waits_for_the_end_of_a_freeze(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a school that is in none comes at once; and what else changes brings it along."""
    monkeypatch.setattr(service, "_AGAIN_SECONDS", 0.2)
    device, other = await _published(world)
    await _frozen(world, days=1)
    world.kit.tenants.learn([replace(ORG, name="Linden"), replace(SISTER, name="Maple")])
    assert (await other.gets())["browser"]["homepage"] == "https://x.example/Maple"
    await settled(world, ORG.id, "PENDING")
    await asyncio.sleep(0.5)
    assert await device.stays()
    await _frozen(world, days=None)
    assert (await device.gets())["browser"]["homepage"] == "https://x.example/Linden"

    monkeypatch.setattr(service, "_AGAIN_SECONDS", 60.0)
    await _frozen(world, days=1)
    world.kit.tenants.learn([replace(ORG, name="Birch")])
    await settled(world, ORG.id, "PENDING")
    await asyncio.sleep(0.5)
    assert await device.stays()
    school = Keeper(world.channel, ORG.id)
    values = {"org_id": str(ORG.id), "name": "host", "value": "school.example"}
    await school.variable("Create", **values, urgent=True)
    assert (await device.gets())["browser"]["homepage"] == "https://school.example/Birch"


async def test_a_name_that_does_not_fit_is_held(world: World) -> None:
    """Devices keep what they have until there is one that fits."""
    device, other = await _published(world)
    world.kit.tenants.learn([replace(ORG, name="x" * 33), replace(SISTER, name="Maple")])
    held = await settled(world, ORG.id, "HELD")
    assert "must be 1 to 32 bytes" in held.state_reason
    assert await device.stays()
    assert (await other.gets())["network"]["wifi"][0]["ssid"] == "Maple"
    world.kit.tenants.learn([replace(ORG, name="Linden")])
    assert (await device.gets())["network"]["wifi"][0]["ssid"] == "Linden"
