"""Latencies in constant memory: a histogram whose buckets grow with the value.

128 buckets for every doubling, as HdrHistogram does it: a percentile is at most 0.8 % too high,
whether it is 200 µs or 30 s. See https://hdrhistogram.github.io/HdrHistogram/.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from typing import Final

_BITS: Final = 7
_HALF: Final = 1 << _BITS
_MAX: Final = (1 << 32) - 1
_BUCKETS: Final = ((32 - _BITS) << _BITS) + _HALF


class Histogram:
    """Counts of durations, in whole microseconds; what is longer than 71 minutes counts as that."""

    __slots__ = ("_counts", "count", "maximum", "total")

    def __init__(self) -> None:
        self._counts = array("L", bytes(array("L").itemsize * _BUCKETS))
        self.count = 0
        self.total = 0
        self.maximum = 0

    def add(self, microseconds: int) -> None:
        """Counts one duration."""
        if microseconds > _MAX:
            microseconds = _MAX
        elif microseconds < 0:
            microseconds = 0
        shift = microseconds.bit_length() - _BITS - 1
        if shift > 0:
            self._counts[(shift << _BITS) + (microseconds >> shift)] += 1
        else:
            self._counts[microseconds] += 1
        self.count += 1
        self.total += microseconds
        self.maximum = max(self.maximum, microseconds)

    def merge(self, other: Histogram) -> None:
        """Adds the counts of another one."""
        counts = self._counts
        for index, count in enumerate(other._counts):
            if count:
                counts[index] += count
        self.count += other.count
        self.total += other.total
        self.maximum = max(self.maximum, other.maximum)

    def clear(self) -> None:
        """Forgets everything."""
        self.__init__()  # type: ignore[misc]  # begins again, in place

    @property
    def mean(self) -> float:
        """Microseconds; NaN without any."""
        return self.total / self.count if self.count else math.nan

    def percentile(self, share: float) -> float:
        """Microseconds that so large a share of the durations does not exceed; NaN without any."""
        return self.percentiles((share,))[0]

    def percentiles(self, shares: Iterable[float]) -> list[float]:
        """Several percentiles in one pass; the shares are in ascending order."""
        wanted = list(shares)
        if not self.count:
            return [math.nan] * len(wanted)
        found: list[float] = []
        seen = 0
        for index, count in enumerate(self._counts):
            if not count:
                continue
            seen += count
            while len(found) < len(wanted) and seen >= max(1, wanted[len(found)] * self.count):
                found.append(min(_highest(index), self.maximum))
            if len(found) == len(wanted):
                break
        # Sums of floats may fall short of the last rank.
        found.extend([float(self.maximum)] * (len(wanted) - len(found)))
        return found


def _highest(index: int) -> float:
    """The longest duration that is counted in a bucket."""
    shift = max(0, (index >> _BITS) - 1)
    return float((((index - (shift << _BITS)) + 1) << shift) - 1)
