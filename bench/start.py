"""What devices cost the policy service at its start and in memory: `python -m bench.start`.

A product of its own gets organisations with groups, and devices in all of them. The policy service
is started again with and without the devices: what differs is theirs. With `--polls`, so many of
them ask for their policy, which the service notes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import uvloop

from bench import organisations, product
from bench.cpu import Process, memory, precise, read_process
from bench.facts import facts
from bench.fleet import device_id
from bench.organisations import Organisations
from bench.product import Product
from bench.report import RESULTS, Report
from cli.sim import Client, Target
from cli.sim.bodies import poll_body

_LOOK_SECONDS: Final = 0.05
_PATIENCE: Final = 600.0
_AT_ONCE: Final = 64
_POLL: Final = "/api/v1/devices/policy"


@dataclass(frozen=True, slots=True)
class Started:
    """A policy service that has just become ready."""

    seconds: float
    """Since its process began."""
    cpu_seconds: float
    rss: int
    """Bytes."""

    def less(self, other: Started) -> dict[str, float]:
        """What it took more than another one."""
        return {
            "seconds": round(self.seconds - other.seconds, 2),
            "cpu_seconds": round(self.cpu_seconds - other.cpu_seconds, 2),
            "rss_mb": round((self.rss - other.rss) / 1e6, 1),
        }


async def start_again(started: Product) -> Started:
    """Kills the policy service and waits until the one in its place is ready."""
    (before,) = started.stack.pids("policy")
    os.kill(before, signal.SIGKILL)
    end = time.monotonic() + _PATIENCE
    while (pids := started.stack.pids("policy")) in ([], [before]):
        await asyncio.sleep(_LOOK_SECONDS)
    began = time.monotonic()
    while not await asyncio.to_thread(started.stack.ready):
        if time.monotonic() > end:
            raise SystemExit("the policy service does not become ready")
        await asyncio.sleep(_LOOK_SECONDS)
    seconds = time.monotonic() - began
    process = read_process(pids[0])
    assert process is not None
    return Started(seconds, precise(process).own, _rss(process))


def _rss(process: Process) -> int:
    return memory([process])["policy"]["rss"]


async def run(options: argparse.Namespace, started: Product, report: Report) -> dict[str, Any]:
    """Fills the product, and starts the service twice before and after."""
    database = await started.superuser()
    try:
        with started.stack.client(started.stack.login()["token"]) as client:
            made = await organisations.make(client, database, options.organisations, options.groups)
        # The tables are as large without the devices of which it is about.
        few = options.organisations * max(1, options.groups)
        await organisations.register(database, made, few)
        await organisations.until_put_together(database, options.organisations * options.groups)
        await started.settled(_PATIENCE)
        without = await _best(started, options.starts)
        _tell(report, f"{few:,} devices", without)
        await organisations.register(database, made, options.devices, first=few + 1)
    finally:
        await database.close()
    await started.settled(_PATIENCE)
    with_them = await _best(started, options.starts)
    _tell(report, f"{options.devices:,} devices", with_them)
    more = options.devices - few
    found = {"devices": more, "start": with_them.less(without)}
    report.say(f"{more:,} devices: {found['start']}")
    if options.polls:
        await _poll(started, made, options.polls)
        await started.settled(_PATIENCE)
        (pid,) = started.stack.pids("policy")
        process = read_process(pid)
        assert process is not None
        noted = (_rss(process) - with_them.rss) / options.polls
        found["bytes_a_device_that_polled"] = round(noted)
        report.say(f"{options.polls:,} devices that polled: {noted:.0f} bytes each")
    return found


async def _best(started: Product, starts: int) -> Started:
    """The quickest of some starts: others use the machine, too."""
    return min([await start_again(started) for _ in range(starts)], key=lambda one: one.cpu_seconds)


def _tell(report: Report, what: str, one: Started) -> None:
    report.say(
        f"{what}: ready after {one.seconds:.1f} s with {one.cpu_seconds:.1f} s of CPU,"
        f" RSS {one.rss / 1e6:.0f} MB"
    )


async def _poll(started: Product, made: Organisations, devices: int) -> None:
    signer, stack = await started.signer(), started.stack
    issued = datetime.now(UTC) - timedelta(minutes=1)
    numbers = iter(range(1, devices + 1))

    async def ask(client: Client) -> None:
        for number in numbers:
            token = signer.device_token(device_id(number), made.owner_of(number), 1, issued)[0]
            # A number from the future: it is noted, and answered "not modified".
            answer = await client.call(_POLL, poll_body("999999999"), token)
            if answer.status != 304:
                raise SystemExit(f"a poll was answered {answer.status or answer.fault}")

    async with Client(Target.of(stack.url, stack.ca_file), connections=_AT_ONCE) as client:
        await asyncio.gather(*(ask(client) for _ in range(_AT_ONCE)))


def main() -> None:
    """Measures, and writes what it found."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.start", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--organisations", type=int, default=1_000)
    parser.add_argument("--groups", type=int, default=5, help="of each, with policies")
    parser.add_argument("--polls", type=int, default=0, help="so many of the devices poll")
    parser.add_argument("--starts", type=int, default=3, help="of which the cheapest counts")
    options = parser.parse_args()
    report = Report()
    with product.running() as started, asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        found = loop.run(run(options, started, report))
    report.results |= {"machine": facts(), "plan": vars(options), **found}
    report.say(f"written to {report.write(RESULTS, 'latest-start')}")


if __name__ == "__main__":
    main()
