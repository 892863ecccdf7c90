"""What a reseller's publish costs: `python -m bench.publish`, see docs/benchmarks.md.

A product of its own gets a reseller with many organisations, each with a policy of its own and
policies of groups, and devices in all groups. Then the reseller publishes. The time runs until a
device of the organisation that came last would get it; the CPU time of all parts counts until the
product rests. Afterwards a device of each organisation is asked: it has to get what was published.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import httpx
import uvloop

from bench import organisations, product
from bench.cpu import Machine, Usage, usage
from bench.facts import facts
from bench.figures import by_part
from bench.fleet import device_id
from bench.organisations import (
    Organisations,
    publish,
    reseller_policy,
    template,
    until_put_together,
)
from bench.product import Product
from bench.report import RESULTS, Report
from cli.sim import Client, Target
from cli.sim.bodies import poll_body

_PATIENCE: Final = 3600.0
_AT_ONCE: Final = 32
_POLL: Final = "/api/v1/devices/policy"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for."""

    organisations: int
    groups: int
    inherit: bool
    own_values: bool
    publishes: int

    @property
    def editions(self) -> int:
        """How many a publish has put together."""
        return self.organisations * (1 + self.groups)


class Publishes:
    """A run on a running product."""

    def __init__(self, plan: Plan, started: Product, report: Report) -> None:
        self._plan = plan
        self._product = started
        self._report = report

    async def run(self) -> list[dict[str, Any]]:
        """Fills the product and publishes."""
        plan, stack = self._plan, self._product.stack
        with stack.client(stack.login()["token"]) as client:
            database = await self._product.superuser()
            try:
                self._report.stage(f"{plan.organisations:,} organisations, {plan.groups} groups")
                made = await organisations.make(
                    client,
                    database,
                    plan.organisations,
                    plan.groups,
                    with_policies=not plan.inherit,
                    with_values=plan.own_values,
                )
                devices = plan.organisations * max(1, plan.groups)
                await organisations.register(database, made, devices)
                await until_put_together(database, plan.organisations * plan.groups)
                await self._product.settled(_PATIENCE)
                await self._product.measure_rest()
                return [
                    await self._publish(client, database, made, number)
                    for number in range(1, plan.publishes + 1)
                ]
            finally:
                await database.close()

    async def _publish(
        self,
        client: httpx.Client,
        database: asyncpg.Connection,
        made: Organisations,
        number: int,
    ) -> dict[str, Any]:
        self._report.stage(f"The reseller publishes ({number} of {self._plan.publishes})")
        own_values = self._plan.own_values
        document = template(number) if own_values else reseller_policy(number)
        before, machine, began = self._used(), Machine.now(), time.monotonic()
        await asyncio.to_thread(publish, client, made.reseller_id, document)
        answered = time.monotonic() - began
        assigned = await database.fetchrow(
            "SELECT policy_id, version FROM policy.assignments WHERE tenant_id = $1::text::uuid",
            made.reseller_id,
        )
        # Which values of the organisation are in it comes behind the version.
        end = "," if own_values else "]"
        recipe = f'%"{made.reseller_id}", "{assigned["policy_id"]}", {assigned["version"]}{end}%'
        await until_put_together(database, self._plan.editions, recipe)
        last = await database.fetchval(
            "SELECT tenant_id::text FROM policy.editions WHERE recipe LIKE $1"
            " ORDER BY changed_xid DESC LIMIT 1",
            recipe,
        )
        page = reseller_policy(number)["browser"]["managed_bookmarks"][0]["url"]
        while await self._without(made, [made.ids.index(last) + 1], page):
            await asyncio.sleep(0.1)
        seconds = time.monotonic() - began
        await self._product.settled(_PATIENCE)
        spent, whole = self._used().since(before), time.monotonic() - began
        others = (Machine.now().busy - machine.busy - spent.total) / whole
        # One of each group, by turns.
        pick = random.Random(number)
        groups = max(1, self._plan.groups)
        devices = [
            first + pick.randrange(groups) * len(made.ids) for first in range(1, len(made.ids) + 1)
        ]
        missing = await self._without(made, devices, page)
        parts = by_part(spent.seconds)
        found = {
            "answered_seconds": round(answered, 2),
            "seconds": round(seconds, 1),
            "cpu_seconds": {name: round(used, 2) for name, used in parts.items()},
            "policy_and_postgres_cpu_seconds": round(
                parts.get("policy", 0.0) + parts.get("postgres", 0.0), 1
            ),
            "rest_cpus": round(self._product.rest_cpus, 3),
            "others_cpus": round(others, 2),
            "devices_without": missing,
        }
        self._report.say(
            f"answered after {answered:.2f} s; the last organisation's device gets it after"
            f" {seconds:.0f} s; policy and PostgreSQL used"
            f" {found['policy_and_postgres_cpu_seconds']} s of CPU"
        )
        rows = [(name, f"{used:.2f}") for name, used in sorted(parts.items()) if used > 0.1]
        self._report.table("CPU seconds", ("part", "s"), rows)
        if missing:
            self._report.say(f"[red]{missing} organisations' devices did not get it[/]")
        return found

    async def _without(self, made: Organisations, devices: Sequence[int], page: str) -> int:
        """How many of some devices, by number, do not get a policy with a page in it."""
        signer = await self._product.signer()
        issued = datetime.now(UTC) - timedelta(minutes=1)
        stack = self._product.stack
        waiting = iter(devices)
        missing = 0

        async def ask(client: Client) -> None:
            nonlocal missing
            for number in waiting:
                token = signer.device_token(device_id(number), made.owner_of(number), 1, issued)[0]
                answer = await client.call(_POLL, poll_body("0"), token)
                # 304: nothing is known of its organisation's policies yet.
                if answer.status not in (200, 304):
                    raise SystemExit(f"a poll was answered {answer.status or answer.fault}")
                missing += page.encode() not in answer.body

        target = Target.of(stack.url, stack.ca_file)
        async with Client(target, connections=_AT_ONCE) as client:
            await asyncio.gather(*(ask(client) for _ in range(_AT_ONCE)))
        return missing

    def _used(self) -> Usage:
        return usage(self._product.processes())


def main() -> None:
    """Measures, and writes what it found."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.publish", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--organisations", type=int, default=10_000)
    parser.add_argument("--groups", type=int, default=5, help="of each, with policies; 0 for none")
    parser.add_argument(
        "--inherit", action="store_true", help="organisations have no policies of their own"
    )
    parser.add_argument(
        "--own-values",
        action="store_true",
        help="the reseller publishes a template, in which each organisation has a value of its own",
    )
    parser.add_argument("--publishes", type=int, default=2, help="one after the other")
    arguments = parser.parse_args()
    if arguments.inherit and arguments.groups:
        parser.error("--inherit goes with --groups 0")
    plan = Plan(**vars(arguments))
    report = Report()
    with product.running() as started, asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        found = loop.run(Publishes(plan, started, report).run())
    report.results |= {"machine": facts(), "plan": vars(arguments), "publishes": found}
    report.say(f"written to {report.write(RESULTS, 'latest-publish')}")
    raise SystemExit(any(one["devices_without"] for one in found))


if __name__ == "__main__":
    main()
