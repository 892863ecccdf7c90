"""What devices send: the released agent's requests, from many devices, in the fleet's mix."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple

from bench.evidence import KEYS, attest_body, key
from cli.sim import device as agent
from cli.sim.bodies import enroll_body, events_body, poll_body, state_body
from cli.sim.traffic import FLEET_MIX as MIX_OF_KINDS

POLL: Final = agent.KINDS[agent.POLL]
STATE: Final = agent.KINDS[agent.STATE]
EVENTS: Final = agent.KINDS[agent.EVENTS]
EVENTS_100: Final = "events of 100"
ENROLL: Final = agent.KINDS[agent.ENROLL]
LOGIN: Final = "login"
ATTEST: Final = "attestation"
MIX: Final = "fleet mix"

FLEET_MIX: Final = {agent.KINDS[kind]: share for kind, share in MIX_OF_KINDS.items()}
"""Shares of the released agent's calls, in percent."""

_PATHS: Final = {
    **dict(zip(agent.KINDS, agent.PATHS, strict=False)),
    EVENTS_100: agent.PATHS[agent.EVENTS],
    LOGIN: b"/auth/login",
    ATTEST: b"/api/v1/devices/attest",
}
_BATCH: Final = {EVENTS: 5, EVENTS_100: 100}


class Call(NamedTuple):
    """One request. `token` is empty for a device that enrolls, and for a login."""

    kind: str
    path: bytes
    token: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Device:
    """A device that has enrolled."""

    id: str
    token: str
    version: int | None = None
    """What it has applied; `None` for what all have."""


class Traffic:
    """Requests without end. Devices take turns, so that every token is as busy as every other.

    Args:
        devices: who calls.
        policy_version: what they have applied of which nothing else is known.
        pre_shared_key: what new devices enroll with.
        seed: makes the order of a run repeatable.
        login: the body of an administrator's login.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        policy_version: int,
        pre_shared_key: str,
        seed: int = 7,
        login: bytes = b"",
    ) -> None:
        self.devices = devices
        self._random = random.Random(seed)
        order = list(devices)
        self._random.shuffle(order)
        self._turn = itertools.cycle(order)
        # Each with a key of its own.
        self._attesting = itertools.cycle(list(enumerate(order[:KEYS])))
        self._event_id = itertools.count(time.time_ns())
        self._pre_shared_key = pre_shared_key
        self._number = itertools.count()
        self._polls = {
            one: poll_body(str(policy_version if one is None else one))
            for one in {device.version for device in devices}
        }
        self._login = login

    def of(self, kind: str) -> Iterator[Call]:
        """Requests of one kind, or of the fleet's mix."""
        if kind == MIX:
            return self._mix()
        if kind == ATTEST:
            # A key takes a tenth of a second, in which no answer would be noticed.
            for number in range(min(KEYS, len(self.devices))):
                key(number)
        return (self._call(kind) for _ in itertools.repeat(None))

    def one_each(self) -> Iterator[Call]:
        """A poll of every device: what a gateway and a service remember of each is warm then."""
        return (
            Call(POLL, _PATHS[POLL], device.token, self._polls[device.version])
            for device in self.devices
        )

    def _mix(self) -> Iterator[Call]:
        hundred = [kind for kind, share in FLEET_MIX.items() for _ in range(share)]
        while True:
            self._random.shuffle(hundred)
            yield from map(self._call, hundred)

    def _call(self, kind: str) -> Call:
        if kind == ENROLL:
            serial = f"NEW-{next(self._event_id)}"
            return Call(kind, _PATHS[kind], "", enroll_body(serial, self._pre_shared_key))
        if kind == LOGIN:
            return Call(kind, _PATHS[kind], "", self._login)
        if kind == ATTEST:
            number, device = next(self._attesting)
            return Call(kind, _PATHS[kind], device.token, attest_body(device.id, key(number)))
        device = next(self._turn)
        if kind == POLL:
            body = self._polls[device.version]
        elif kind == STATE:
            body = state_body(device.id, next(self._number), time.time_ns())
        else:
            body = events_body(device.id, list(islice(self._event_id, _BATCH[kind])))
        return Call(kind, _PATHS[kind], device.token, body)
