"""`make bench`: see docs/benchmarks.md."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

import uvloop

from bench import floor, product
from bench.compare import Growth
from bench.facts import facts
from bench.fleet import Fleet
from bench.plan import PLANS
from bench.product import Product
from bench.report import Report
from bench.stages import Bench


def main() -> None:
    """Runs the plan that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("plan", nargs="?", default="default", choices=sorted(PLANS))
    parser.add_argument("--profile", action="store_true", help="record where the time goes")
    parser.add_argument("--only", choices=("mix", "growth"), help="leave the rest of the plan out")
    parser.add_argument(
        "--large-home",
        type=Path,
        help="keep the large database in this directory, and use the one that is there",
    )
    options = parser.parse_args()
    # What was started is stopped, however this ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    plan = PLANS[options.plan]
    report = Report()
    report.results |= {"plan": plan.name, "machine": facts()}
    report.stage(f"Starting the product (the {plan.name} form takes about {plan.minutes:g} min)")
    with product.running() as started, asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        loop.run(_run(options, started, report))
    report.say(f"written to {report.write()}")


async def _run(options: argparse.Namespace, started: Product, report: Report) -> None:
    plan, stack = PLANS[options.plan], started.stack
    with floor.running(stack, stack.home.parent / "floor") as floors:
        fleet = await Fleet.of(started)
        await started.settled()
        await started.measure_rest()
        report.results["cpus_at_rest"] = round(started.rest_cpus, 3)
        report.say(f"at rest the product uses {started.rest_cpus:.2f} of a processor")
        if any(plan.large) and options.only != "mix":
            home = options.large_home and options.large_home.absolute() / "home"
            await Growth(plan, started, floors, report, fleet, home).run()
        if options.only != "growth":
            await Bench(plan, started, floors, report, fleet, options.profile).run()


if __name__ == "__main__":
    main()
