"""Machines that share one identity give themselves away: their states differ in turn.

A copied disk, or firmware that gives a serial number to several machines, makes one device of
them. A system disk that has another size and then its former one again is two disks. Where the
disks are alike, the battery and the free space of two machines go on from two places, in turn.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from services.telemetry.reports.state import State

WITHIN: Final = timedelta(days=1)
"""A disk may have been exchanged, and exchanged back, in a longer time."""
TELL_EVERY: Final = timedelta(hours=1)
TURNS: Final = 12
"""So many turns, within `TURNS_WITHIN`, are no chance: each has one in about eight."""
TURNS_WITHIN: Final = timedelta(hours=3)
MOST_DEVICES: Final = 100_000
_MOST_DISKS: Final = 8
_NEARER: Final = 8
_APART: Final = {"battery": 10.0, "free": float(64 << 20)}
"""What is less apart may be one machine's own coming and going."""


@dataclass(slots=True)
class _Trace:
    """What is remembered of a device."""

    disk: int
    disks: dict[int, datetime] = field(default_factory=dict)
    """The sizes of its disk before, with when each was last seen."""
    here: dict[str, float] = field(default_factory=dict)
    """What the last state said, and (`there`) the last state of the other machine, if it is one."""
    there: dict[str, float] | None = None
    turns: int = 0
    begun: datetime | None = None
    told_at: datetime | None = None


class Clones:
    """Watches the latest states of devices, in memory: what is forgotten shows again soon."""

    def __init__(self, most: int = MOST_DEVICES) -> None:
        self._most = most
        self._traces: OrderedDict[UUID, _Trace] = OrderedDict()

    def notice(self, device_id: UUID, state: State, at: datetime) -> str | None:
        """Takes the newest state of a device.

        Returns:
            what tells that it is several machines, for people; at most once an hour of a device.
        """
        facts = {"battery": state.battery_percent, "free": float(state.disk_free_bytes)}
        trace = self._traces.get(device_id)
        if trace is None:
            self._traces[device_id] = _Trace(state.disk_total_bytes, here=facts)
            if len(self._traces) > self._most:
                self._traces.popitem(last=False)
            return None
        self._traces.move_to_end(device_id)
        evidence = _disk_returns(trace, state.disk_total_bytes, at) or _takes_turns(
            trace, facts, at
        )
        if evidence is None or (trace.told_at is not None and at - trace.told_at < TELL_EVERY):
            return None
        trace.told_at = at
        return evidence

    def forget(self, device_id: UUID) -> None:
        """Begins anew, as when telling of a device has failed."""
        self._traces.pop(device_id, None)


def _disk_returns(trace: _Trace, disk: int, at: datetime) -> str | None:
    # 0 is a disk of which nothing is known.
    if disk in {trace.disk, 0}:
        return None
    before, trace.disk = trace.disk, disk
    if before == 0:
        return None
    seen = trace.disks.pop(disk, None)
    trace.disks[before] = at
    if len(trace.disks) > _MOST_DISKS:
        del trace.disks[next(iter(trace.disks))]
    if seen is None or at - seen > WITHIN:
        return None
    return f"its system disk has {before} bytes and {disk} bytes in turn"


def _takes_turns(trace: _Trace, facts: dict[str, float], at: datetime) -> str | None:
    here, there = trace.here, trace.there
    if there is not None and _is_near(facts, there, here):
        trace.here, trace.there = facts, here
        trace.turns += 1
        trace.begun = trace.begun or at
        if at - trace.begun > TURNS_WITHIN:
            trace.turns, trace.begun = 1, at
    elif there is not None and _is_near(facts, here, there):
        trace.here = facts
    else:
        trace.here, trace.there = facts, here
        trace.turns, trace.begun = 0, None
    if trace.turns < TURNS:
        return None
    trace.turns, trace.begun = 0, None
    return "its battery and the free space of its disk go on from two places in turn"


def _is_near(facts: dict[str, float], one: dict[str, float], other: dict[str, float]) -> bool:
    """Whether facts go on from one place, and clearly not from the other."""
    for name, least in _APART.items():
        apart = abs(one[name] - other[name])
        if apart >= least and abs(facts[name] - one[name]) * _NEARER <= apart:
            return True
    return False
