"""Random lives of machines: whatever happens, one identity is one machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeAlias

import pytest

from tests.support.enrollment import Enrollment, service

__all__ = ["service"]

LIVES = 500 if os.environ.get("EVERGREEN_TEST_LONG") else 12
STEPS = 25
KINDS = ("To be filled by O.E.M.", "", "SYSTEM SERIAL NUMBER", "1234567890")

Identity: TypeAlias = tuple[str, int]
"""A device, and the generation of its token."""


@dataclass
class Machine:
    """A machine as it is, whatever the registry takes it for."""

    serial: str
    model: str
    named: bool
    holds: Identity | None = None


@dataclass
class Life:
    """A fleet of a few machines, and what was promised to it."""

    service: Enrollment
    key: str
    random: Random
    machines: list[Machine]
    holders: dict[Identity, Machine] = field(default_factory=dict)
    owners: dict[str, Machine] = field(default_factory=dict)
    out: set[str] = field(default_factory=set)
    """Devices that are retired or rejected, and may not come back."""

    async def enroll(self) -> None:
        """A machine asks; its answer may be lost, and its serial number spelled otherwise."""
        machine = self.random.choice(self.machines)
        serial = self.random.choice(
            (machine.serial, machine.serial.lower(), f" {machine.serial}\0")
        )
        answer = await self.service.enroll(self.key, serial, model=machine.model)
        if answer.status_code != 200:
            assert answer.status_code in {403, 409}, answer.text
            return
        found = answer.json()
        device, version = found["device_id"], int(found["device_token"].split("/")[2])
        assert device not in self.out
        assert self.holders.setdefault((device, version), machine) is machine
        if machine.named:
            assert self.owners.setdefault(device, machine) is machine
            assert {d for d, m in self.owners.items() if m is machine} == {device}
        if self.random.random() < 0.7:
            machine.holds = (device, version)

    async def call(self) -> None:
        """A machine uses its token; from then on nobody gets its identity by a retry."""
        machine = self.random.choice(self.machines)
        if machine.holds is not None:
            self.service.called(*machine.holds)

    async def decide(self) -> None:
        """An administrator decides about a device of this fleet."""
        rows = await self.service.sql(
            "SELECT id::text, status FROM enrollment.device WHERE model = ANY ($1) ORDER BY id",
            sorted({machine.model for machine in self.machines}),
        )
        devices = [(row["id"], row["status"]) for row in rows]
        if not devices:
            return
        device, status = self.random.choice(devices)
        if status == "pending":
            method = self.random.choice(("ApproveDevice", "ApproveDevice", "RejectDevice"))
        else:
            method = self.random.choice(("DecommissionDevice", "AllowReenrollment"))
        await self.service.act(method, device)
        if method in {"RejectDevice", "DecommissionDevice"}:
            self.out.add(device)
        else:
            self.out.discard(device)


Step: TypeAlias = Callable[[Life], Coroutine[Any, Any, None]]
_STEPS: tuple[Step, ...] = (Life.enroll, Life.enroll, Life.enroll, Life.call, Life.decide)


@pytest.mark.long
async def test_one_identity_is_one_machine(service: Enrollment) -> None:
    """Enrolling, again and by copies, losing answers, retiring, allowing, approving, rejecting.

    A token is one machine's, a device with a serial number too, and what is retired stays out.
    """
    token = await service.token()
    for seed in range(LIVES):
        random = Random(seed)
        # Of each placeholder several machines that are equal in everything.
        machines = [
            Machine(f"Life-{seed}-{n}-Xk", f"named {seed}", named=True) for n in range(2)
        ] + [Machine(random.choice(KINDS), f"equal {seed}", named=False) for _ in range(3)]
        life = Life(service, token.pre_shared_key, random, machines)
        try:
            for _ in range(STEPS):
                await random.choice(_STEPS)(life)
        except AssertionError as error:
            raise AssertionError(f"in the life of seed {seed}") from error
