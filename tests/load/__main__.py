"""`make bench`: see docs/benchmarks.md."""

from __future__ import annotations

import argparse
import asyncio

import uvloop

from tests.load import floor, product
from tests.load.facts import facts
from tests.load.fleet import Fleet
from tests.load.plan import PLANS, Plan
from tests.load.product import Product
from tests.load.report import Report
from tests.load.stages import Bench


def main() -> None:
    """Runs the plan that the command line names."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("plan", nargs="?", default="default", choices=sorted(PLANS))
    parser.add_argument("--profile", action="store_true", help="record where the time goes")
    arguments = parser.parse_args()
    plan = PLANS[arguments.plan]
    report = Report()
    report.results |= {"plan": plan.name, "machine": facts()}
    report.stage(f"Starting the product (the {plan.name} form takes about {plan.minutes:g} min)")
    with product.running() as started, asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        loop.run(_run(plan, started, report, arguments.profile))
    report.say(f"written to {report.write()}")


async def _run(plan: Plan, started: Product, report: Report, profile: bool) -> None:
    stack = started.stack
    version = started.publish_policy()
    database = await started.superuser()
    with floor.running(stack, stack.home.parent / "floor") as floors:
        await started.settled()
        report.results["cpus_at_rest"] = round(await started.at_rest(), 3)
        report.say(f"at rest the product uses {report.results['cpus_at_rest']} of a processor")
        fleet = Fleet(stack.tenant_id, version)
        await Bench(plan, started, floors, report, database, fleet, profile).run()
    await database.close()


if __name__ == "__main__":
    main()
