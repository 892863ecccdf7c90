"""What devices send: the released agent's requests, from many devices, in the fleet's mix."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

from tests.load.fleet import APPS

POLL: Final = "poll"
STATE: Final = "state"
EVENTS: Final = "events"
EVENTS_100: Final = "events of 100"
ENROLL: Final = "enroll"
MIX: Final = "fleet mix"

FLEET_MIX: Final = {POLL: 81, STATE: 16, EVENTS: 3}
"""Shares in percent, of the released agent's defaults: a poll every 60 s, a state every 300 s, two
batches of events an hour."""

_PATHS: Final = {
    POLL: b"/api/v1/devices/policy",
    STATE: b"/api/v1/devices/state",
    EVENTS: b"/api/v1/devices/events",
    EVENTS_100: b"/api/v1/devices/events",
    ENROLL: b"/api/v1/devices/enroll",
}
_BATCH: Final = {EVENTS: 5, EVENTS_100: 100}


class Call(NamedTuple):
    """One request. `token` is empty for a device that enrolls."""

    kind: str
    path: bytes
    token: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Device:
    """A device that has enrolled."""

    id: str
    token: str


class Traffic:
    """Requests without end. Devices take turns, so that every token is as busy as every other.

    Args:
        devices: who calls.
        policy_version: what all of them have applied.
        pre_shared_key: what new devices enroll with.
        seed: makes the order of a run repeatable.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        policy_version: int,
        pre_shared_key: str,
        seed: int = 7,
    ) -> None:
        self.devices = devices
        self._random = random.Random(seed)
        order = list(devices)
        self._random.shuffle(order)
        self._turn = itertools.cycle(order)
        self._event_id = itertools.count(time.time_ns())
        self._pre_shared_key = pre_shared_key
        self._poll = json.dumps({"current_version": str(policy_version)}).encode()
        self._apps = json.dumps(APPS, separators=(",", ":"))

    def of(self, kind: str) -> Iterator[Call]:
        """Requests of one kind, or of the fleet's mix."""
        if kind == MIX:
            return self._mix()
        return (self._call(kind) for _ in itertools.repeat(None))

    def one_each(self) -> Iterator[Call]:
        """A poll of every device: what a gateway and a service remember of each is warm then."""
        return (Call(POLL, _PATHS[POLL], device.token, self._poll) for device in self.devices)

    def _mix(self) -> Iterator[Call]:
        hundred = [kind for kind, share in FLEET_MIX.items() for _ in range(share)]
        while True:
            self._random.shuffle(hundred)
            yield from map(self._call, hundred)

    def _call(self, kind: str) -> Call:
        if kind == ENROLL:
            return Call(kind, _PATHS[kind], "", self._enroll())
        device = next(self._turn)
        if kind == POLL:
            body = self._poll
        elif kind == STATE:
            body = self._state(device)
        else:
            body = self._events(device, _BATCH[kind])
        return Call(kind, _PATHS[kind], device.token, body)

    def _state(self, device: Device) -> bytes:
        return (
            f'{{"device_id":"{device.id}","state":{{"timestamp":"{_now()}","installed_apps":'
            f'{self._apps},"update_status":"idle","disk_total_bytes":256000000000,'
            '"disk_free_bytes":200000000000,"battery_percent":87.5,"last_error":""}}'
        ).encode()

    def _events(self, device: Device, count: int) -> bytes:
        now = _now()
        events = ",".join(
            f'{{"id":"{next(self._event_id)}","type":"app.installed","timestamp":"{now}",'
            '"payload":{"message":"org.gnome.Calculator was installed","ref":'
            '"app/org.gnome.Calculator/x86_64/stable","bytes":4194304}}'
            for _ in range(count)
        )
        return f'{{"device_id":"{device.id}","events":[{events}]}}'.encode()

    def _enroll(self) -> bytes:
        return json.dumps(
            {
                "serial": f"NEW-{next(self._event_id)}",
                "model": "Evergreen Book 14",
                "cpu_model": "Simulated",
                "cpu_count": 4,
                "total_ram_bytes": 8 << 30,
                "has_tpm": True,
                "pre_shared_key": self._pre_shared_key,
            }
        ).encode()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"
