"""A school whose devices poll, on a clock that tests move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import grpc

from evergreen.v1 import policy_pb2, policy_pb2_grpc, telemetry_pb2, telemetry_pb2_grpc
from servicekit.call import H_AUTHENTICATED
from servicekit.rpc.channels import open_channel
from services.policy.__main__ import build
from services.policy.settings import PolicySettings
from tests.conftest import MakeKit, ServeService
from tests.support.neighbours import served, until_ready
from tests.support.policy import ORG, TREE, Admin, Device, World, neighbours
from tests.support.servers import TestDatabase
from tests.support.stack import PATIENCE

OLD: Final = {"browser": {"homepage": "https://old"}, "security": {"selinux_enforce": True}}
NEW: Final = {"browser": {"homepage": "https://new"}, "security": {"selinux_enforce": True}}
_AT_ONCE: Final = 20


@dataclass
class FakeTelemetry(telemetry_pb2_grpc.TelemetryInternalServiceServicer):
    """Tells of the failures that a test says devices had."""

    failing: set[str] = field(default_factory=set)
    failed_before: set[str] = field(default_factory=set)
    down: bool = False

    async def ListDeviceVitals(  # noqa: N802
        self, request: telemetry_pb2.ListDeviceVitalsRequest, context: Any
    ) -> telemetry_pb2.ListDeviceVitalsResponse:
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        return telemetry_pb2.ListDeviceVitalsResponse(
            devices=[
                telemetry_pb2.DeviceVitals(
                    device_id=one.device_id,
                    failures_since=int(one.device_id in self.failing),
                    failures_before=int(one.device_id in self.failed_before),
                )
                for one in request.devices
            ]
        )


@dataclass
class Laptop:
    """A device, with what it has."""

    device: Device
    has: int = 0
    homepage: str = ""
    applies: bool = True
    """Whether it applies what it gets; else it asks again with what it has."""
    is_on: bool = True
    numbers: list[int] = field(default_factory=list)

    @property
    def id(self) -> str:
        return str(self.device.id)

    async def poll(self) -> bool:
        """Polls once; answers whether it got something."""
        if not self.is_on:
            return False
        answer = await self.device.pull(str(self.has or ""))
        if answer.status_code == 304:
            return False
        envelope = answer.json()
        number = int(envelope["version"])
        assert number > self.has
        if self.applies:
            self.has, self.homepage = number, envelope["policy"]["browser"]["homepage"]
        self.numbers.append(number)
        return True


@dataclass
class School:
    """The service with one organisation, and a clock."""

    world: World
    telemetry: FakeTelemetry
    now: datetime
    laptops: list[Laptop] = field(default_factory=list)

    async def enroll(self, count: int, *groups: UUID) -> list[Laptop]:
        """Devices with what is in force."""
        found = []
        for _ in range(count):
            device = Device(self.world.kit, self.world.channel, uuid4(), ORG.id)
            self.world.neighbours.registry.put(device.id, ORG.id, *groups)
            found.append(Laptop(device))
        self.laptops += found
        async with asyncio.timeout(PATIENCE):
            while True:
                connection = await self.world.database.superuser()
                known = await connection.fetchval("SELECT count(*) FROM policy.devices")
                await connection.close()
                if known >= len(self.laptops):
                    break
                await asyncio.sleep(0.1)
        await self.poll(found)
        return found

    async def poll(self, laptops: Iterable[Laptop] | None = None) -> int:
        """All poll once; answers how many got something."""
        wanted = list(self.laptops if laptops is None else laptops)
        got = 0
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            got += sum(await asyncio.gather(*(one.poll() for one in some)))
        return got

    async def quiet(self, laptops: Iterable[Laptop] | None = None) -> None:
        """All poll until nobody gets anything; a later feed brings no more."""
        wanted = list(self.laptops if laptops is None else laptops)
        async with asyncio.timeout(PATIENCE):
            calm = 0
            while calm < 3:
                calm = 0 if await self.poll(wanted) else calm + 1
                await asyncio.sleep(0.5)

    async def looked(self, wanted: str, rollout_id: str) -> policy_pb2.Rollout:
        """The rollout, once it is in a state."""
        async with asyncio.timeout(PATIENCE):
            while (found := await self.rollout(rollout_id)).state != wanted:
                await asyncio.sleep(0.1)
        return found

    async def rollout(self, rollout_id: str) -> policy_pb2.Rollout:
        found: policy_pb2.Rollout = await self.call("GetRollout", id=rollout_id)
        return found

    async def call(self, method: str, admin: Admin | None = None, **request: Any) -> Any:
        """Calls a method of PolicyRolloutService."""
        stub = policy_pb2_grpc.PolicyRolloutServiceStub(self.world.channel)
        message = getattr(policy_pb2, f"{method}Request")(**request)
        who = (admin or self.world.admin).metadata
        metadata = (*who, (H_AUTHENTICATED, str(int(self.now.timestamp()))))
        return await getattr(stub, method)(message, metadata=metadata, timeout=60)

    async def roll_out(
        self, bundle: Any, plan: policy_pb2.RolloutPlan, policy_id: str = "", **more: Any
    ) -> policy_pb2.Rollout:
        """A rollout of a bundle, of a new policy or of one that is there."""
        admin = self.world.admin
        if policy_id:
            await admin.call("UpdatePolicy", id=policy_id, bundle=bundle)
        else:
            policy_id = (await admin.create(ORG.id, bundle)).id
        answer = await admin.call("PublishPolicy", id=policy_id, plan=plan, **more)
        return await self.rollout(answer.rollout_id)

    async def counted(self, rollout_id: str, **wanted: int) -> policy_pb2.Rollout:
        """The rollout, once so many devices were counted."""
        async with asyncio.timeout(PATIENCE):
            while True:
                found = await self.rollout(rollout_id)
                counts = {name: getattr(found.counts, name) for name in wanted}
                if counts == wanted:
                    return found
                await asyncio.sleep(0.1)

    def later(self, **span: float) -> None:
        """Moves the clock."""
        self.now += timedelta(**span)

    def having(self, homepage: str) -> list[Laptop]:
        return [one for one in self.laptops if one.homepage == homepage]


@asynccontextmanager
async def opened(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase
) -> AsyncIterator[School]:
    """A school, the service's worker of which looks four times a second."""
    kit = await make_kit("policy", PolicySettings, tenants=TREE)
    telemetry = FakeTelemetry()
    async with (
        neighbours(kit) as found,
        served(
            kit.settings.telemetry_target,
            telemetry_pb2_grpc.add_TelemetryInternalServiceServicer_to_server,
            telemetry,
        ),
    ):
        channel = open_channel(kit.settings.grpc_listen, "test")
        world = World(kit, channel, found, Admin(channel, ORG.id), database)
        school = School(world, telemetry, datetime.now(UTC))
        await serve(replace(kit, clock=lambda: school.now), build)
        await until_ready(channel)
        yield school
        await channel.close()
