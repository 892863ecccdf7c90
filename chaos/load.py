"""Devices and an administrator who work through everything, and note what they were promised."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from cli.sim.bodies import enroll_body
from cli.sim.device import EVENTS, PATHS, POLL, STATE, Device
from cli.sim.http import Answer, Client
from cli.sim.journal import Ledger
from cli.sim.target import Target
from tests.e2e.world import Org, make_org
from tests.support.stack import Stack

MAY_PASS = frozenset({0, 429, 502, 503, 504})
"""What a caller may see of a fault: no answer, or one that says "later"."""
_BATCH = 5
_PUBLISHED_EVERY = 10
"""The administrator's actions from one new version of the policy to the next."""


@dataclass
class Promises:
    """What was acknowledged, and what was only tried."""

    ledger: Ledger = field(default_factory=Ledger)
    noted: dict[str, set[int]] = field(default_factory=dict)
    """All events of a device, acknowledged or not."""
    actions: Counter[tuple[str, str]] = field(default_factory=Counter)
    """What the administrator did (`enrollment.token_created`, …), and to which resource."""
    calls: Counter[str] = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)
    """Answers that no fault excuses."""


class Load:
    """The callers of one organisation.

    Args:
        stack: where the product is.
        devices: how many there are.
        pause: seconds between two calls of a device, on average.
        randomness: where chance comes from.
    """

    def __init__(self, stack: Stack, devices: int, pause: float, randomness: random.Random) -> None:
        self._stack = stack
        self._count = devices
        self._pause = pause
        self._random = randomness
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()
        self._client: Client
        self._devices: list[Device] = []
        self._policy_id: str
        self.org: Org
        self.promises = Promises()
        self.answered = 0
        """Calls that succeeded so far."""

    async def start(self) -> None:
        """Makes the organisation, enrolls the devices and sets all to work."""
        self.org, key = await asyncio.to_thread(self._make_org)
        target = Target.of(self._stack.url, self._stack.ca_file)
        self._client = await Client(target, connections=min(self._count, 64)).__aenter__()
        self._devices = [await self._enroll(n, key) for n in range(self._count)]
        self._tasks = [asyncio.create_task(self._work(device)) for device in self._devices]
        self._tasks.append(asyncio.create_task(self._administer()))

    async def finish(self) -> None:
        """Lets every device send what it still has, and ends."""
        self._stop.set()
        await asyncio.gather(*self._tasks)
        await self._client.close()

    def _make_org(self) -> tuple[Org, str]:
        org = make_org(self._stack, self._stack.client(self._stack.login()["token"]))
        self._policy_id = org.publish()["id"]
        return org, org.pre_shared_key

    async def _enroll(self, number: int, key: str) -> Device:
        serial = f"CHAOS-{number}"
        while True:
            answer = await self._client.call(
                "/api/v1/devices/enroll", enroll_body(serial, key), lane=number
            )
            if answer.status == 200:
                found: dict[str, Any] = json.loads(answer.body)
                return Device(number, found["device_id"], found["device_token"], serial=serial)
            assert answer.status in MAY_PASS, answer
            await asyncio.sleep(0.2)

    async def _work(self, device: Device) -> None:
        self.promises.noted[device.id] = set()
        while not self._stop.is_set():
            await asyncio.sleep(self._random.uniform(0, 2 * self._pause))
            kind = self._random.choice((POLL, STATE, EVENTS))
            if kind == STATE:
                device.note_state(time.time_ns())
            elif kind == EVENTS:
                device.note_events(time.time_ns(), _BATCH)
                self.promises.noted[device.id].update(device.events)
            await self._call(device, kind)
        for kind in (STATE, EVENTS):
            while device.states if kind == STATE else device.events:
                await self._call(device, kind)
                await asyncio.sleep(0.05)

    async def _call(self, device: Device, kind: int) -> None:
        if kind == STATE and not device.states:
            return
        answer = await self._client.call(
            PATHS[kind].decode(), device.body(kind), device.token, device.index
        )
        wrong, acknowledged = device.settle(kind, answer, None)
        self._note(PATHS[kind].decode(), answer, wrong)
        if not wrong:
            self.answered += 1
            self.promises.ledger.acknowledged(device, kind, acknowledged)
        else:
            await asyncio.sleep(self._random.uniform(0.2, 1.0))

    def _note(self, what: str, answer: Answer, wrong: str) -> None:
        self.promises.calls[f"{what.rpartition('/')[2]} {answer.fault or answer.status}"] += 1
        if wrong and answer.status not in MAY_PASS:
            self.promises.defects.append(f"{what}: {answer.status} {wrong} {answer.body[:200]!r}")

    async def _administer(self) -> None:
        """Makes enrollment tokens, one after the other, and now and then publishes the policy."""
        for number in itertools.count(1):
            if self._stop.is_set():
                return
            await asyncio.sleep(0.3)
            if number % _PUBLISHED_EVERY:
                body = {"orgId": self.org.id, "name": f"T{number}"}
                await self._act("enrollment.token_created", "enrollment-tokens", "", body)
            else:
                await self._act("policy.published", "policies", f"/{self._policy_id}/publish", {})

    async def _act(self, action: str, kind: str, rest: str, body: dict[str, str]) -> None:
        path = f"/api/{kind}{rest}"
        try:
            answer = await asyncio.to_thread(self.org.root.post, path, json=body)
        except httpx.TransportError:
            return
        self.promises.calls[f"admin {answer.status_code}"] += 1
        if answer.status_code == 200:
            self.promises.actions[action, f"{kind}/{answer.json()['id']}"] += 1
        elif answer.status_code not in MAY_PASS:
            self.promises.defects.append(f"{path}: {answer.status_code} {answer.text[:200]}")
