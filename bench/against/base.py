"""`make bench BASE=<commit>`: what a call costs in this tree, over what it costs in another commit.

Both run at the same time as black boxes, each by its own `make run`, and get the very same calls.
Every round starts them anew and empty, for two processes of the same program differ by a per cent
or so for as long as they live. In a round the load goes back and forth between them, A B B A A B
B A, a fraction of a second each, and both are counted from the beginning to the end: a stranger
who makes the machine slower does so for both, and both carry the same share of what an
installation uses at rest. A section with a rate loads both at once.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from typing import Any, Final

import uvloop

from bench.against.installation import Installation, InstallationError, Place, Size, running
from bench.against.intervals import Comparison
from bench.against.sections import MOST_CONNECTIONS, REST, Section
from bench.cpu import Machine, Usage, memory, usage
from bench.drive import Load, Sender, connected, measure, paced, saturating
from bench.figures import Round, by_part, series
from bench.report import Report
from bench.traffic import Call
from cli.sim import Client

_WARM_UP: Final = 32
_PROBE_SECONDS: Final = 1.5
_ENDLESS: Final = 600.0
_CALM_SECONDS: Final = 10.0
_AT_REST: Final = 0.2
"""CPUs that an installation uses at most when it has nothing to do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int
    """Each has all sections, on installations that are started for it."""
    seconds: float
    """About how long the load of a section takes in a round, on both sides together."""
    minutes: float
    """About how long three sections take in all."""
    settle: float = 2.0
    """Seconds for which what is behind the answers is counted: feeds and events take a second."""
    devices: int = 200
    rest_after: float = 75.0
    """Seconds after which it rests: connections of the load before are closed after a minute."""
    devices_at_rest: int = 1000
    """Where what is used at rest is measured."""
    size: Size | None = None
    """With what both are filled before; nothing when not given."""
    devices_of_size: int = 2000
    """So many of its devices call."""


