"""The main part of a run: one product and its floors, with one fleet."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from bench import growth, profile, traffic
from bench.drive import Side, connected, paced, saturating
from bench.figures import Series, ratio, series
from bench.fleet import Fleet
from bench.floor import WHAT, Floor
from bench.plan import INGEST_EVENTS_PER_SECOND, PACED_SHARE, TARGET_CALLS_PER_SECOND, Plan
from bench.product import Product
from bench.report import Report
from bench.rounds import Rounds, devices, show_memory

_PROFILE_SECONDS = 8.0
_EVENTS_A_BATCH = 100
_KINDS = (
    traffic.POLL,
    traffic.STATE,
    traffic.EVENTS,
    traffic.EVENTS_100,
    traffic.ENROLL,
    traffic.ATTEST,
)


@dataclass(slots=True)
class Bench:
    """A run on a running product and its floors."""

    plan: Plan
    product: Product
    floors: Sequence[Floor]
    report: Report
    fleet: Fleet
    profile: bool = False
    """Whether to record where the time goes as well."""

    async def run(self) -> None:
        """The fleet mix, and what else the plan asks for."""
        plan = self.plan
        self.report.stage(f"Fleet mix: {plan.devices:,} devices, {plan.connections} connections")
        sides: list[Side] = [self.product, *self.floors]
        load = await devices(self.product, self.fleet, range(1, plan.devices + 1))
        async with connected(sides, plan.connections) as clients:
            loads = {side.name: load for side in sides}
            rounds = Rounds(plan, self.report, sides, clients, loads)
            await rounds.warm_up()
            mix = await rounds.mix(plan.rounds)
            self._keep_mix(mix)
            await self._paced_mix(rounds, mix["product"].calls_per_second)
            if self.profile:
                await self._profile(rounds)
            if plan.each_call:
                await self._each_call(rounds)
            if plan.ingest_seconds:
                await self._ingest(rounds)
        self.report.results["memory_bytes"] = show_memory(self.report, self.product)

    def _keep_mix(self, mix: dict[str, Series]) -> None:
        self.report.costs("Fleet mix, saturating", mix)
        self.report.latencies("Fleet mix, saturating: the product", mix["product"])
        product = mix["product"]
        floors = {name: one.cpu_us_per_call for name, one in mix.items() if name != "product"}
        cheapest = min(floors, key=lambda name: floors[name])
        for name in floors:
            times = ratio(product, mix[name])
            self.report.say(f"{times:.2f} x {name}: {WHAT[name]}")
        at_target = product.at_rate(TARGET_CALLS_PER_SECOND, self.product.rest_cpus)
        self.report.say(
            f"at {TARGET_CALLS_PER_SECOND:,} calls a second, those of 200,000 devices:"
            f" {at_target:.0f} µs a call"
        )
        self.report.results["fleet_mix"] = {
            "cpu_us_per_call": round(product.cpu_us_per_call, 1),
            "floor_cpu_us_per_call": round(floors[cheapest], 1),
            "floor": cheapest,
            "ratio": round(ratio(product, mix[cheapest]), 3),
            "floors": {
                name: {
                    "is": WHAT[name],
                    "cpu_us_per_call": round(cost, 1),
                    "ratio": round(ratio(product, mix[name]), 3),
                }
                for name, cost in floors.items()
            },
            "cpu_us_per_call_at_target_rate": round(at_target, 1),
            "devices": self.plan.devices,
            "saturating": {name: one.as_json() for name, one in mix.items()},
        }

    async def _paced_mix(self, rounds: Rounds, saturation: float) -> None:
        rate = PACED_SHARE * saturation
        self.report.stage(f"Fleet mix, paced: {rate:.0f} calls/s, 60 % of saturation")
        found = []
        for side in rounds.sides:
            seconds = self.plan.paced_seconds if side is self.product else self.plan.seconds
            calls = rounds.loads[side.name].of(traffic.MIX)
            one = await rounds.measure(side, paced(calls, rate, seconds))
            self.report.round(one)
            found.append(one)
        mix = series(found)
        self.report.costs("Fleet mix, paced", mix)
        self.report.latencies("Fleet mix, paced: the product", mix["product"])
        whole = mix["product"].together()
        kept = self.report.results["fleet_mix"]
        kept["p99_ms"] = round(max(whole.latency_ms(k)["p99"] for k in whole.latencies), 2)
        kept["paced_calls_per_second"] = round(rate)
        kept["paced"] = {name: one.as_json() for name, one in mix.items()}

    async def _profile(self, rounds: Rounds) -> None:
        self.report.stage("Profile of the fleet mix")
        calls = rounds.loads["product"].of(traffic.MIX)
        busy = saturating(calls, self.plan.connections, _PROFILE_SECONDS + 3)
        load = asyncio.create_task(rounds.measure(self.product, busy))
        await asyncio.sleep(1)
        for path in await profile.record(self.product, _PROFILE_SECONDS):
            self.report.say(f"{path}:\n{path.read_text()}")
        await load

    async def _each_call(self, rounds: Rounds) -> None:
        kept = self.report.results["calls"] = {}
        rows = []
        for kind in _KINDS:
            self.report.stage(f"Each call: {kind}")
            full = await rounds.saturating(kind, 1, self.plan.each_call)
            rate = PACED_SHARE * full["product"].calls_per_second
            calls = rounds.loads["product"].of(kind)
            one = await rounds.measure(self.product, paced(calls, rate, self.plan.each_call))
            self.report.round(one)
            gentle = Series("product", [one])
            kept[kind] = {
                "saturating": {name: side.as_json() for name, side in full.items()},
                "paced": gentle.as_json(),
            }
            slow = gentle.together().latency_ms(kind)
            costs = (f"{side.cpu_us_per_call:.0f}" for side in full.values())
            shown = (f"{slow[name]:.1f}" for name in ("p50", "p90", "p99"))
            rows.append((kind, f"{full['product'].calls_per_second:.0f}", *costs, *shown))
        head = ("call", "calls/s", *(f"µs {side.name}" for side in rounds.sides))
        percentiles = ("paced p50 ms", "p90", "p99")
        self.report.table("Each call: saturating, and paced at 60 %", head + percentiles, rows)

    async def _ingest(self, rounds: Rounds) -> None:
        rate = INGEST_EVENTS_PER_SECOND / _EVENTS_A_BATCH
        self.report.stage(f"Ingest: {INGEST_EVENTS_PER_SECOND:,} events/s in batches of 100")
        calls = rounds.loads["product"].of(traffic.EVENTS_100)
        database = await self.product.superuser()
        try:
            before = await growth.stored(database)
            steady = paced(calls, rate, self.plan.ingest_seconds)
            one = await rounds.measure(self.product, steady)
            stored = await growth.stored(database) - before
        finally:
            await database.close()
        self.report.round(one)
        acknowledged = one.outcome.calls * _EVENTS_A_BATCH
        per_second = acknowledged / one.outcome.seconds
        self.report.say(
            f"{acknowledged:,} events acknowledged, {stored:,} stored, {per_second:,.0f} a second;"
            f" {sum(one.cpu.values()) / one.outcome.seconds:.2f} processors busy"
        )
        self.report.results["ingest"] = {
            "events_per_second": round(per_second),
            "acknowledged": acknowledged,
            "stored": stored,
            "refused": one.outcome.failed,
            **Series("product", [one]).as_json(),
        }
