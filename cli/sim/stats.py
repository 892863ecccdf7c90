"""What was measured: latencies by kind of call, failures, and how both went second by second."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from cli.sim.device import KINDS, QUEUED_STATE
from cli.sim.histogram import Histogram

SHARES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
MAX_POINTS: Final = 3600
"""A longer run has points of two seconds, of four, and so on."""


@dataclass(slots=True)
class Part:
    """One kind of call within one point of the series."""

    calls: int = 0
    failures: int = 0
    p50: float = math.nan
    p99: float = math.nan
    """Microseconds; of several seconds together, the mean of the medians and the worst p99."""

    def merged(self, other: Part) -> Part:
        """This and the next one as one."""
        calls = self.calls + other.calls
        pairs = [(part.p50, part.calls) for part in (self, other) if part.calls]
        p50 = sum(value * weight for value, weight in pairs) / calls if pairs else math.nan
        worst = max((p.p99 for p in (self, other) if p.calls), default=math.nan)
        return Part(calls, self.failures + other.failures, p50, worst)


@dataclass(slots=True)
class Point:
    """Some time of the run."""

    second: float
    """When it begins, in seconds since the start of the run."""
    length: float
    """How many seconds it is long."""
    parts: dict[int, Part]
    in_flight: int = 0
    connections: int = 0
    lag: float = 0.0
    """Seconds by which the simulator itself was late at worst."""

    def merged(self, other: Point) -> Point:
        """This and the next one as one."""
        nothing = Part()
        kinds = self.parts.keys() | other.parts.keys()
        parts = {
            k: self.parts.get(k, nothing).merged(other.parts.get(k, nothing)) for k in sorted(kinds)
        }
        return Point(
            self.second,
            self.length + other.length,
            parts,
            max(self.in_flight, other.in_flight),
            max(self.connections, other.connections),
            max(self.lag, other.lag),
        )


@dataclass(slots=True)
class Stats:
    """The figures of a run, in memory that does not grow with its calls.

    A latency counts from the moment at which the call was due, so that a call that had to wait
    for others, or for the simulator, is not made to look better (no "coordinated omission").
    Only calls that were answered as they should be have a latency; all others are failures.
    """

    latency: dict[int, Histogram] = field(default_factory=dict)
    failures: dict[int, Counter[str]] = field(default_factory=dict)
    """By kind, then by status or what happened instead of one."""
    points: list[Point] = field(default_factory=list)
    interval: int = 1
    """Seconds of a point, all but the latest ones."""
    seconds: float = 0.0
    """How long it was measured, up to the latest point or to `end`."""
    in_flight: int = 0
    skipped: int = 0
    """Calls that were due while every device had one of the kind in flight."""
    lag: float = 0.0
    """Seconds by which the simulator was late, since the latest point."""
    events: int = 0
    """Events that were acknowledged."""
    _now: dict[int, Histogram] = field(default_factory=dict)
    _failed_now: Counter[int] = field(default_factory=Counter)
    _begun: float = 0.0
    _rates: dict[int, float] | None = None
    _pending: list[Point] = field(default_factory=list)

    def add(self, kind: int, seconds: float, failure: str) -> None:
        """Counts a call: how long it took, and what went wrong, if anything."""
        if failure:
            self.failures.setdefault(kind, Counter())[failure] += 1
            self._failed_now[kind] += 1
            return
        histogram = self._now.get(kind)
        if histogram is None:
            histogram = self._now[kind] = Histogram()
        histogram.add(int(seconds * 1e6))

    def tick(self, seconds: float, connections: int = 0) -> Point:
        """Ends a point of the series, about once a second.

        Args:
            seconds: since the run began.
            connections: that are open.
        """
        parts = {}
        for kind in sorted(self._now.keys() | self._failed_now.keys()):
            part = parts[kind] = Part(failures=self._failed_now[kind])
            histogram = self._now.get(kind)
            if histogram is not None and histogram.count:
                part.calls = histogram.count
                part.p50, part.p99 = histogram.percentiles((0.5, 0.99))
                self.latency.setdefault(kind, Histogram()).merge(histogram)
                histogram.clear()
        length = seconds - self._begun
        point = Point(self._begun, length, parts, self.in_flight, connections, self.lag)
        self._failed_now.clear()
        self._begun, self.lag = seconds, 0.0
        if self._rates is None:
            self.seconds = seconds
        self._keep(point)
        return point

    def _keep(self, point: Point) -> None:
        self._pending.append(point)
        if len(self._pending) < self.interval:
            return
        whole, *rest = self._pending
        for part in rest:
            whole = whole.merged(part)
        self._pending.clear()
        self.points.append(whole)
        if len(self.points) == MAX_POINTS:
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points = [first.merged(second) for first, second in pairs]
            self.interval *= 2

    def end(self) -> None:
        """What comes now was in flight at the end, and does not count for the rates."""
        self._rates = {kind: self.rate(kind) for kind in self.latency}

    def rate(self, kind: int) -> float:
        """Calls of a kind that succeeded in a second, on average."""
        if self._rates is not None:
            return self._rates.get(kind, 0.0)
        counted = self.latency[kind].count if kind in self.latency else 0
        return counted / max(self.seconds, 1e-9)

    @property
    def series(self) -> list[Point]:
        """All points, the unfinished one included."""
        return [*self.points, *self._pending]

    @property
    def calls(self) -> int:
        """Calls that succeeded, up to the latest point."""
        return sum(histogram.count for histogram in self.latency.values())

    @property
    def failed(self) -> int:
        """Calls that did not."""
        return sum(counts.total() for counts in self.failures.values())

    def worst(self, name: str = "p99") -> float:
        """The highest of the kinds' percentiles of a name, in seconds; NaN without any calls.

        States of a queue are left out: the backend makes them wait on purpose.
        """
        share = SHARES[name]
        judged = (h for kind, h in self.latency.items() if kind != QUEUED_STATE)
        values = [h.percentile(share) for h in judged if h.count]
        return max(values, default=math.nan) / 1e6

    def as_json(self) -> dict[str, Any]:
        """The figures for programs; milliseconds, and `null` where there is nothing."""
        kinds = {}
        for kind in sorted(self.latency.keys() | self.failures.keys()):
            histogram = self.latency.get(kind, Histogram())
            values = histogram.percentiles(SHARES.values())
            latency = {name: _ms(value) for name, value in zip(SHARES, values, strict=True)}
            latency["max"] = _ms(histogram.maximum if histogram.count else math.nan)
            latency["mean"] = _ms(histogram.mean)
            kinds[KINDS[kind]] = {
                "calls": histogram.count,
                "calls_per_second": round(self.rate(kind), 2),
                "latency_ms": latency,
                "failures": dict(self.failures.get(kind, {})),
            }
        return {
            "seconds": round(self.seconds, 3),
            "calls": self.calls,
            "calls_per_second": round(sum(map(self.rate, self.latency)), 2),
            "failures": self.failed,
            "events_acknowledged": self.events,
            "skipped": self.skipped,
            "kinds": kinds,
            "series": [_point(point) for point in self.series],
        }


def _point(point: Point) -> dict[str, Any]:
    kinds = {
        KINDS[kind]: {
            "calls": part.calls,
            "failures": part.failures,
            "p50_ms": _ms(part.p50),
            "p99_ms": _ms(part.p99),
        }
        for kind, part in point.parts.items()
    }
    return {
        "second": round(point.second, 2),
        "length": round(point.length, 2),
        "kinds": kinds,
        "in_flight": point.in_flight,
        "connections": point.connections,
        "simulator_lag_ms": round(point.lag * 1000, 1),
    }


def _ms(microseconds: float) -> float | None:
    return None if math.isnan(microseconds) else round(microseconds / 1000, 3)
