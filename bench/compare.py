"""Growth: the same load on a small and on a large database, two products in turn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import growth, product, queries
from bench.drive import Side, connected
from bench.figures import ratio
from bench.fleet import Fleet
from bench.floor import Floor
from bench.plan import Plan
from bench.product import Product
from bench.report import Report
from bench.rounds import Rounds, devices, show_memory

_STRANGERS = 30_000


@dataclass(slots=True)
class Growth:
    """What a call costs when much is stored.

    Args:
        small: the product of the rest of the run, whose fleet is still small.
        floors: show how much of a difference is the machine's.
        large_home: where the large database is kept from run to run; `None` for nowhere.
    """

    plan: Plan
    small: Product
    floors: Sequence[Floor]
    report: Report
    fleet: Fleet
    large_home: Path | None

    async def run(self) -> None:
        """Fills both databases, then measures."""
        plan, report = self.plan, self.report
        report.stage(f"Growth: {_size(plan.small)}, and beside it {_size(plan.large)}")
        with product.running("large", self.large_home) as large:
            fleet = await Fleet.of(large)
            report.results["growth"] = {
                "small": dict(zip(("devices", "events"), plan.small, strict=True)),
                "large": dict(zip(("devices", "events"), plan.large, strict=True)),
            }
            await self._fill(self.small, self.fleet, plan.small)
            await self._fill(large, fleet, plan.large)
            await large.settled()
            await large.measure_rest()
            await self._measure(large, fleet)
            self._keep("large_memory_bytes", show_memory(report, large))
            if plan.queries:
                await self._queries(large)

    async def _fill(self, one: Product, fleet: Fleet, size: tuple[int, int]) -> None:
        wanted, events = size
        connection = await one.superuser()
        try:
            await fleet.grow(connection, wanted)
        finally:
            await connection.close()
        await growth.store_past(one, wanted, events, self.report.say)
        await one.restart_postgres()

    async def _measure(self, large: Product, fleet: Fleet) -> None:
        few, many = self.plan.small[0], self.plan.large[0]
        sides: list[Side] = [self.small, large, *self.floors]
        # As many devices call here as there, drawn from all: what differs is what is stored.
        small_load = await devices(self.small, self.fleet, range(1, few + 1))
        chosen = random.Random(3).sample(range(1, many + 1), few)
        loads = {side.name: small_load for side in sides}
        loads["large"] = await devices(large, fleet, chosen)
        async with connected(sides, self.plan.connections) as clients:
            rounds = Rounds(self.plan, self.report, sides, clients, loads)
            await rounds.warm_up()
            mix = await rounds.mix(self.plan.rounds)
            self.report.costs("Fleet mix, saturating: a small and a large database", mix)
            self._keep("saturating", {name: one.as_json() for name, one in mix.items()})
            times = ratio(mix["large"], mix["product"])
            self._keep("cost_ratio", round(times, 3))
            self.report.say(f"a call costs {times:.2f} times what it costs in the small one")
            await self._strangers(rounds, large, fleet)

    async def _strangers(self, rounds: Rounds, large: Product, fleet: Fleet) -> None:
        """Hardly any device calls twice: neither the gateway nor a service remembers it."""
        many = self.plan.large[0]
        count = min(many, _STRANGERS)
        self.report.stage(f"Large: first calls of {count:,} devices")
        chosen = random.Random(4).sample(range(1, many + 1), count)
        load = await devices(large, fleet, chosen)
        loads = {**rounds.loads, "large": load}
        alone = Rounds(self.plan, self.report, [large], rounds.clients, loads)
        mix = await alone.mix(1)
        self._keep("first_calls", {name: one.as_json() for name, one in mix.items()})

    async def _queries(self, large: Product) -> None:
        self.report.stage(f"Console queries on the large one, {self.plan.queries} times each")
        asked = await queries.ask(large.stack, self.plan.large[0], self.plan.queries)
        found = {name: asked.latency_ms(name) for name in asked.latencies}
        shares = ("p50", "p90", "p99", "max")
        rows = [(name, *(f"{ms[share]:.1f}" for share in shares)) for name, ms in found.items()]
        self.report.table("Console queries, ms", ("query", *shares), rows)
        for what, count in asked.failed.items():
            self.report.say(f"[red]FAILED[/] {count} x {what}")
        self.report.results["queries_ms"] = {
            name: {share: round(value, 2) for share, value in ms.items()}
            for name, ms in found.items()
        }
        self.report.results["queries_failed"] = asked.failed

    def _keep(self, name: str, value: Any) -> None:
        self.report.results["growth"][name] = value


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]:,} devices and {size[1]:,} stored events"
