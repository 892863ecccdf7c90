"""Rounds of the fleet mix on several sides, and what belongs around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench import traffic
from bench.cpu import memory
from bench.drive import Load, Side, interleaved, measure, saturating
from bench.figures import Round, Series, series
from bench.fleet import Fleet, device_id
from bench.plan import Plan
from bench.product import Product
from bench.report import Report
from bench.traffic import Device, Traffic
from cli.sim.http import Client

_WARM_UP = 32
_WARM_UP_SECONDS = 300.0


async def devices(product: Product, fleet: Fleet, numbers: Sequence[int]) -> Traffic:
    """Traffic of the devices with these numbers, which are registered if they are not yet."""
    connection = await product.superuser()
    try:
        await fleet.grow(connection, max(numbers))
    finally:
        await connection.close()
    ids = [device_id(number) for number in numbers]
    tokens = await product.tokens(ids)
    callers = [Device(i, token) for i, token in zip(ids, tokens, strict=True)]
    return Traffic(callers, fleet.policy_version, product.stack.pre_shared_key)


@dataclass(frozen=True, slots=True)
class Rounds:
    """Sides that are measured in turn.

    Args:
        plan: how long and how often.
        report: hears of every round.
        clients: by the side's name.
        loads: the traffic of each side, by its name: tokens of one product are none of another.
    """

    plan: Plan
    report: Report
    sides: Sequence[Side]
    clients: Mapping[str, Client]
    loads: Mapping[str, Traffic]

    async def warm_up(self) -> None:
        """One poll of every device on every side: what is remembered of each is known then."""
        self.report.say("warming up: one poll of every device on every side")
        for side in self.sides:
            once = saturating(self.loads[side.name].one_each(), _WARM_UP, _WARM_UP_SECONDS)
            self.report.round(await self.measure(side, once))

    async def measure(self, side: Side, load: Load) -> Round:
        """One round of one side."""
        return await measure(side, self.clients[side.name], load, self.sides)

    async def saturating(self, kind: str, rounds: int, seconds: float) -> dict[str, Series]:
        """All sides in turn, each as fast as it goes."""
        calls = {name: load.of(kind) for name, load in self.loads.items()}
        found = await interleaved(
            self.sides,
            self.clients,
            lambda side: saturating(calls[side.name], self.plan.connections, seconds),
            rounds,
            self.report.round,
        )
        return series(found)

    async def mix(self, rounds: int) -> dict[str, Series]:
        """The fleet mix, saturating."""
        return await self.saturating(traffic.MIX, rounds, self.plan.seconds)


def show_memory(report: Report, product: Product) -> dict[str, dict[str, int]]:
    """What each part of a product holds, in bytes."""
    sizes = memory(product.processes())
    rows = [
        (part, f"{size['rss'] / 2**20:.0f}", f"{size['pss'] / 2**20:.0f}")
        for part, size in sorted(sizes.items(), key=lambda item: -item[1]["pss"])
    ]
    report.table(f"Memory of the {product.name}, MiB", ("part", "RSS", "PSS"), rows)
    return sizes
