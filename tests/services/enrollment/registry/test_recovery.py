"""Devices that the registry forgot: the database was restored to a moment before they enrolled."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from evergreen.v1 import policy_pb2
from tests.support.enrollment import ORG, Enrollment, service
from tests.support.stack import PATIENCE

__all__ = ["service"]


def calls(service: Enrollment, device_id: str, token_version: int) -> None:
    service.neighbours.policy.applied.append(
        policy_pb2.AppliedVersion(
            device_id=device_id,
            tenant_id=str(ORG.id),
            version="7",
            token_version=token_version,
        )
    )


async def until_known(service: Enrollment, device_id: str, token_version: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await service.sql(
            "SELECT FROM enrollment.device WHERE id = $1 AND token_version = $2",
            device_id,
            token_version,
        ):
            await asyncio.sleep(0.1)


async def test_a_forgotten_device_is_registered_when_it_calls(service: Enrollment) -> None:
    """Once, with an entry in the audit log; an administrator can lock it out again."""
    device_id = str(uuid4())
    calls(service, device_id, 3)
    calls(service, device_id, 3)
    await until_known(service, device_id, 3)
    found = await service.registration(device_id)
    assert (found.status, found.serial) == ("active", f"recovered:{device_id}")
    (event,) = await service.events("device_recovered")
    assert event["actor"] == f"device:{device_id}"
    assert event["tenantId"] == str(ORG.id)
    locked = await service.act("DecommissionDevice", device_id)
    assert locked.status == "decommissioned"


async def test_a_newer_token_of_a_known_device_ends_the_older_ones(service: Enrollment) -> None:
    """Who was locked out stays so, whatever it still says."""
    token = await service.token()
    enrolled = await service.enrolled(token.pre_shared_key)
    device_id = enrolled["device_id"]
    await service.act("DecommissionDevice", device_id)
    calls(service, device_id, 2)
    await until_known(service, device_id, 2)
    assert (await service.registration(device_id)).status == "decommissioned"
    assert await service.events("device_recovered") == []
