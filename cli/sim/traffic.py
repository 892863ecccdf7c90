"""Traffic of a fleet: in the agent's own rhythm, at a rate, or as fast as it goes.

All three make each device's calls as the agent does (`Device`), and count them (`Stats`). They
differ in when the next call is due: `FleetTraffic` asks the devices' own clocks, `PacedTraffic` a
metronome, and `SaturatingTraffic` begins a call when one has ended.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, Protocol, TypedDict, Unpack

from cli.sim.device import EVENTS, PATHS, POLL, STATE, Check, Device
from cli.sim.http import Answer, Done, Request
from cli.sim.journal import Journal
from cli.sim.schedule import MAX_DEVICES, Agenda, Rhythm
from cli.sim.stats import Stats

FLEET_MIX: Final[Mapping[int, int]] = {POLL: 81, STATE: 16, EVENTS: 3}
"""Shares of the released agent's calls, in percent."""
_AT_ONCE: Final = 256
"""Calls that are begun before answers are looked at again."""
_TIMER: Final = 0.001
"""The event loop's timers are no finer."""
_FAILED_PAUSE: Final = 0.1
"""Seconds until a saturating run goes on after a failure: a gateway that is away fails at once."""


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
    """What the three have in common.

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
        failure, acknowledged = device.settle(kind, answer, self._check)
        stats = self.stats
        stats.in_flight = self.in_flight
        stats.add(kind, self.now - due, failure)
        if not failure:
            if kind == EVENTS:
                stats.events += len(acknowledged)
            if self._journal is not None:
                self._journal.acknowledged(device, kind, acknowledged)
        self._ended(device, kind, failure)


class FleetTraffic(Traffic):
    """Every device by its own clock, with the agent's periods, queues and back-off.

    Args:
        rhythm: the periods.
        ramp: seconds over which the devices are switched on; they differ in phase for ever.
        steady: the devices have been on for long, and each is somewhere in its periods; else
            each polls and tells its state at the moment at which it is switched on.
        backlog: seconds of device time for which the devices were cut off before: so much waits
            in their queues.
    """

    def __init__(
        self,
        client: Sender,
        devices: Sequence[Device],
        rhythm: Rhythm | None = None,
        *,
        ramp: float = 0.0,
        steady: bool = True,
        backlog: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(client, devices, **common)
        self._rhythm = rhythm or Rhythm()
        self._agenda = Agenda()
        for device in devices:
            self._switch_on(device, ramp * self._chance.random(), steady, backlog)

    def step(self) -> float | None:
        """Begins what is due; answers when the next call is."""
        now = self.now
        for _ in range(_AT_ONCE):
            entry = self._agenda.take(now)
            if entry is None:
                return self._agenda.next_at()
            self._due(*entry)
        return now

    def _switch_on(self, device: Device, at: float, steady: bool, backlog: float) -> None:
        chance, rhythm = self._chance, self._rhythm
        for kind in (POLL, STATE):
            self._agenda.put(at + rhythm.first(kind, chance, steady=steady), device.index, kind)
        device.next_batch = at + rhythm.next_batch(chance)
        if backlog:
            self._cut_off(device, backlog)
        # What waits in a queue goes out as soon as the agent looks at it.
        first = at if device.events else device.next_batch
        if steady or not device.events:
            first += rhythm.first(EVENTS, chance, steady=True)
        self._agenda.put(first, device.index, EVENTS)

    def _cut_off(self, device: Device, backlog: float) -> None:
        rhythm, since = self._rhythm, self._wall() - int(backlog / self._rhythm.speed * 1e9)
        wait = rhythm.backoff_last / rhythm.speed
        for number in range(int(backlog / rhythm.backoff_last)):
            device.note_state(since + int(number * wait * 1e9))
        happened = rhythm.next_batch(self._chance)
        while happened < backlog / rhythm.speed:
            device.note_events(since + int(happened * 1e9), self._events_per_batch)
            happened += rhythm.next_batch(self._chance)

    def _due(self, due: float, index: int, kind: int) -> None:
        device = self._devices[index]
        if kind == STATE:
            # A device tells how it is now, and before that what it could not tell earlier.
            device.note_state(self._wall())
        elif kind == EVENTS:
            self._happen(device)
            if not device.events:
                self._schedule_events(device)
                return
        self._send(device, kind, due)

    def _happen(self, device: Device) -> None:
        """Puts what has happened on a device since it was last looked at into its queue."""
        now, wall = self.now, self._wall()
        while device.next_batch <= now:
            ago = int((now - device.next_batch) * 1e9)
            device.note_events(wall - ago, self._events_per_batch)
            device.next_batch += self._rhythm.next_batch(self._chance)

    def _schedule_events(self, device: Device) -> None:
        wait = self._rhythm.first(EVENTS, self._chance, steady=True)
        self._put(max(device.next_batch, self.now) + wait, device, EVENTS)

    def _put(self, at: float, device: Device, kind: int) -> None:
        self._agenda.put(at, device.index, kind)
        self._wake_by(at)

    def _ended(self, device: Device, kind: int, failure: str) -> None:
        if self.stopped:
            return
        failures = list(device.failures)
        if failure:
            failures[kind] += 1
            device.failures = (failures[0], failures[1], failures[2])
            self._put(self.now + self._rhythm.backoff(failures[kind]), device, kind)
            return
        if failures[kind]:
            failures[kind] = 0
            device.failures = (failures[0], failures[1], failures[2])
        if kind == EVENTS:
            self._schedule_events(device)
        elif kind == STATE and device.states:
            self._send(device, STATE, self.now)
        else:
            self._put(self.now + self._rhythm.period(kind, self._chance), device, kind)


class _Turns(Traffic):
    """Devices take turns, whatever their own clocks would say. There is no back-off.

    Args:
        mix: the share of each kind of call.
    """

    def __init__(
        self,
        client: Sender,
        devices: Sequence[Device],
        mix: Mapping[int, int] = FLEET_MIX,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(client, devices, **common)
        self._kinds = self._deck(mix)
        self._order = list(devices)
        self._chance.shuffle(self._order)
        self._turn = 0

    def _deck(self, mix: Mapping[int, int]) -> Iterator[int]:
        deck = [kind for kind, share in mix.items() for _ in range(share)]
        if not deck:
            raise ValueError("a mix has at least one kind of call")
        while True:
            self._chance.shuffle(deck)
            yield from deck

    def _next(self, due: float) -> bool:
        """Begins the next call; `False` when every device has one of its kind in flight."""
        kind = next(self._kinds)
        order, bit = self._order, 1 << kind
        for _ in range(len(order)):
            device = order[self._turn]
            self._turn = (self._turn + 1) % len(order)
            if not device.busy & bit:
                self._begin(device, kind, due)
                return True
        self.stats.skipped += 1
        return False

    def _ended(self, device: Device, kind: int, failure: str) -> None:
        """The next call does not depend on this one."""


class PacedTraffic(_Turns):
    """So many calls a second, whatever becomes of them (an open loop)."""

    def __init__(
        self,
        client: Sender,
        devices: Sequence[Device],
        rate: float,
        mix: Mapping[int, int] = FLEET_MIX,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(client, devices, mix, **common)
        if rate <= 0:
            raise ValueError("a rate is more than 0 calls a second")
        self._interval = 1 / rate
        self._due_at = 0.0

    def start(self) -> None:
        """Begins now."""
        self._due_at = self.now
        super().start()

    def step(self) -> float:
        """Begins what is due."""
        now = self.now
        for _ in range(_AT_ONCE):
            if self._due_at > now:
                break
            self._next(self._due_at)
            self._due_at += self._interval
        return self._due_at


class SaturatingTraffic(_Turns):
    """As fast as it goes, with a constant number of calls in flight (a closed loop)."""

    def __init__(
        self,
        client: Sender,
        devices: Sequence[Device],
        in_flight: int,
        mix: Mapping[int, int] = FLEET_MIX,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(client, devices, mix, **common)
        if not 0 < in_flight <= len(devices):
            raise ValueError("at least one call is in flight, and at most one for each device")
        self._wanted = in_flight

    def step(self) -> float | None:
        """Fills up what is not in flight."""
        while self.in_flight < self._wanted and self._next(self.now):
            pass
        return None

    def _ended(self, device: Device, kind: int, failure: str) -> None:
        if self.stopped:
            return
        if failure:
            self._wake_by(self.now + _FAILED_PAUSE)
        elif self.in_flight < self._wanted:
            self._next(self.now)
