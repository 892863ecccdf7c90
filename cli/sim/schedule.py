"""When devices do what: the released agent's rhythm, and an agenda for a very large fleet."""

from __future__ import annotations

import random
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final

from cli.sim.device import EVENTS, POLL, STATE

_CODE_BITS: Final = 26
_KIND_BITS: Final = 2


@dataclass(frozen=True, slots=True)
class Rhythm:
    """The agent's defaults, and how this fleet differs from them. Times in seconds.

    `speed` makes the devices' time run faster: 20,000 devices at speed 10 make the traffic of
    200,000. The network's time, that is the 30 s of a call, stays as it is.
    """

    poll: float = 60.0
    state: float = 300.0
    events_check: float = 30.0
    """A queue of events that is not empty is sent so often."""
    batches_per_hour: float = 2.0
    backoff_first: float = 15.0
    backoff_last: float = 300.0
    jitter: float = 0.05
    """The share by which a period is longer or shorter, at random."""
    speed: float = 1.0

    @property
    def calls_per_second(self) -> float:
        """What one device makes on average, when nothing fails."""
        return self.speed * (1 / self.poll + 1 / self.state + self.batches_per_hour / 3600)

    def period(self, kind: int, chance: random.Random) -> float:
        """Until the next poll or state after a success."""
        wait = self.poll if kind == POLL else self.state
        if self.jitter:
            wait *= 1 + self.jitter * (2 * chance.random() - 1)
        return wait / self.speed

    def backoff(self, failures: int) -> float:
        """After so many failures in a row, the first one included: 15 s growing to 5 min."""
        # The exponent is bounded, for a device may fail for years.
        wait = self.backoff_first * 2.0 ** min(failures - 1, 32)
        return float(min(wait, self.backoff_last)) / self.speed

    def next_batch(self, chance: random.Random) -> float:
        """Until something happens again on a device that is worth a batch of events."""
        return chance.expovariate(self.batches_per_hour / 3600) / self.speed

    def first(self, kind: int, chance: random.Random, *, steady: bool) -> float:
        """From a device's start to its first call of a kind.

        Args:
            kind: of the call.
            chance: where randomness comes from.
            steady: as if the device had been on for long, and not just switched on: somewhere
                within its period.
        """
        if not steady:
            return 0.0
        whole = {POLL: self.poll, STATE: self.state, EVENTS: self.events_check}[kind]
        return whole * chance.random() / self.speed


class Agenda:
    """Who has to do what next. An entry is one integer, for there may be a million of them.

    Times are seconds since a beginning that the caller knows, from 0 up.
    """

    def __init__(self) -> None:
        self._heap: list[int] = []

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, at: float, index: int, kind: int) -> None:
        """Notes a call."""
        code = index << _KIND_BITS | kind
        heappush(self._heap, int(at * 1e6) << _CODE_BITS | code)

    def next_at(self) -> float | None:
        """When the next call is due."""
        return (self._heap[0] >> _CODE_BITS) / 1e6 if self._heap else None

    def take(self, now: float) -> tuple[float, int, int] | None:
        """The next call that is due by now: when it was due, the device's number, the kind."""
        heap = self._heap
        if not heap or heap[0] >> _CODE_BITS > now * 1e6:
            return None
        entry = heappop(heap)
        code = entry & ((1 << _CODE_BITS) - 1)
        return (entry >> _CODE_BITS) / 1e6, code >> _KIND_BITS, code & 3


MAX_DEVICES: Final = 1 << (_CODE_BITS - _KIND_BITS)
"""An agenda knows no more devices."""
