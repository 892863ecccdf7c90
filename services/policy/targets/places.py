"""What memory has of devices: where each one sits, and what it reported last.

One dictionary has both, because the ids of a million devices are the larger part of either. All
devices that sit in one place and reported the same share an entry.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar
from weakref import WeakValueDictionary

S = TypeVar("S", bound=object)


class Report(NamedTuple):
    """What a device reported."""

    version: int
    token_version: int
    """The generation of the token that it came with."""
    rightful: bool
    """Whether the version stands for what the device is to have."""


class _Noted(Generic[S]):
    """Where devices sit that reported the same."""

    __slots__ = ("__weakref__", "report", "seat")

    def __init__(self, seat: S | None, report: Report) -> None:
        self.seat = seat
        self.report = report


class Places(Generic[S]):
    """The seats of devices by their ids, as a dictionary has them, and their reports.

    A device without a seat is here only if it reported something.
    """

    def __init__(self) -> None:
        self._entries: dict[str, S | _Noted[S]] = {}
        self._shared: WeakValueDictionary[tuple[int, Report], _Noted[S]] = WeakValueDictionary()
        """By the seat's address: it is alive as long as its entry."""
        self.reports = 0
        """Of how many devices there is one."""

    def get(self, device_id: str) -> S | None:
        """The seat of a device."""
        found = self._entries.get(device_id)
        return found.seat if isinstance(found, _Noted) else found

    def __setitem__(self, device_id: str, seat: S) -> None:
        found = self._entries.get(device_id)
        self._entries[device_id] = (
            self._noted(seat, found.report) if isinstance(found, _Noted) else seat
        )

    def pop(self, device_id: str, default: None = None) -> S | None:
        """Takes a device's seat from it; answers that."""
        found = self._entries.get(device_id, default)
        if isinstance(found, _Noted):
            self._entries[device_id] = self._noted(None, found.report)
            return found.seat
        self._entries.pop(device_id, None)
        return found

    def forget(self, device_id: str) -> None:
        """Takes all that there is of a device."""
        if isinstance(self._entries.pop(device_id, None), _Noted):
            self.reports -= 1

    def items(self) -> Iterator[tuple[str, S]]:
        """The devices with seats."""
        for device_id, found in self._entries.items():
            seat = found.seat if isinstance(found, _Noted) else found
            if seat is not None:
                yield device_id, seat

    def report(self, device_id: str) -> Report | None:
        """What a device reported last."""
        found = self._entries.get(device_id)
        return found.report if isinstance(found, _Noted) else None

    def note(self, device_id: str, report: Report) -> None:
        """Takes what a device reports."""
        found = self._entries.get(device_id)
        if isinstance(found, _Noted):
            found = found.seat
        else:
            self.reports += 1
        self._entries[device_id] = self._noted(found, report)

    def forget_reports(self) -> None:
        """Forgets what devices reported."""
        seated = dict(self.items())
        self._entries.clear()
        self._entries.update(seated)
        self.reports = 0

    def _noted(self, seat: S | None, report: Report) -> _Noted[S]:
        key = (id(seat), report)
        found = self._shared.get(key)
        if found is None:
            found = self._shared[key] = _Noted(seat, report)
        return found
