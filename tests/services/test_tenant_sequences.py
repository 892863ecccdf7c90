"""Random lives of organisations and their devices, many at the same time, against all services.

What is retired stays out, whatever is archived and restored around it; of a deleted organisation no
row remains; and nobody sees more than before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final
from uuid import uuid4

import grpc
import pytest
import pytest_asyncio

from evergreen.v1 import enrollment_pb2, identity_pb2
from tests.conftest import MakeKit, ServeService
from tests.services.test_tenant_life import LOCKED_OUT, MAY_NAME_IT, WORKING, archived, deleted
from tests.support import callers
from tests.support.paths import LONG
from tests.support.servers import TestDatabase
from tests.support.six import Device, Six, eventually, running

_SEQUENCES: Final = 500 if LONG else 6
_STEPS: Final = 9
_AT_ONCE: Final = 25


@pytest_asyncio.fixture
async def six(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase, tmp_path: Path
) -> AsyncIterator[Six]:
    async with running(make_kit, serve, database, tmp_path) as found:
        yield found


@dataclass
class Life:
    """One organisation with its devices, and what has to be true of them."""

    six: Six
    root: callers.Metadata
    org: identity_pb2.Tenant
    random: Random
    status: str = "active"
    devices: dict[str, Device] = field(default_factory=dict)
    state: dict[str, str] = field(default_factory=dict)
    """`active`, `retired` or `deleted`, by the serial number."""
    done: list[str] = field(default_factory=list)

    async def step(self) -> None:
        """Something that an admin or a device does now."""
        steps = {
            "active": ["enroll", "retire", "delete device", "allow", "archive", "enroll"],
            "archived": ["restore", "retire", "delete device", "enroll", "delete"],
            "deleted": ["enroll"],
        }[self.status]
        name = self.random.choice(steps)
        self.done.append(name)
        await getattr(self, name.replace(" ", "_"))()
        await self.check()

    async def check(self) -> None:
        """Every device may do what it should, within seconds, and no other."""

        async def as_wanted() -> bool:
            for serial, device in self.devices.items():
                works = self.status == "active" and self.state[serial] == "active"
                if await self.six.works(device) != (WORKING if works else LOCKED_OUT):
                    return False
            return True

        try:
            await eventually(as_wanted)
        except AssertionError:
            raise AssertionError(f"{self.status}, {self.state} after {self.done}") from None

    def _some(self, *states: str) -> str:
        found = sorted(serial for serial, state in self.state.items() if state in states)
        return self.random.choice(found) if found else ""

    async def enroll(self) -> None:
        """A new device gets in where the organisation is in use; a known one never by itself."""
        known = self._some("active", "retired", "deleted")
        serial = known if known and self.random.random() < 0.4 else f"SN-{uuid4().hex[:10]}"
        answer = await self.six.enroll(self.six.keys[self.org.id], serial)
        if self.status != "active" or serial in self.state:
            assert answer.status_code in {403, 409}, answer.text
            return
        assert answer.status_code == 200, answer.text
        self.devices[serial] = Device(answer.json()["device_id"], self.org.id, serial)
        self.state[serial] = "active"

    async def retire(self) -> None:
        """A device that works is decommissioned."""
        if serial := self._some("active"):
            request = enrollment_pb2.DecommissionDeviceRequest(id=self.devices[serial].id)
            await self.six.registry.DecommissionDevice(request, metadata=self.root)
            self.state[serial] = "retired"

    async def delete_device(self) -> None:
        """A device is deleted when it is retired, and not before."""
        if serial := self._some("active", "retired"):
            request = enrollment_pb2.DeleteDeviceRequest(id=self.devices[serial].id)
            call = self.six.registry.DeleteDevice(request, metadata=self.root)
            if self.state[serial] == "retired":
                await call
                self.state[serial] = "deleted"
            else:
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await call
                assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION

    async def allow(self) -> None:
        """An administrator lets one that is out enroll again."""
        if serial := self._some("retired", "deleted"):
            device = self.devices[serial]
            request = enrollment_pb2.AllowReenrollmentRequest(id=device.id)
            await self.six.registry.AllowReenrollment(request, metadata=self.root)
            answer = await self.six.enroll(self.six.keys[self.org.id], serial)
            assert answer.json()["device_id"] == device.id
            device.version += 1
            self.state[serial] = "active"

    async def archive(self) -> None:
        """The organisation is archived, and all its devices are decommissioned."""
        await archived(self.six, self.root, self.org.id)
        self.status = "archived"

        async def all_out() -> bool:
            # Enrollment has heard of it, which takes up to a second, and has done its part.
            rows = await self.six.sql(
                "SELECT 1 FROM enrollment.closed_tenant WHERE tenant_id = $1::text::uuid"
                " AND settled_at IS NOT NULL AND NOT EXISTS (SELECT FROM enrollment.device"
                " WHERE tenant_id = $1::text::uuid AND status <> 'decommissioned')",
                self.org.id,
            )
            return bool(rows)

        await eventually(all_out)

    async def restore(self) -> None:
        """The organisation comes back."""
        request = identity_pb2.RestoreTenantRequest(id=self.org.id)
        await self.six.tenants.RestoreTenant(request, metadata=self.root)
        self.status = "active"

        async def heard() -> bool:
            return not await self.six.sql(
                "SELECT 1 FROM enrollment.closed_tenant WHERE tenant_id = $1::text::uuid",
                self.org.id,
            )

        await eventually(heard)

    async def delete(self) -> None:
        """The organisation is deleted."""
        await deleted(self.six, self.root, self.org.id)
        self.status = "deleted"
        await self.check_gone()

    async def check_gone(self) -> None:
        """No row names the organisation or one of its devices but what is meant to."""

        async def gone() -> bool:
            return set(await self.six.rows_of(self.org.id)) <= MAY_NAME_IT

        await eventually(gone)
        for device in self.devices.values():
            assert await self.six.rows_of(device.id) == {}


async def _tenants(six: Six, who: callers.Metadata) -> set[str]:
    page = await six.tenants.ListTenants(
        identity_pb2.ListTenantsRequest(page_size=500), metadata=who
    )
    return {tenant.id for tenant in page.tenants}


@pytest.mark.long
@pytest.mark.timeout(7200 if LONG else 180)
async def test_whatever_happens_what_is_out_stays_out(six: Six) -> None:
    """Each organisation has a life of its own beside the others; in the end each is deleted."""
    root = await six.login()
    beside = await six.org(root)
    at_beside = await six.login(await six.user(root, beside.id))
    bystander = await six.device(beside)

    async def live(number: int) -> Life:
        life = Life(six, root, await six.org(root), Random(number))
        for _ in range(_STEPS):
            await life.step()
        return life

    for first in range(0, _SEQUENCES, _AT_ONCE):
        numbers = range(first, min(first + _AT_ONCE, _SEQUENCES))
        lives = await asyncio.gather(*map(live, numbers))
        assert await _tenants(six, at_beside) == {beside.id}
        assert await six.works(bystander) == WORKING
        for life in lives:
            assert (life.org.id in await _tenants(six, root)) is (life.status != "deleted")
        await asyncio.gather(*(_end(life) for life in lives if life.status != "deleted"))
    assert await six.works(bystander) == WORKING


async def _end(life: Life) -> None:
    if life.status == "active":
        await life.archive()
    await life.delete()
    await life.check()
