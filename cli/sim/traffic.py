"""Traffic of a fleet: in the agent's own rhythm, at a rate, or as fast as it goes.

All three make each device's calls as the agent does (`Device`), and count them (`Stats`). They
differ in when the next call is due: `FleetTraffic` asks the devices' own clocks, `PacedTraffic` a
metronome, and `SaturatingTraffic` begins a call when one has ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Unpack

from cli.sim.calls import Common, Sender, Traffic
from cli.sim.device import EVENTS, POLL, STATE, Device
from cli.sim.schedule import Agenda, Rhythm

FLEET_MIX: Final[Mapping[int, int]] = {POLL: 81, STATE: 16, EVENTS: 3}
"""Shares of the released agent's calls, in percent."""
_AT_ONCE: Final = 256
"""Calls that are begun before answers are looked at again."""
_FAILED_PAUSE: Final = 0.1
"""Seconds until a saturating run goes on after a failure: a gateway that is away fails at once."""


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
