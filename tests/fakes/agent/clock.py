"""Clocks of the simulated agent."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """The wall clock in nanoseconds."""

    def time_ns(self) -> int:
        """Nanoseconds since 1970."""


class SystemClock:
    """The machine's clock."""

    def time_ns(self) -> int:
        """Nanoseconds since 1970."""
        return time.time_ns()


class ManualClock:
    """A clock that stands still until it is told, but never shows the same nanosecond twice."""

    def __init__(self, start_ns: int = 1_767_225_600_000_000_000) -> None:
        self._now = start_ns

    def time_ns(self) -> int:
        """Nanoseconds since 1970."""
        self._now += 1
        return self._now

    def advance(self, seconds: float) -> None:
        """Moves the clock forward."""
        self._now += int(seconds * 1e9)


def rfc3339_nano(time_ns: int) -> str:
    """Go's `time.RFC3339Nano` in UTC: trailing zeros of the fraction are left out."""
    seconds, nanos = divmod(time_ns, 1_000_000_000)
    whole = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{nanos:09d}".rstrip("0").rstrip(".")
    return f"{whole}{fraction}Z"
