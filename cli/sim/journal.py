"""Who keeps what was acknowledged, to compare it with what is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cli.sim.device import EVENTS, STATE, Device


class Journal(Protocol):
    """Told about every success, before the device does anything else."""

    def acknowledged(self, device: Device, kind: int, ids: Sequence[int]) -> None:
        """A call was answered with success.

        Args:
            device: who called; after a poll, `device.version` is what it has now.
            kind: `POLL`, `STATE` or `EVENTS`.
            ids: the ids of the events, or the one time of the state, in nanoseconds.
        """


@dataclass(slots=True)
class Ledger:
    """Keeps in memory what must be in the database."""

    events: dict[str, list[int]] = field(default_factory=dict)
    """Ids of acknowledged events by device id; the database has exactly one row for each."""
    states: dict[str, int] = field(default_factory=dict)
    """The newest acknowledged state by device id; the database has this one or a newer one."""
    versions: dict[str, str] = field(default_factory=dict)
    """The policy version that a device had at its latest poll."""

    def acknowledged(self, device: Device, kind: int, ids: Sequence[int]) -> None:
        """Notes it."""
        if kind == EVENTS:
            self.events.setdefault(device.id, []).extend(ids)
        elif kind == STATE:
            self.states[device.id] = max(ids[0], self.states.get(device.id, 0))
        else:
            self.versions[device.id] = device.version

    @property
    def event_count(self) -> int:
        """Acknowledged events of all devices."""
        return sum(map(len, self.events.values()))
