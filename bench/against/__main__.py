"""`make bench BASE=…` and `make bench DISTURBANCE=…`: see docs/benchmarks.md."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import uvloop

from bench import traffic
from bench.against import base, disturbance
from bench.against.checkout import ROOT, CheckoutError, checkout, commit_of
from bench.against.installation import InstallationError, Place, Size, running
from bench.against.sections import DEFAULT, Section, parse
from bench.facts import facts
from bench.report import RESULTS, Report

_Plan = TypeVar("_Plan", base.Plan, disturbance.Plan)


def main() -> None:
    """Ends with 0 when the tree is not too dear, or p99 stays; 1 when not; 2 without a result."""
    # What was started is stopped, however this ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = _options()
    report = Report()
    report.results |= {"plan": options.plan, "machine": facts()}
    try:
        if options.disturbance:
            good = _disturbance(options, report)
            name = "disturbance"
        else:
            good = _base(options, report)
            name = "base"
    except (CheckoutError, InstallationError, disturbance.DisturbanceError) as error:
        sys.stderr.write(f"make bench: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    report.say(f"written to {report.write(options.results, f'latest-{name}')}")
    sys.exit(0 if good else 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.against", description=__doc__)
    parser.add_argument("plan", nargs="?", default="default", choices=sorted(base.PLANS))
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--base", help="the commit to compare with")
    what.add_argument("--disturbance", help="the command that runs beside polls")
    parser.add_argument("--sections", type=_sections, default=parse(DEFAULT), help=DEFAULT)
    parser.add_argument(
        "--size",
        type=_size,
        help="fills both first: devices, organisations, groups of each, as in 100000,1000,5",
    )
    parser.add_argument("--rounds", type=int, help="at least 2")
    parser.add_argument("--seconds", type=float, help="of a round's load")
    parser.add_argument("--settle", type=float, help="seconds after it that are counted as well")
    parser.add_argument("--tree", type=Path, default=ROOT, help="what is measured; this directory")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the files go")
    parser.add_argument(
        "--limit", type=float, default=3.0, help="how many per cent dearer it may be; 3"
    )
    options = parser.parse_args()
    options.tree = options.tree.absolute()
    if options.rounds is not None and options.rounds < 2:
        parser.error("--rounds is at least 2")
    if options.size is not None and any(one.kind != traffic.POLL for one in options.sections):
        parser.error("--size goes with polls only")
    return options


def _size(text: str) -> Size:
    try:
        return Size.parse(text)
    except (ValueError, TypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is not as 100000,1000,5") from None


def _sections(text: str) -> list[Section]:
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _base(options: argparse.Namespace, report: Report) -> bool:
    commit = commit_of(options.base, options.tree)
    plan, limit = _sized(base.PLANS[options.plan], options), options.limit / 100
    report.results |= {"base": commit, "limit": limit, "sections": {}}
    report.stage(f"Installing {commit[:12]}, unless it is from an earlier run")
    with ExitStack() as stack:
        directory = stack.enter_context(checkout(commit, options.tree))
        places = Place("base", directory), Place("tree", options.tree)
        report.say(f"the {options.plan} form takes about {plan.minutes:g} min")
        findings = base.Bench(places, options.sections, plan, report).run()
    report.results["findings"] = {one.section: one.as_json(limit) for one in findings}
    return base.show(report, findings, limit)


def _sized(plan: _Plan, options: argparse.Namespace) -> _Plan:
    names = {field.name for field in dataclasses.fields(plan)}
    said = {name: getattr(options, name) for name in ("rounds", "seconds", "settle", "size")}
    changes = {name: one for name, one in said.items() if one is not None and name in names}
    return dataclasses.replace(plan, **changes)


def _disturbance(options: argparse.Namespace, report: Report) -> bool:
    plan = _sized(disturbance.PLANS[options.plan], options)
    report.stage(f"Starting (the {options.plan} form takes about {plan.minutes:g} min)")
    with (
        running(Place("tree", options.tree)) as tree,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop,
    ):
        return loop.run(disturbance.run(options.disturbance, tree, plan, report))


if __name__ == "__main__":
    main()
