"""How often something may be done within an hour: by one device, or to one secret."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Final

from servicekit.ids import Clock

_HOUR: Final = timedelta(hours=1)
_MOST_COUNTED: Final = 200_000


class Hourly:
    """So many times an hour for each of what is counted by; in memory, so each process counts by
    itself."""

    def __init__(self, most: int, clock: Clock) -> None:
        self._most = most
        self._clock = clock
        self._since: datetime = clock()
        self._taken: Counter[str] = Counter()

    def take(self, key: str) -> bool:
        """Counts one more, unless there were all of them already."""
        now = self._clock()
        if now - self._since >= _HOUR or len(self._taken) >= _MOST_COUNTED:
            self._taken.clear()
            self._since = now
        if self._taken[key] >= self._most:
            return False
        self._taken[key] += 1
        return True

    def give_back(self, key: str) -> None:
        """Counts one less: nothing came of it."""
        if self._taken[key] > 0:
            self._taken[key] -= 1
