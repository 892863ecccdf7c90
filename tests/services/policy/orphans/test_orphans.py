"""Policies that are out of force, and the devices that go on with them."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import grpc

from tests.support.policy import ORG, SISTER, Admin, Device, World, verified, world
from tests.support.refusals import refusal
from tests.support.stack import PATIENCE

__all__ = ["world"]

DOCUMENT = {"security": {"ssh_enabled": True}}
OTHER = {"updates": {"channel": "beta"}}


async def orphans(admin: Admin, **request: Any) -> tuple[list[tuple[str, str, str]], int]:
    page = await admin.call("ListOrphanedDevices", **request)
    shown = [(d.device_id, d.policy_version, d.policy_name) for d in page.devices]
    return shown, page.total_size


async def test_what_is_in_force_is_not_deleted_by_the_way(world: World) -> None:
    """Refused with what to do; withdrawn, devices keep it, and are shown until the next publish."""
    policy = await world.admin.published(ORG.id, DOCUMENT)
    refused = await refusal(world.admin.call("DeletePolicy", id=policy.id))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "POLICY_IN_FORCE",
    )
    for word in ("publish", "withdraw", "force=true"):
        assert word in refused.body["message"]
    devices = sorted(
        (Device(world.kit, world.channel, uuid4(), ORG.id) for _ in range(3)),
        key=lambda device: device.id,
    )
    for device in devices:
        assert (await device.pull("1")).status_code == 304
        world.neighbours.registry.add(device.id, ORG.id)
    gone = Device(world.kit, world.channel, uuid4(), ORG.id)
    assert (await gone.pull("1")).status_code == 304
    world.neighbours.registry.add(gone.id, ORG.id, "decommissioned")
    withdrawn = await world.admin.call("WithdrawPolicy", id=policy.id)
    assert (withdrawn.in_force, withdrawn.signed, withdrawn.version) == (False, False, "1")
    assert withdrawn.etag != policy.etag
    assert await world.admin.call("WithdrawPolicy", id=policy.id) == withdrawn
    assert (await devices[0].pull("1")).status_code == 304
    fresh = Device(world.kit, world.channel, uuid4(), ORG.id)
    assert (await fresh.pull()).status_code == 304
    named = [(str(device.id), "1", policy.name) for device in devices]
    async with asyncio.timeout(PATIENCE):
        while await orphans(world.admin) != (named, 3):
            await asyncio.sleep(0.05)
    page = await world.admin.call("ListOrphanedDevices", page_size=2)
    page = await world.admin.call(
        "ListOrphanedDevices", page_size=2, page_token=page.next_page_token
    )
    assert ([d.device_id for d in page.devices], page.next_page_token) == ([named[2][0]], "")
    stranger = Admin(world.channel, SISTER.id, "Auditor")
    assert await orphans(stranger) == ([], 0)
    await world.admin.call("DeletePolicy", id=policy.id)
    assert await orphans(world.admin, org_id=str(ORG.id)) == ([(i, v, "") for i, v, _ in named], 3)
    assert (await world.admin.published(ORG.id, OTHER)).version == "2"
    assert await orphans(world.admin) == ([], 0)
    assert verified(await world.pem(), await devices[0].pull("1"))["version"] == "2"
