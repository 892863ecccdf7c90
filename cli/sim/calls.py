"""What all traffic has in common: a device's call is begun, answered, counted and written down."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol, TypedDict

from cli.sim.device import EVENTS, PATHS, STATE, Check, Device
from cli.sim.http import Answer, Done, Request
from cli.sim.journal import Journal
from cli.sim.schedule import MAX_DEVICES
from cli.sim.stats import Stats

_TIMER: Final = 0.001
"""The event loop's timers are no finer."""


class Sender(Protocol):
    """What traffic needs of a client."""

    def request(self, path: bytes, body: bytes, token: str = "") -> bytes:
        """The bytes of a POST."""

    def send(self, request: Request, done: Done, lane: int = 0) -> None:
        """Sends it; `done` is called later, once."""


class Common(TypedDict, total=False):
    """What every traffic can be given."""

    stats: Stats
    """Where the figures go; `Traffic.stats` may be exchanged while it runs, after a warm-up."""
    journal: Journal | None
    """Told what was acknowledged."""
    check: Check | None
    """Looks at the signatures of policies."""
    events_per_batch: int
    """How many new events a batch has; 5."""
    seed: int
    """Makes a run repeatable, as far as the other side lets it."""
    clock: Callable[[], float]
    """Seconds that never go back."""
    wall: Callable[[], int]
    """Nanoseconds since 1970, for the ids of events and the times of states."""


class Traffic:
    """Calls of devices; a subclass says when the next one is due.

    Args:
        client: sends the calls.
        devices: who calls; their `index` is their place in the list.
        stats, journal, …: see `Common`.
    """

    def __init__(
        self,
        client: Sender,
        devices: Sequence[Device],
        *,
        stats: Stats | None = None,
        journal: Journal | None = None,
        check: Check | None = None,
        events_per_batch: int = 5,
        seed: int = 7,
        clock: Callable[[], float] = time.perf_counter,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        if not devices:
            raise ValueError("a fleet has at least one device")
        if len(devices) > MAX_DEVICES:
            raise ValueError(f"a fleet has at most {MAX_DEVICES:,} devices")
        self.stats = Stats() if stats is None else stats
        self.in_flight = 0
        self.started = False
        self.stopped = False
        self._client = client
        self._devices = devices
        self._journal = journal
        self._check = check
        self._events_per_batch = events_per_batch
        self._chance = random.Random(seed)  # noqa: S311  # nobody has to be kept from guessing
        self._clock = clock
        self._wall = wall
        self._epoch = clock()
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at = float("inf")

    @property
    def now(self) -> float:
        """Seconds since this was made."""
        return self._clock() - self._epoch

    def start(self) -> None:
        """Begins, in the running event loop."""
        self.started = True
        self._wake()

    def stop(self) -> None:
        """Begins no further calls; those in flight go on."""
        self.stopped = True
        if self._timer is not None:
            self._timer.cancel()

    async def drained(self, seconds: float) -> bool:
        """Waits until no call is in flight; `False` when some still are after so long."""
        end = self.now + seconds
        while self.in_flight and self.now < end:  # noqa: ASYNC110  # costs nothing before
            await asyncio.sleep(0.01)
        return not self.in_flight

    def step(self) -> float | None:
        """Begins what is due; answers when it wants to be asked again."""
        raise NotImplementedError

    def _ended(self, device: Device, kind: int, failure: str) -> None:
        """A call has ended; says what comes next."""
        raise NotImplementedError

    def _wake(self) -> None:
        if self.stopped:
            return
        at = self.step()
        self._wake_at = float("inf")
        if at is not None:
            self._wake_by(at)

    def _wake_by(self, at: float) -> None:
        if at < self._wake_at and self.started and not self.stopped:
            if self._timer is not None:
                self._timer.cancel()
            self._wake_at = at
            wait = max(_TIMER, at - self.now)
            self._timer = asyncio.get_running_loop().call_later(wait, self._wake)

    def _begin(self, device: Device, kind: int, due: float) -> None:
        """Sends a device's call; states and events get something to tell if they have nothing."""
        if kind == STATE and not device.states:
            device.note_state(self._wall())
        elif kind == EVENTS and not device.events:
            device.note_events(self._wall(), self._events_per_batch)
        self._send(device, kind, due)

    def _send(self, device: Device, kind: int, due: float) -> None:
        late = self.now - due
        self.stats.lag = max(self.stats.lag, late)
        device.busy |= 1 << kind
        self.in_flight += 1
        self.stats.in_flight = self.in_flight
        self._client.send(
            partial(self._request, device, kind),
            partial(self._answered, device, kind, due),
            device.index,
        )

    def _request(self, device: Device, kind: int) -> bytes:
        return self._client.request(PATHS[kind], device.body(kind), device.token)

    def _answered(self, device: Device, kind: int, due: float, answer: Answer) -> None:
        self.in_flight -= 1
        device.busy &= ~(1 << kind)
        counted = device.counted_as(kind, self._wall())
        failure, acknowledged = device.settle(kind, answer, self._check)
        stats = self.stats
        stats.in_flight = self.in_flight
        stats.add(counted, self.now - due, failure)
        if not failure:
            if kind == EVENTS:
                stats.events += len(acknowledged)
            if self._journal is not None:
                self._journal.acknowledged(device, kind, acknowledged)
        self._ended(device, kind, failure)
