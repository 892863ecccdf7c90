"""`make bench DISTURBANCE=<command>`: whether polls stay as quick while something else goes on.

The tree by its `make run` answers 200 polls a second for a minute, in pairs of rounds with and
without the command. It runs by `sh -c` beside a round from its start to its end; EVERGREEN_HOME is
the installation's, and BOOTSTRAP the path of its bootstrap.json.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Final

from bench import traffic
from bench.against.installation import Installation, InstallationError
from bench.drive import Load, connected, measure, paced, saturating
from bench.figures import Round
from bench.report import Report

MOST: Final = 1.25
"""The median of the pairs' ratios of p99 is at most so."""
_RATE: Final = 200.0
_CONNECTIONS: Final = 64
_STOP_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int
    """With the command, and as many without it."""
    seconds: float
    minutes: float
    settle: float = 2.0
    devices: int = 200


PLANS: Final = {
    "quick": Plan(rounds=3, seconds=15, minutes=3),
    "default": Plan(rounds=5, seconds=60, minutes=12),
    "full": Plan(rounds=10, seconds=60, minutes=23),
}


class DisturbanceError(Exception):
    """The command that is to disturb has failed."""


@contextmanager
def disturbed(command: str, installation: Installation) -> Iterator[None]:
    """Runs a command beside what is within.

    Raises:
        DisturbanceError: it has ended meanwhile, and not with 0.
    """
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        env={
            **os.environ,
            "EVERGREEN_HOME": str(installation.home),
            "BOOTSTRAP": str(installation.home / "bootstrap.json"),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
        if process.poll():
            raise DisturbanceError(f"the command ended with {process.returncode}: {command}")
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a command and what it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_STOP_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


async def run(command: str, tree: Installation, plan: Plan, report: Report) -> bool:
    """Measures; answers whether p99 stays."""
    load = await tree.traffic(plan.devices)
    quiet: list[Round] = []
    loud: list[Round] = []
    async with connected([tree], _CONNECTIONS) as clients:
        client = clients[tree.name]
        once = await measure(tree, client, saturating(load.one_each(), _CONNECTIONS, 300))
        if once.outcome.failed:
            raise InstallationError(f"it does not answer as it should: {once.outcome.failed}")

        def polls() -> Load:
            return paced(load.of(traffic.POLL), _RATE, plan.seconds)

        for number in range(plan.rounds):
            report.stage(f"Pair {number + 1} of {plan.rounds}")
            for disturb in (False, True) if number % 2 == 0 else (True, False):
                if disturb:
                    with disturbed(command, tree):
                        one = await measure(tree, client, polls())
                    # What it has left to do is not the next round's.
                    await asyncio.sleep(plan.settle)
                else:
                    one = await measure(tree, client, polls())
                (loud if disturb else quiet).append(one)
                report.say(_line("with" if disturb else "without", one))
    return _conclude(command, quiet, loud, report)


def _p99(one: Round) -> float:
    return one.outcome.latency_ms()["p99"]


def _line(which: str, one: Round) -> str:
    others = one.others / one.outcome.seconds
    failed = f"  FAILED {one.outcome.failed}" if one.outcome.failed else ""
    return f"{which:<8} p99 {_p99(one):7.1f} ms  others {others:4.2f} CPUs{failed}"


def _conclude(command: str, quiet: list[Round], loud: list[Round], report: Report) -> bool:
    ratios = [_p99(b) / _p99(a) for a, b in zip(quiet, loud, strict=True)]
    failures = sum(one.outcome.failures for one in (*quiet, *loud))
    stays = median(ratios) <= MOST and not failures
    report.results["disturbance"] = {
        "command": command,
        "p99_ms_without": [round(_p99(one), 2) for one in quiet],
        "p99_ms_with": [round(_p99(one), 2) for one in loud],
        "median_ratio": round(median(ratios), 3),
        "at_most": MOST,
        "failures": failures,
        "p99_stays": stays,
    }
    report.stage("p99 of polls, with over without the disturbance")
    report.say(
        f"ratios {', '.join(f'{ratio:.2f}' for ratio in ratios)}; median {median(ratios):.2f},"
        f" at most {MOST}; {failures} calls failed: {'it stays' if stays else 'IT DOES NOT STAY'}"
    )
    return stays
