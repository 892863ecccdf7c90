"""The metrics that every service has (Prometheus).

Calls are counted in plain numbers, of which the metrics are made when somebody reads them: the
library's own counters take a lock for each step, which a call from memory would notice. Only the
event loop's thread may count.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0)
_LABELS: Final = (*(str(bound) for bound in _BOUNDS), "+Inf")


class _Times:
    """How long the calls of one RPC took."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * len(_LABELS)
        self.seconds = 0.0


class CallMetrics(Collector):
    """Calls by RPC and outcome, their times, and those that are being served."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.in_flight = 0
        self._counts: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._times: defaultdict[str, _Times] = defaultdict(_Times)
        registry.register(self)

    def note(self, rpc: str, code: str, seconds: float) -> None:
        """Counts a call that has ended."""
        self._counts[rpc, code] += 1
        times = self._times[rpc]
        times.buckets[bisect_left(_BOUNDS, seconds)] += 1
        times.seconds += seconds

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        calls = CounterMetricFamily("evergreen_calls", "Calls by outcome.", labels=("rpc", "code"))
        for labels, count in self._counts.items():
            calls.add_metric(labels, count)
        yield calls
        seconds = HistogramMetricFamily(
            "evergreen_call_seconds", "Time to answer a call.", labels=("rpc",)
        )
        for rpc, times in self._times.items():
            buckets = list(zip(_LABELS, map(float, accumulate(times.buckets)), strict=True))
            seconds.add_metric((rpc,), buckets, times.seconds)
        yield seconds
        yield GaugeMetricFamily(
            "evergreen_calls_in_flight", "Calls that are being served.", self.in_flight
        )


class Outcomes(Collector):
    """A counter by outcome."""

    def __init__(self, registry: CollectorRegistry, name: str, text: str) -> None:
        self._name = name
        self._text = text
        self._counts: defaultdict[str, int] = defaultdict(int)
        registry.register(self)

    def note(self, outcome: str, count: int = 1) -> None:
        """Counts what had an outcome."""
        self._counts[outcome] += count

    def collect(self) -> Iterator[Metric]:
        """The metric as it is now."""
        family = CounterMetricFamily(self._name, self._text, labels=("outcome",))
        for outcome, count in self._counts.items():
            family.add_metric((outcome,), count)
        yield family


CALLS: Final = CallMetrics(REGISTRY)
