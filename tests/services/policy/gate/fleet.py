"""A fleet with an attestation gate: laptops, their policy, and the other one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

from evergreen.v1 import policy_pb2
from servicekit.call import H_AUTHENTICATED
from tests.support.policy import ORG, Admin, Device, World, verified
from tests.support.stack import PATIENCE

NORMAL: Final = {"browser": {"homepage": "https://normal"}, "security": {"usbguard": True}}
OTHER: Final = {"browser": {"homepage": "https://other"}}
AGO: Final = timedelta(hours=2)


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    """Waits until something is so."""
    async with asyncio.timeout(PATIENCE):
        while not await check():
            await asyncio.sleep(0.05)


@dataclass
class Laptop:
    """A device, with all that it ever got."""

    device: Device
    has: int = 0
    homepage: str = ""
    usbguard: bool = False
    contents: dict[int, str] = field(default_factory=dict)

    async def poll(self, pem: str) -> bool:
        """Polls once; answers whether it got something, under a number above all before."""
        answer = await self.device.pull(str(self.has or ""))
        if answer.status_code == 304:
            return False
        envelope = verified(pem, answer)
        number, policy = int(envelope["version"]), envelope["policy"]
        assert number > self.has
        self.has, self.homepage = number, policy["browser"]["homepage"]
        self.usbguard = policy["security"]["usbguard"]
        assert self.contents.setdefault(number, self.homepage) == self.homepage
        return True


@dataclass
class Fleet:
    """An organisation with a policy, another one for a gate, and laptops."""

    world: World
    pem: str
    normal: policy_pb2.Policy
    other: policy_pb2.Policy
    empty: UUID
    """A group without members, for which the other policy is in force."""
    laptops: list[Laptop]

    async def enforce(self, short: int, **more: Any) -> policy_pb2.AttestationGate:
        """Enforces the gate for so many devices of the preview."""
        wanted = {"at_least": "KNOWN_TPM", "grace_hours": 1, "max_percent": 50} | more
        found: policy_pb2.AttestationGate = await self.world.admin.call(
            "UpdateAttestationGate",
            mode="ENFORCE",
            otherwise_policy_id=wanted.pop("otherwise_policy_id", self.other.id),
            expected_devices=short,
            **wanted,
        )
        return found

    def tell(self, index: int, verdict: str) -> None:
        self.world.neighbours.attestation.tell(self.laptops[index].device.id, verdict)

    async def have(self, *homepages: str) -> None:
        """Waits until the laptops have these, and get nothing more."""
        wanted = [f"https://{one}" for one in homepages]

        async def so() -> bool:
            got = [await one.poll(self.pem) for one in self.laptops]
            return not any(got) and [one.homepage for one in self.laptops] == wanted

        await eventually(so)
        await asyncio.sleep(0.3)
        assert await so()

    async def events(self, *names: str) -> list[Any]:
        """The events with these names, as they are told."""
        return [
            one["data"] for one in await self.world.events() if one["data"]["action"][7:] in names
        ]


def log_in(user: Admin) -> None:
    """Lets a user have logged in just now."""
    now = str(int(datetime.now(UTC).timestamp()))
    user.metadata = (*user.metadata, (H_AUTHENTICATED, now))


async def opened(world: World, *verdicts: str) -> Fleet:
    """A fleet with verdicts, which have what is in force."""
    admin, registry = world.admin, world.neighbours.registry
    log_in(admin)
    normal = await admin.published(ORG.id, NORMAL)
    empty = registry.group(ORG.id, "quarantine", 1)
    created = await admin.call(
        "CreatePolicy",
        org_id=str(ORG.id),
        name="Other",
        bundle=OTHER,
        targets=policy_pb2.PolicyTargetsChange(group_ids=[str(empty)]),
    )
    other = await admin.call("PublishPolicy", id=created.id)
    laptops = []
    for verdict in verdicts:
        laptop = Laptop(Device(world.kit, world.channel, uuid4(), ORG.id))
        registry.add(laptop.device.id, ORG.id, enrolled_at=datetime.now(UTC) - AGO)
        if verdict:
            world.neighbours.attestation.tell(laptop.device.id, verdict)
        laptops.append(laptop)

    async def heard() -> bool:
        connection = await world.database.superuser()
        told = await connection.fetchval("SELECT count(*) FROM policy.device_verdict")
        known = await connection.fetchval("SELECT count(*) FROM policy.devices")
        await connection.close()
        return bool(told == len([*filter(None, verdicts)]) and known == len(verdicts))

    await eventually(heard)
    fleet = Fleet(world, await world.pem(), normal, other, empty, laptops)
    for laptop in laptops:
        await laptop.poll(fleet.pem)
    return fleet


async def grouped(fleet: Fleet, *indices: int) -> UUID:
    """A group with some of the laptops, as soon as policy has heard of it."""
    world, registry = fleet.world, fleet.world.neighbours.registry
    group_id = registry.group(ORG.id, "trolley", 5)
    for index in indices:
        registry.put(fleet.laptops[index].device.id, ORG.id, group_id)

    async def heard() -> bool:
        connection = await world.database.superuser()
        members = await connection.fetchval(
            "SELECT count(*) FROM policy.memberships WHERE $1 = ANY (group_ids)", group_id
        )
        known = await connection.fetchval(
            "SELECT count(*) FROM policy.groups WHERE id = $1", group_id
        )
        await connection.close()
        return bool(members == len(indices) and known)

    await eventually(heard)
    return group_id


async def counted_restricted(fleet: Fleet) -> list[UUID]:
    """The devices that lists and rollouts take as restricted."""
    connection = await fleet.world.database.superuser()
    rows = await connection.fetch(
        "SELECT device_id FROM policy.restricted_device WHERE gate_id IS NOT NULL"
    )
    await connection.close()
    return [row["device_id"] for row in rows]
