"""The order of a run: what is measured after what, and what of it is kept."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import asyncpg

from cli.sim.http import Client
from tests.load import growth, profile, queries, traffic
from tests.load.cpu import memory
from tests.load.drive import Load, Side, connected, interleaved, measure, paced, saturating
from tests.load.figures import Round, Series, ratio, series
from tests.load.fleet import Fleet, device_id
from tests.load.floor import Floor
from tests.load.plan import INGEST_EVENTS_PER_SECOND, PACED_SHARE, Plan
from tests.load.product import Product
from tests.load.report import Report
from tests.load.traffic import Device, Traffic

_WARM_UP = 32
_WARM_UP_SECONDS = 300.0
_PROFILE_SECONDS = 8.0
_EVENTS_A_BATCH = 100
_UNKNOWN = 30_000


@dataclass(slots=True)
class Bench:
    """A run on a running product and its floors."""

    plan: Plan
    product: Product
    floors: Sequence[Floor]
    report: Report
    database: asyncpg.Connection
    fleet: Fleet
    profile: bool = False
    """Whether to record where the time goes as well."""

    @property
    def sides(self) -> list[Side]:
        return [self.product, *self.floors]

    def _connected(self) -> AbstractAsyncContextManager[dict[str, Client]]:
        return connected(self.sides, self.product.stack.ca_file, self.plan.connections)

    async def run(self) -> None:
        """Everything that the plan asks for."""
        plan = self.plan
        if any(plan.small):
            await self._small_fleet()
        await self._main_fleet()
        if any(plan.large):
            await self._large_fleet()

    async def _main_fleet(self) -> None:
        plan = self.plan
        self.report.stage(f"Fleet mix: {plan.devices:,} devices, {plan.connections} connections")
        load = await self._devices(range(1, plan.devices + 1))
        async with self._connected() as clients:
            await self._warm_up(load, clients)
            mix = await self._mix(load, clients, plan.rounds)
            self.report.costs("Fleet mix, saturating", mix)
            self.report.latencies("Fleet mix, saturating: the product", mix["product"])
            self._keep_mix(mix)
            await self._paced_mix(load, clients, mix["product"].calls_per_second)
            if self.profile:
                await self._profile(load, clients)
            if plan.each_call:
                await self._each_call(load, clients)
            if plan.ingest_seconds:
                await self._ingest(load, clients)
        self.report.results["memory_bytes"] = self._memory()

    async def _profile(self, load: Traffic, clients: dict[str, Client]) -> None:
        self.report.stage("Profile of the fleet mix")
        calls = load.of(traffic.MIX)
        busy = saturating(calls, self.plan.connections, _PROFILE_SECONDS + 3)
        load_task = asyncio.create_task(self._measure(self.product, clients, busy))
        await asyncio.sleep(1)
        for path in await profile.record(self.product, _PROFILE_SECONDS):
            self.report.say(f"{path}:\n{path.read_text()}")
        await load_task

    async def _devices(self, numbers: Sequence[int]) -> Traffic:
        """Traffic of these devices, which are registered if they are not yet."""
        await self.fleet.grow(self.database, max(numbers))
        ids = [device_id(number) for number in numbers]
        tokens = await self.product.tokens(ids)
        return Traffic(
            [Device(i, token) for i, token in zip(ids, tokens, strict=True)],
            self.fleet.policy_version,
            self.product.stack.pre_shared_key,
        )

    async def _measure(self, side: Side, clients: dict[str, Client], load: Load) -> Round:
        return await measure(side, clients[side.name], load, self.sides)

    def _memory(self) -> dict[str, dict[str, int]]:
        sizes = memory(self.product.processes())
        rows = [
            (part, f"{size['rss'] / 2**20:.0f}", f"{size['pss'] / 2**20:.0f}")
            for part, size in sorted(sizes.items(), key=lambda item: -item[1]["pss"])
        ]
        self.report.table("Memory, MiB", ("part", "RSS", "PSS"), rows)
        return sizes

    async def _warm_up(self, load: Traffic, clients: dict[str, Client]) -> None:
        self.report.say("warming up: one poll of every device on every side")
        for side in self.sides:
            warm = saturating(load.one_each(), _WARM_UP, _WARM_UP_SECONDS)
            self.report.round(await self._measure(side, clients, warm))

    async def _mix(
        self, load: Traffic, clients: dict[str, Client], rounds: int
    ) -> dict[str, Series]:
        plan, calls = self.plan, load.of(traffic.MIX)
        found = await interleaved(
            self.sides,
            clients,
            lambda: saturating(calls, plan.connections, plan.seconds),
            rounds,
            self.report.round,
        )
        return series(found)

    def _keep_mix(self, mix: dict[str, Series]) -> None:
        product = mix["product"]
        floors = {name: one.cpu_us_per_call for name, one in mix.items() if name != "product"}
        cheapest = min(floors, key=lambda name: floors[name])
        self.report.results["fleet_mix"] = {
            "cpu_us_per_call": round(product.cpu_us_per_call, 1),
            "floor_cpu_us_per_call": round(floors[cheapest], 1),
            "floor": cheapest,
            "ratio": round(ratio(product, mix[cheapest]), 3),
            "ratio_by_floor": {name: round(ratio(product, mix[name]), 3) for name in floors},
            "devices": self.plan.devices,
            "saturating": {name: one.as_json() for name, one in mix.items()},
        }

    async def _paced_mix(
        self, load: Traffic, clients: dict[str, Client], saturation: float
    ) -> None:
        rate = PACED_SHARE * saturation
        self.report.stage(f"Fleet mix, paced: {rate:.0f} calls/s, 60 % of saturation")
        calls, found = load.of(traffic.MIX), []
        for side in self.sides:
            seconds = self.plan.paced_seconds if side is self.product else self.plan.seconds
            one = await self._measure(side, clients, paced(calls, rate, seconds))
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

    async def _each_call(self, load: Traffic, clients: dict[str, Client]) -> None:
        kept = self.report.results["calls"] = {}
        rows = []
        kinds = (traffic.POLL, traffic.STATE, traffic.EVENTS, traffic.EVENTS_100, traffic.ENROLL)
        for kind in kinds:
            self.report.stage(f"Each call: {kind}")
            full, share = await self._one_call(load, clients, kind)
            product = full["product"]
            kept[kind] = {
                "saturating": {name: one.as_json() for name, one in full.items()},
                "paced": share.as_json(),
            }
            slow = share.together().latency_ms(kind)
            rows.append(
                (
                    kind,
                    f"{product.calls_per_second:.0f}",
                    *(f"{one.cpu_us_per_call:.0f}" for one in full.values()),
                    *(f"{slow[name]:.1f}" for name in ("p50", "p90", "p99")),
                )
            )
        head = ("call", "calls/s", *(f"µs {side.name}" for side in self.sides))
        percentiles = ("paced p50 ms", "p90", "p99")
        self.report.table("Each call: saturating, and paced at 60 %", head + percentiles, rows)

    async def _one_call(
        self, load: Traffic, clients: dict[str, Client], kind: str
    ) -> tuple[dict[str, Series], Series]:
        plan, calls = self.plan, load.of(kind)
        found = await interleaved(
            self.sides,
            clients,
            lambda: saturating(calls, plan.connections, plan.each_call),
            1,
            self.report.round,
        )
        full = series(found)
        rate = PACED_SHARE * full["product"].calls_per_second
        one = await self._measure(self.product, clients, paced(calls, rate, plan.each_call))
        self.report.round(one)
        return full, Series("product", [one])

    async def _ingest(self, load: Traffic, clients: dict[str, Client]) -> None:
        rate = INGEST_EVENTS_PER_SECOND / _EVENTS_A_BATCH
        seconds = self.plan.ingest_seconds
        self.report.stage(f"Ingest: {INGEST_EVENTS_PER_SECOND:,} events/s in batches of 100")
        before = await growth.stored(self.database)
        steady = paced(load.of(traffic.EVENTS_100), rate, seconds)
        one = await self._measure(self.product, clients, steady)
        self.report.round(one)
        stored = await growth.stored(self.database) - before
        acknowledged = one.outcome.calls * _EVENTS_A_BATCH
        self.report.say(
            f"{acknowledged:,} events acknowledged, {stored:,} stored,"
            f" {acknowledged / one.outcome.seconds:,.0f} a second;"
            f" {sum(one.cpu.values()) / one.outcome.seconds:.2f} processors busy"
        )
        self.report.results["ingest"] = {
            "events_per_second": round(acknowledged / one.outcome.seconds),
            "acknowledged": acknowledged,
            "stored": stored,
            "refused": one.outcome.failed,
            **Series("product", [one]).as_json(),
        }

    async def _small_fleet(self) -> None:
        devices, events = self.plan.small
        self.report.stage(f"Small: {devices:,} devices, {events:,} stored events")
        kept = await self._grown(devices, events, range(1, devices + 1))
        self.report.results["growth"] = {"small": kept}

    async def _large_fleet(self) -> None:
        devices, events = self.plan.large
        few, _ = self.plan.small
        self.report.stage(f"Large: {devices:,} devices, {events:,} stored events")
        # As many devices call as before, drawn from all: what differs is what is stored.
        chosen = random.Random(3).sample(range(1, devices + 1), few)
        large = await self._grown(devices, events, [*chosen, devices])
        growth_of = self.report.results["growth"]
        growth_of["large"] = large
        small = growth_of["small"]
        raw = large["cpu_us_per_call"] / small["cpu_us_per_call"]
        drift = large["floor_cpu_us_per_call"] / small["floor_cpu_us_per_call"]
        growth_of |= {
            "cost_ratio": round(raw, 3),
            "cost_ratio_without_drift": round(raw / drift, 3),
        }
        self.report.say(
            f"a call costs {raw:.2f} times what it costs in the small fleet"
            f" ({raw / drift:.2f} times without the floor's own drift)"
        )
        await self._unknown_tokens(devices)
        growth_of["memory_bytes"] = self._memory()
        if self.plan.queries:
            await self._queries(devices)

    async def _unknown_tokens(self, devices: int) -> None:
        """The fleet mix from so many devices that hardly any calls twice."""
        count = min(devices, _UNKNOWN)
        self.report.stage(f"Large: {count:,} devices whose tokens the gateway has not seen")
        load = await self._devices(random.Random(4).sample(range(1, devices + 1), count))
        async with self._connected() as clients:
            mix = await self._mix(load, clients, 1)
        self.report.costs("Fleet mix, saturating, unknown tokens", mix)
        self.report.results["growth"]["unknown_tokens"] = {
            name: one.as_json() for name, one in mix.items()
        }

    async def _grown(self, devices: int, events: int, callers: Sequence[int]) -> dict[str, Any]:
        load = await self._devices(callers)
        await growth.grow_events(self.product, self.fleet, events, self.report.say)
        async with self._connected() as clients:
            await self._warm_up(load, clients)
            mix = await self._mix(load, clients, max(2, self.plan.rounds - 1))
        self.report.costs("Fleet mix, saturating", mix)
        product = mix["product"].cpu_us_per_call
        floors = [one.cpu_us_per_call for name, one in mix.items() if name != "product"]
        return {
            "devices": devices,
            "events": events,
            "cpu_us_per_call": round(product, 1),
            "floor_cpu_us_per_call": round(min(floors), 1),
            "saturating": {name: one.as_json() for name, one in mix.items()},
        }

    async def _queries(self, devices: int) -> None:
        self.report.stage(f"Console queries, {self.plan.queries} times each")
        found = await queries.ask(self.product.stack, devices, self.plan.queries)
        rows = [
            (name, *(f"{figures[share]:.1f}" for share in ("p50", "p90", "p99", "max")))
            for name, figures in found.items()
        ]
        self.report.table("Console queries, ms", ("query", "p50", "p90", "p99", "max"), rows)
        self.report.results["queries_ms"] = found