PLANS: Final = {
    "quick": Plan(rounds=6, seconds=4, minutes=5),
    "default": Plan(rounds=12, seconds=8, minutes=14),
    "full": Plan(rounds=24, seconds=12, minutes=34),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What a section found."""

    section: str
    unit: str
    costs: Comparison
    failed: Mapping[str, int] = field(default_factory=dict)

    def is_good(self, dearer: float) -> bool:
        """Whether the tree is at most so much dearer (0.03: 3 %), and all calls succeeded."""
        return not self.failed and self.costs.is_at_most(dearer)

    def verdict(self, dearer: float) -> str:
        """`yes` or `NO` to "at most so much dearer", or why there is no answer."""
        if self.failed:
            return "NO RESULT: calls failed"
        if not self.costs.is_at_most(dearer):
            return "NO"
        return "yes" if self.costs.is_sharp(dearer) else "yes, but the interval is wide"

    def as_json(self, dearer: float) -> dict[str, Any]:
        bounds = self.costs.interval
        return {
            "unit": self.unit,
            "base": [round(one, 3) for one in self.costs.base],
            "tree": [round(one, 3) for one in self.costs.tree],
            "ratio_of_medians": round(self.costs.ratio_of_medians, 4),
            "interval": [round(bounds.low, 4), round(bounds.high, 4)],
            "interval_middle": round(bounds.middle, 4),
            "confidence": round(bounds.confidence, 4),
            "failed": dict(self.failed),
            "at_most_dearer": dearer,
            "verdict": self.verdict(dearer),
        }


class Bench:
    """A run.

    Args:
        places: the base's and the tree's.
        sections: what is measured.
        plan: how much.
        report: hears of every round.
    """

    def __init__(
        self,
        places: tuple[Place, Place],
        sections: Sequence[Section],
        plan: Plan,
        report: Report,
    ) -> None:
        self._places = places
        self._sections = sections
        self._plan = plan
        self.report = report
        self._rounds: dict[str, list[Round]] = {}
        self._rest: list[tuple[Resting, ...]] = []

    def run(self) -> list[Finding]:
        """Measures all sections.

        Raises:
            InstallationError: a side does not start, or does not answer as it should.
        """
        for number in range(self._plan.rounds):
            self.report.stage(f"Round {number + 1} of {self._plan.rounds}")
            with ExitStack() as stack:
                # By turns, which is started first.
                places = self._places if number % 2 == 0 else self._places[::-1]
                started = {p.name: stack.enter_context(running(p)) for p in places}
                sides = [started[place.name] for place in self._places]
                loop = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
                loop.run(self._round(number, sides))
        return self.findings()

    def findings(self) -> list[Finding]:
        """What the rounds so far found."""
        return [one for section in self._sections for one in self._found(section)]

    def add_rest(self, base: Resting, tree: Resting) -> None:
        """Takes what both sides used in a round without calls."""
        self._rest.append((base, tree))

    async def _round(self, number: int, sides: Sequence[Installation]) -> None:
        rests = any(not section.kind for section in self._sections)
        devices = self._plan.devices_at_rest if rests else self._plan.devices
        if self._plan.size is not None:
            devices = self._plan.devices_of_size
        loads = [await side.traffic(devices, self._plan.size) for side in sides]
        async with connected(sides, MOST_CONNECTIONS) as clients:
            for side, load in zip(sides, loads, strict=True):
                once = saturating(load.one_each(), _WARM_UP, _ENDLESS)
                await _warm(side, clients[side.name], once)
            for section in self._sections:
                if section.kind:
                    pairs = zip(sides, loads, strict=True)
                    calls = {side.name: load.of(section.kind) for side, load in pairs}
                    await self._calls(number, section, sides, clients, calls)
                else:
                    await self._at_rest(sides)

    async def _calls(
        self,
        number: int,
        section: Section,
        sides: Sequence[Installation],
        clients: Mapping[str, Client],
        calls: Mapping[str, Iterator[Call]],
    ) -> None:
        plan = self._plan
        probes = []
        for side in sides:
            # It also makes the connections and fills the caches.
            seconds = min(_PROBE_SECONDS, plan.seconds)
            probe = saturating(calls[side.name], section.connections, seconds)
            probes.append(await _warm(side, clients[side.name], probe))
        await _calm(sides)
        served = min(one.outcome.calls / one.outcome.seconds for one in probes)
        senders = {side.name: Sender(side, clients[side.name]) for side in sides}
        meter = _Meter(sides)
        if section.rate:
            both = (
                paced(calls[name], section.rate, plan.seconds)(sender)
                for name, sender in senders.items()
            )
            await _timed(asyncio.gather(*both), senders.values())
        else:
            turns, each = section.turns(plan.seconds, served)
            for turn in back_and_forth(turns, number):
                sender = senders[sides[turn].name]
                some = islice(calls[sides[turn].name], each)
                await _timed(saturating(some, section.connections, _ENDLESS)(sender), [sender])
        await asyncio.sleep(plan.settle)
        pair = meter.rounds(senders)
        self._tell(section, *pair)
        self._rounds.setdefault(section.name, []).extend(pair)

    async def _at_rest(self, sides: Sequence[Installation]) -> None:
        """What both use when nobody calls, and the memory that they hold then."""
        await asyncio.sleep(max(self._plan.settle, self._plan.rest_after))
        await _calm(sides)
        meter = _Meter(sides)
        await asyncio.sleep(self._plan.seconds)
        seconds, spent, others, _ = meter.read()
        pair = tuple(
            Resting(
                by_part({name: 1000 * used / seconds for name, used in one.seconds.items()}),
                {name: part["pss"] / 2**20 for name, part in memory(side.processes()).items()},
            )
            for side, one in zip(sides, spent, strict=True)
        )
        base, tree = pair
        self.add_rest(base, tree)
        self.report.say(
            f"{REST:<10} base {base.used:8.1f} ms/s  tree {tree.used:5.1f} ms/s"
            f"  {tree.used / base.used:6.3f}  others {others:4.2f} CPUs"
            f"  base {base.held:.0f} MiB  tree {tree.held:.0f} MiB"
        )

    def _tell(self, section: Section, base: Round, tree: Round) -> None:
        costs = base.cpu_us_per_call, tree.cpu_us_per_call
        failed = base.outcome.failures + tree.outcome.failures
        self.report.say(
            f"{section.name:<10} base {costs[0]:8.1f} µs  tree {costs[1]:8.1f} µs"
            f"  {costs[1] / costs[0]:6.3f}"
            f"  others {base.others / base.outcome.seconds:4.2f} CPUs"
            f"  {base.outcome.calls / base.outcome.seconds:6.0f} calls/s"
            + (f"  [red]FAILED {failed}[/]" if failed else "")
        )

    def _found_at_rest(self) -> list[Finding]:
        sides = list(zip(*self._rest, strict=True))
        used = [_medians([one.milliseconds for one in side]) for side in sides]
        held = [_medians([one.mebibytes for one in side]) for side in sides]
        self.report.results.setdefault("sections", {})[REST] = {
            name: {"cpu_ms_per_second": cpu, "pss_mib": pss}
            for name, cpu, pss in zip(("base", "tree"), used, held, strict=True)
        }
        self._tell_parts("rest: CPU ms a second", *used)
        self._tell_parts("rest: memory, MiB (PSS)", *held)
        costs, memories = (
            Comparison(*([getattr(one, what) for one in side] for side in sides))
            for what in ("used", "held")
        )
        return [
            Finding(REST, "CPU ms a second", costs),
            Finding("memory", "MiB (PSS)", memories),
        ]

    def _tell_parts(self, title: str, base: Mapping[str, float], tree: Mapping[str, float]) -> None:
        rows = []
        for part in sorted({*base, *tree}, key=lambda part: -base.get(part, 0.0)):
            was, now = base.get(part, 0.0), tree.get(part, 0.0)
            rows.append((part, f"{was:.1f}", f"{now:.1f}", f"{now - was:+.1f}"))
        self.report.table(title, ("part", "base", "tree", "more"), rows)

    def _found(self, section: Section) -> list[Finding]:
        if not section.kind:
            return self._found_at_rest()
        both = series(self._rounds[section.name])
        kept = self.report.results["sections"]
        kept[section.name] = {
            name: {**one.as_json(), "parts_us_per_call_of_rounds": [_parts(r) for r in one.rounds]}
            for name, one in both.items()
        }
        base, tree = both.values()
        parts = by_part(base.parts_us_per_call), by_part(tree.parts_us_per_call)
        self._tell_parts(f"{section.name}: CPU µs a call", *parts)
        costs = Comparison(*([r.cpu_us_per_call for r in one.rounds] for one in (base, tree)))
        failed = Counter(base.failures) + Counter(tree.failures)
        return [Finding(section.name, "µs a call", costs, failed)]


@dataclass(frozen=True, slots=True)
class Resting:
    """What a side used in a round without calls, by part."""

    milliseconds: Mapping[str, float]
    """CPU time, a second."""
    mebibytes: Mapping[str, float]
    """Memory (PSS)."""

    @property
    def used(self) -> float:
        return sum(self.milliseconds.values())

    @property
    def held(self) -> float:
        return sum(self.mebibytes.values())


def _medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = {name for one in rounds for name in one}
    return {name: round(median(one.get(name, 0.0) for one in rounds), 2) for name in names}


def _parts(one: Round) -> dict[str, float]:
    calls = max(1, one.outcome.calls)
    return {name: round(1e6 * seconds / calls, 1) for name, seconds in one.cpu.items()}


async def _calm(sides: Sequence[Installation]) -> None:
    """Waits until nothing is left to do, at most so long: autovacuum, above all."""
    end = time.monotonic() + _CALM_SECONDS
    while time.monotonic() < end:
        meter = _Meter(sides)
        await asyncio.sleep(0.5)
        seconds, spent, *_ = meter.read()
        if all(one.total < _AT_REST * seconds for one in spent):
            return


async def _warm(side: Installation, client: Client, load: Load) -> Round:
    one = await measure(side, client, load)
    if one.outcome.failed:
        raise InstallationError(f"{side.name}: not answered as it should: {one.outcome.failed}")
    return one


class _Meter:
    """What both sides use from a moment on."""

    def __init__(self, sides: Sequence[Installation]) -> None:
        self._sides = sides
        self._began, self._machine, self._client = time.perf_counter(), Machine.now(), _own()
        self._before = [usage(side.processes()) for side in sides]

    def read(self) -> tuple[float, list[Usage], float, float]:
        """Seconds, what each side used, CPUs that others used, and CPU seconds of the client."""
        spent = [
            usage(side.processes()).since(before)
            for side, before in zip(self._sides, self._before, strict=True)
        ]
        seconds = time.perf_counter() - self._began
        client = _own() - self._client
        busy = Machine.now().busy - self._machine.busy
        others = max(0.0, busy - client - sum(one.total for one in spent)) / seconds
        return seconds, spent, others, client

    def rounds(self, senders: Mapping[str, Sender]) -> list[Round]:
        """The round of each side."""
        _, spent, others, client = self.read()
        found = []
        for (name, sender), used in zip(senders.items(), spent, strict=True):
            outcome = sender.outcome
            strangers = others * outcome.seconds
            found.append(Round(name, outcome, dict(used.seconds), strangers, client / 2))
        return found


def _own() -> float:
    times = os.times()
    return times.user + times.system


async def _timed(load: Awaitable[Any], senders: Iterable[Sender]) -> None:
    began = time.perf_counter()
    await load
    for sender in senders:
        await sender.idle()
        sender.outcome.seconds += time.perf_counter() - began


def back_and_forth(turns: int, number: int) -> list[int]:
    """Whose turn it is in a round: 0 1 1 0 0 1 1 0 …, and the other way round in the next."""
    first = [(0, 1) if turn % 2 == number % 2 else (1, 0) for turn in range(turns)]
    return [side for pair in first for side in pair]


def show(report: Report, findings: Sequence[Finding], dearer: float) -> bool:
    """The result as a table; answers whether the tree is nowhere too dear."""
    rows = []
    for one in findings:
        costs, bounds = one.costs, one.costs.interval
        rows.append(
            (
                f"{one.section}, {one.unit}",
                f"{median(costs.base):.1f}",
                f"{median(costs.tree):.1f}",
                f"{bounds.middle:.3f}",
                f"{bounds.low:.3f} to {bounds.high:.3f}",
                one.verdict(dearer),
            )
        )
        for what, count in one.failed.items():
            report.say(f"[red]{one.section}: FAILED {count} x {what}[/]")
    sure = min(one.costs.interval.confidence for one in findings)
    head = ("", "base", "tree", "ratio", f"{100 * sure:.0f} % interval")
    title = "Medians of the rounds, and the ratio tree to base of rounds side by side"
    report.table(title, (*head, f"at most {100 * dearer:g} % dearer"), rows)
    return all(one.is_good(dearer) for one in findings)
