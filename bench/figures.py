"""The arithmetic of a run: rounds, what a call cost in them, and how far they differ."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median


def percentile(sorted_values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of values in ascending order; NaN without any."""
    if not sorted_values:
        return math.nan
    rank = max(1, math.ceil(share * len(sorted_values)))
    return sorted_values[rank - 1]


@dataclass(slots=True)
class Outcome:
    """What the client saw of one round."""

    seconds: float = 0.0
    latencies: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of every call that was answered as it should, by kind."""
    failed: dict[str, int] = field(default_factory=dict)
    """Calls that were not, by what came instead."""

    def note(self, kind: str, seconds: float) -> None:
        """Counts a call that was answered as it should."""
        self.latencies.setdefault(kind, []).append(seconds)

    def fail(self, what: str) -> None:
        """Counts a call that was not."""
        self.failed[what] = self.failed.get(what, 0) + 1

    @property
    def calls(self) -> int:
        return sum(map(len, self.latencies.values()))

    @property
    def failures(self) -> int:
        return sum(self.failed.values())

    def latency_ms(self, kind: str | None = None) -> dict[str, float]:
        """`p50`, `p90`, `p99` and `max` of one kind, or of all calls, in milliseconds."""
        kinds = [kind] if kind else list(self.latencies)
        values = sorted(v for k in kinds for v in self.latencies.get(k, ()))
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
        return {name: 1000 * percentile(values, share) for name, share in shares.items()}


@dataclass(frozen=True, slots=True)
class Round:
    """One side under one load for some seconds."""

    side: str
    outcome: Outcome
    cpu: Mapping[str, float]
    """CPU seconds by part."""
    others: float
    """CPU seconds that neither this side nor the client used: noise of the machine."""
    client: float
    """CPU seconds of the load client."""
    rest: float = 0.0
    """CPU seconds of `cpu` that the side would have used without any call."""

    @property
    def cpu_us_per_call(self) -> float:
        return 1e6 * sum(self.cpu.values()) / max(1, self.outcome.calls)

    @property
    def rest_us_per_call(self) -> float:
        """The share of that for being there at all; the busier, the less."""
        return 1e6 * self.rest / max(1, self.outcome.calls)


@dataclass(frozen=True, slots=True)
class Series:
    """All rounds of one side under the same load."""

    side: str
    rounds: Sequence[Round]

    @property
    def calls_per_second(self) -> float:
        return median(r.outcome.calls / r.outcome.seconds for r in self.rounds)

    @property
    def cpu_us_per_call(self) -> float:
        """The median over the rounds."""
        return median(r.cpu_us_per_call for r in self.rounds)

    @property
    def rest_us_per_call(self) -> float:
        return median(r.rest_us_per_call for r in self.rounds)

    def at_rate(self, calls_per_second: float, rest_cpus: float) -> float:
        """CPU µs a call if so many came: its own cost, and its share of the cost at rest.

        On a machine that is busy with other things rounds get through fewer calls, and each
        carries more of what the product uses anyway; this figure does not depend on that.
        """
        own = median(r.cpu_us_per_call - r.rest_us_per_call for r in self.rounds)
        return own + 1e6 * rest_cpus / calls_per_second

    @property
    def least(self) -> float:
        """The cheapest round: what a call costs when the machine does nothing else, or nearly."""
        return min(r.cpu_us_per_call for r in self.rounds)

    @property
    def spread(self) -> float:
        """The widest distance of a round from the median, as a share of it."""
        middle = self.cpu_us_per_call
        return max(abs(r.cpu_us_per_call - middle) for r in self.rounds) / middle

    @property
    def parts_us_per_call(self) -> dict[str, float]:
        """CPU µs a call by part, over all rounds, the dearest first."""
        calls = max(1, sum(r.outcome.calls for r in self.rounds))
        names = {name for r in self.rounds for name in r.cpu}
        found = {
            name: 1e6 * sum(r.cpu.get(name, 0.0) for r in self.rounds) / calls for name in names
        }
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    @property
    def failures(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for one in self.rounds:
            for what, count in one.outcome.failed.items():
                found[what] = found.get(what, 0) + count
        return found

    @property
    def noise(self) -> float:
        """The share of a processor that strangers used meanwhile."""
        return sum(r.others for r in self.rounds) / sum(r.outcome.seconds for r in self.rounds)

    @property
    def client_us_per_call(self) -> float:
        calls = max(1, sum(r.outcome.calls for r in self.rounds))
        return 1e6 * sum(r.client for r in self.rounds) / calls

    def together(self) -> Outcome:
        """All rounds as one."""
        whole = Outcome(sum(r.outcome.seconds for r in self.rounds))
        for one in self.rounds:
            for kind, values in one.outcome.latencies.items():
                whole.latencies.setdefault(kind, []).extend(values)
        whole.failed = self.failures
        return whole

    def as_json(self) -> dict[str, object]:
        whole = self.together()
        return {
            "calls_per_second": round(self.calls_per_second, 1),
            "cpu_us_per_call": round(self.cpu_us_per_call, 1),
            "of_which_at_rest_us": round(self.rest_us_per_call, 1),
            "cpu_us_per_call_least": round(self.least, 1),
            "cpu_us_per_call_of_rounds": [round(r.cpu_us_per_call, 1) for r in self.rounds],
            "parts_us_per_call": {k: round(v, 1) for k, v in self.parts_us_per_call.items()},
            "latency_ms": {
                kind: {name: round(value, 2) for name, value in whole.latency_ms(kind).items()}
                for kind in whole.latencies
            },
            "calls": whole.calls,
            "failed": whole.failed,
            "client_us_per_call": round(self.client_us_per_call, 1),
            "others_share_of_a_cpu": round(self.noise, 3),
        }


def by_part(costs: Mapping[str, float]) -> dict[str, float]:
    """Adds up what belongs to one part: `postgres/policy` and `postgres/main` are `postgres`."""
    found: dict[str, float] = {}
    for name, value in costs.items():
        part = name.split("/", 1)[0]
        found[part] = found.get(part, 0.0) + value
    return found


def ratio(one: Series, other: Series) -> float:
    """How many times as much a call costs on one side: the median over rounds side by side."""
    pairs = zip(one.rounds, other.rounds, strict=False)
    return median(a.cpu_us_per_call / b.cpu_us_per_call for a, b in pairs)


def series(rounds: Iterable[Round]) -> dict[str, Series]:
    """Rounds by side, the sides in the order of their first round."""
    found: dict[str, list[Round]] = {}
    for one in rounds:
        found.setdefault(one.side, []).append(one)
    return {side: Series(side, those) for side, those in found.items()}
