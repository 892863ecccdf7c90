"""Two processes on one database, of which one or the other is killed at any moment.

Whatever they were about: no device gets a number that is not above its own, no number stands for
two contents, rollouts go on and bad ones stop at their first batch, and no gate restricts more
devices than may be.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final
from uuid import UUID, uuid4

import grpc
import httpx
import pytest

from evergreen.v1 import policy_pb2, policy_pb2_grpc, telemetry_pb2_grpc
from servicekit.call import H_AUTHENTICATED
from servicekit.rpc.channels import open_channel
from services.policy.settings import PolicySettings
from services.policy.stamps.domain import bucket
from tests.conftest import MakeKit
from tests.services.policy.rollouts.school import FakeTelemetry
from tests.support.neighbours import served
from tests.support.paths import LONG
from tests.support.policy import (
    ORG,
    RESELLER,
    SISTER,
    TREE,
    Admin,
    Device,
    Neighbours,
    neighbours,
    verified,
)
from tests.support.policy_processes import PolicyProcess
from tests.support.servers import TestDatabase
from tests.support.stack import PATIENCE

_ROUNDS: Final = 40 if LONG else 1
_LAPTOPS: Final = 16
_SHARE: Final = 50
"""Percent of the devices that the gate may restrict."""
_BAD: Final = "https://bad"
"""Devices do not apply it."""
_OTHER: Final = "https://other"
"""What devices get that fall short."""
_AWAY: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)
_RESTRICTED: Final = "SELECT count(*) FROM policy.restricted_device WHERE gate_id IS NOT NULL"


@dataclass
class Laptop:
    """A device that calls either process, with what it has."""

    calls: list[Device]
    org: UUID
    has: int = 0
    homepage: str = ""
    channel: str = ""
    got_bad: bool = False

    @property
    def id(self) -> UUID:
        return self.calls[0].id


@dataclass
class Schools:
    """The processes, and two schools with all that their devices ever got."""

    processes: list[PolicyProcess]
    channels: list[grpc.aio.Channel]
    around: Neighbours
    database: TestDatabase
    random: Random
    pem: str = ""
    laptops: list[Laptop] = field(default_factory=list)
    contents: dict[UUID, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    most_restricted: int = 0

    async def call(self, method: str, tenant: UUID = ORG.id, **request: Any) -> Any:
        """Calls one of the processes, until one answers."""
        return await self.answered(lambda channel: _admin(channel, tenant).call(method, **request))

    async def rollout(self, rollout_id: str) -> policy_pb2.Rollout:
        def get(channel: grpc.aio.Channel) -> Awaitable[policy_pb2.Rollout]:
            stub = policy_pb2_grpc.PolicyRolloutServiceStub(channel)
            request = policy_pb2.GetRolloutRequest(id=rollout_id)
            found: Awaitable[policy_pb2.Rollout] = stub.GetRollout(
                request, metadata=_admin(channel, ORG.id).metadata, timeout=60
            )
            return found

        found: policy_pb2.Rollout = await self.answered(get)
        return found

    async def answered(self, call: Callable[[grpc.aio.Channel], Awaitable[Any]]) -> Any:
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    return await call(self.random.choice(self.channels))
                except grpc.aio.AioRpcError as error:
                    if error.code() not in _AWAY:
                        raise
                    await asyncio.sleep(0.05)

    async def fetchval(self, statement: str, *values: object) -> Any:
        connection = await self.database.superuser()
        try:
            return await connection.fetchval(statement, *values)
        finally:
            await connection.close()

    async def enroll(self, org: UUID, count: int) -> None:
        for _ in range(count):
            id_ = uuid4()
            self.around.registry.add(id_, org)
            calls = [
                Device(process.kit, channel, id_, org)
                for process, channel in zip(self.processes, self.channels, strict=True)
            ]
            self.laptops.append(Laptop(calls, org))

    async def kill(self) -> None:
        """Kills one after the other, each once and then any, for as long as it is let."""
        victims = self.random.sample(self.processes, len(self.processes))
        while True:
            await asyncio.sleep(self.random.uniform(0.1, 1.5))
            victim = victims.pop() if victims else self.random.choice(self.processes)
            await victim.kill()
            await asyncio.sleep(self.random.uniform(0.0, 0.5))
            await victim.start()

    async def poll(self) -> None:
        """Lets devices poll, for as long as it is let, and looks at what must always be so."""
        while True:
            for laptop in self.laptops:
                await self.pull(laptop)
            restricted = await self.fetchval(_RESTRICTED)
            assert restricted * 100 <= _SHARE * _LAPTOPS
            self.most_restricted = max(self.most_restricted, restricted)
            await asyncio.sleep(0.1)

    async def pull(self, laptop: Laptop) -> None:
        try:
            answer = await self.random.choice(laptop.calls).pull(str(laptop.has or ""))
        except httpx.TransportError:
            return
        if answer.status_code != httpx.codes.OK:
            assert answer.status_code in {304, 503}, answer.text
            return
        envelope = verified(self.pem, answer)
        number, policy = int(envelope["version"]), envelope["policy"]
        assert number > laptop.has
        content = json.dumps(policy)
        assert self.contents[laptop.org].setdefault(number, content) == content
        if policy["browser"]["homepage"] == _BAD:
            laptop.got_bad = True
            return
        laptop.has, laptop.homepage = number, policy["browser"]["homepage"]
        laptop.channel = policy["updates"]["channel"]

    async def until(self, what: str, check: Callable[[], Awaitable[bool]]) -> None:
        try:
            async with asyncio.timeout(2 * PATIENCE):
                while not await check():
                    await asyncio.sleep(0.1)
        except TimeoutError:
            seen = [(one.org, one.has, one.homepage, one.channel) for one in self.laptops]
            raise AssertionError(f"{what}: {seen}") from None

    async def have(self, homepage: str, channel: str, short: set[UUID]) -> None:
        """Waits until all devices have what they are to have."""

        async def so() -> bool:
            return all(
                one.channel == channel and one.homepage == (_OTHER if one.id in short else homepage)
                for one in self.laptops
                if one.org == ORG.id
            ) and all(one.channel == channel for one in self.laptops)

        await self.until(f"devices have {homepage}, {channel}, {len(short)} short", so)

    def tell(self, laptops: list[Laptop], verdict: str) -> None:
        for laptop in laptops:
            self.around.attestation.tell(laptop.id, verdict)


def _admin(channel: grpc.aio.Channel, tenant: UUID) -> Admin:
    found = Admin(channel, tenant)
    found.metadata = (*found.metadata, (H_AUTHENTICATED, str(int(time.time()))))
    return found


@asynccontextmanager
async def opened(
    make_kit: MakeKit, database: TestDatabase, log: Path, seed: int
) -> AsyncIterator[Schools]:
    first = await make_kit("policy", PolicySettings, tenants=TREE)
    more = {
        name: f"{getattr(first.settings, name)}2"
        for name in ("grpc_listen", "internal_listen", "http_listen")
    }
    kits = [first, await make_kit("policy", PolicySettings, tenants=TREE, **more)]
    processes = [PolicyProcess(kit, TREE, log) for kit in kits]
    channels = [open_channel(kit.settings.grpc_listen, "test") for kit in kits]
    async with (
        neighbours(first) as around,
        served(
            first.settings.telemetry_target,
            telemetry_pb2_grpc.add_TelemetryInternalServiceServicer_to_server,
            FakeTelemetry(),
        ),
    ):
        found = Schools(processes, channels, around, database, Random(seed))
        try:
            for process in processes:
                await process.start()
            pem = await found.answered(
                lambda channel: policy_pb2_grpc.PolicyKeyServiceStub(channel).GetPolicyKeysPem(
                    policy_pb2.GetPolicyKeysPemRequest()
                )
            )
            found.pem = pem.data.decode()
            yield found
        finally:
            for process in processes:
                await process.kill()
            for channel in channels:
                await channel.close()


@pytest.mark.long
@pytest.mark.timeout(7_200 if LONG else 300)
async def test_processes_that_are_killed_leave_nothing_half_done(
    make_kit: MakeKit, database: TestDatabase, tmp_path: Path
) -> None:
    """In rollouts, at gates, and while what tenants above publish is put together."""
    log = tmp_path / "processes.log"
    seed = int(time.time())
    async with opened(make_kit, database, log, seed) as schools:
        policy = (await schools.call("CreatePolicy", **_of(ORG.id, "https://new0"))).id
        above = (await schools.call("CreatePolicy", RESELLER.id, **_above("beta0"))).id
        nobody = schools.around.registry.group(ORG.id, "nobody", 1)
        targets = policy_pb2.PolicyTargetsChange(group_ids=[str(nobody)])
        other = await schools.call("CreatePolicy", **_of(ORG.id, _OTHER), targets=targets)
        await schools.call("PublishPolicy", id=policy)
        await schools.call("PublishPolicy", RESELLER.id, id=above)
        await schools.call("PublishPolicy", id=other.id)
        await schools.enroll(ORG.id, _LAPTOPS)
        await schools.enroll(SISTER.id, 1)
        short = schools.laptops[:2]
        schools.tell(schools.laptops[2:_LAPTOPS], "VERIFIED")
        schools.tell(short, "FAILED")
        polling = asyncio.create_task(schools.poll())
        killing = None
        try:
            await _enforced(schools, other.id, len(short))
            killing = asyncio.create_task(schools.kill())
            for number in range(1, _ROUNDS + 1):
                working = asyncio.create_task(_round(schools, policy, above, other.id, number))
                done, _ = await asyncio.wait(
                    {working, polling, killing}, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    await task
        except BaseException as failed:
            failed.add_note(f"seed {seed}, {log.read_text()[-4_000:]}")
            raise
        finally:
            for task in (polling, *([killing] if killing else [])):
                task.cancel()
        assert min(process.kills for process in schools.processes) >= 1
        assert schools.most_restricted >= len(short)


async def _round(schools: Schools, policy: str, above: str, other: str, number: int) -> None:
    """A version that works, one that does not, and a gate of which too many fall short."""
    homepage, channel = f"https://new{number}", f"beta{number}"
    await schools.call("UpdatePolicy", id=policy, bundle=_of(ORG.id, homepage)["bundle"])
    begun = await schools.call("PublishPolicy", id=policy, plan=_plan(), supersede=True)
    bundle = _above(channel)["bundle"]
    await schools.call("UpdatePolicy", RESELLER.id, id=above, bundle=bundle, signed=True)

    async def is_in(state: str, rollout_id: str) -> bool:
        return (await schools.rollout(rollout_id)).state == state

    await schools.until("completed", lambda: is_in("COMPLETED", begun.rollout_id))
    short = {one.id for one in schools.laptops[:2]}
    await schools.have(homepage, channel, short)

    await schools.call("UpdatePolicy", id=policy, bundle=_of(ORG.id, _BAD)["bundle"])
    plan = _plan(on_failure="ROLL_BACK")
    bad = await schools.call("PublishPolicy", id=policy, plan=plan, supersede=True)
    await schools.until("taken back", lambda: is_in("ROLLED_BACK", bad.rollout_id))
    assert (await schools.rollout(bad.rollout_id)).batch == 1
    salted = "SELECT salt FROM policy.rollout WHERE id = $1"
    salt = await schools.fetchval(salted, UUID(bad.rollout_id))
    for laptop in schools.laptops:
        assert not laptop.got_bad or bucket(salt, str(laptop.id)) < 5_000
        laptop.got_bad = False

    # One more falls short, and gets the other policy; then so many that the gate is held.
    school = schools.laptops[:_LAPTOPS]
    schools.tell(school[2:3], "FAILED")
    await schools.have(homepage, channel, short | {school[2].id})
    schools.tell(school[3:12], "FAILED")

    async def is_held() -> bool:
        return bool((await schools.call("GetAttestationGate")).held)

    await schools.until("held", is_held)
    await asyncio.sleep(1)
    await schools.have(homepage, channel, short | {school[2].id})
    schools.tell(school[2:12], "VERIFIED")
    await schools.have(homepage, channel, short)
    await _enforced(schools, other, len(short))


async def _enforced(schools: Schools, other: str, short: int) -> None:
    async def seen() -> bool:
        found = await schools.call("PreviewAttestationGate", at_least="KNOWN_TPM", grace_hours=0)
        return (found.devices_in_use, found.falling_short) == (_LAPTOPS, short)

    await schools.until("devices are known", seen)
    await schools.call(
        "UpdateAttestationGate",
        mode="ENFORCE",
        at_least="KNOWN_TPM",
        grace_hours=0,
        otherwise_policy_id=other,
        max_percent=_SHARE,
        expected_devices=short,
    )


def _plan(**more: Any) -> policy_pb2.RolloutPlan:
    batches = [policy_pb2.RolloutBatch(percent=percent, soak="0m") for percent in (50, 100)]
    return policy_pb2.RolloutPlan(batches=batches, **more)


def _of(org: UUID, homepage: str) -> dict[str, Any]:
    return {"org_id": str(org), "name": "School", "bundle": {"browser": {"homepage": homepage}}}


def _above(channel: str) -> dict[str, Any]:
    bundle = {"updates": {"channel": channel}}
    return {"org_id": str(RESELLER.id), "name": "District", "bundle": bundle}
