"""How often one device may have something done that costs more than an answer from memory."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Final

from servicekit.ids import Clock

_HOUR: Final = timedelta(hours=1)
_MOST_COUNTED: Final = 200_000


class Hourly:
    """So many times an hour for each device; in memory, so each process counts by itself."""

    def __init__(self, most: int, clock: Clock) -> None:
        self._most = most
        self._clock = clock
        self._since: datetime = clock()
        self._taken: Counter[str] = Counter()

    def take(self, device_id: str) -> bool:
        """Counts one more, unless the device has had all of them."""
        now = self._clock()
        if now - self._since >= _HOUR or len(self._taken) >= _MOST_COUNTED:
            self._taken.clear()
            self._since = now
        if self._taken[device_id] >= self._most:
            return False
        self._taken[device_id] += 1
        return True

    def give_back(self, device_id: str) -> None:
        """Counts one less: nothing came of it."""
        if self._taken[device_id] > 0:
            self._taken[device_id] -= 1
