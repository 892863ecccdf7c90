"""What happens when everybody comes at once: `python -m bench.herd`, see docs/limits.md.

Three experiments, each with a product of its own:

- `herd`: virtual devices that were cut off for an hour, with full queues, find the way open again.
  Each calls when its back-off, of up to five minutes, is over (`--ramp 0`: all at the same
  moment), over a new TLS connection; of those open as many stay as the machine has files for.
  `--speed 0.5` asks on a slow machine what one of twice its speed would do: the devices' time,
  and for how long the gateway keeps an idle connection, run half as fast. Answers are to come as
  quickly as ever;
- `connections`: the same with a connection for each, so not more devices than files;
- `flood`: one organisation calls as fast as it goes while another one's devices go on.

Each prints how it went second by second, and the most memory that any process ever had. A herd
that is ended before all are served, with SIGTERM, tells what it saw until then.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import math
import multiprocessing
import os
import resource
import signal
import ssl
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import uvloop

from bench import product
from bench.cpu import Machine, Usage, part_of, usage
from bench.facts import facts
from bench.fleet import Fleet, device_id
from bench.product import Product
from bench.report import RESULTS, Report
from cli.sim import Client, Target
from cli.sim.device import EVENTS, KINDS, QUEUED_STATE, Device
from cli.sim.run import run
from cli.sim.schedule import Rhythm
from cli.sim.stats import Part, Point, Stats
from cli.sim.traffic import FLEET_MIX, FleetTraffic, SaturatingTraffic
from deploy.gateway.limits import Limits
from services.telemetry.reports.service import PATIENCE_SECONDS

OUTAGE_SECONDS: Final = 3600.0
ENOUGH: Final = 0.2
"""Seconds that a call may take at the 99th percentile when all is well."""
ENOUGH_FOR_OLD: Final = PATIENCE_SECONDS + ENOUGH
"""And one that tells of the past, which may have waited for its turn."""
_SHOWN_EVERY: Final = 10
_SETTLED_WITHIN: Final = 180.0
"""Seconds; so many new devices are much to hear of, and to gather statistics of."""
_LATE_SECONDS: Final = 1.0
"""A simulator that is later than this was short of processor time itself."""
_AFTERWARDS_SECONDS: Final = 60
"""So long it goes on when the last queue is empty."""
_QUIET_DEVICES: Final = 2_000
_QUIET_SPEED: Final = 2.5
"""Together they make 100 calls a second."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for."""

    devices: int
    connections: int | None
    seconds: float
    ramp: float
    speed: float
    events: int


async def herd(plan: Plan, started: Product, report: Report) -> dict[str, Any]:
    """Everybody comes back at once."""
    devices = await _fleet(plan.devices, started)
    await started.settled(_SETTLED_WITHIN)
    stack = started.stack
    target = Target.of(stack.url, stack.ca_file)
    seen: list[Point] = []
    spent = _Spent(started)
    unserved = devices
    all_served: float | None = None
    stop = asyncio.Event()

    def each_second(point: Point) -> None:
        nonlocal unserved, all_served
        seen.append(point)
        if len(seen) % _SHOWN_EVERY == 0:
            unserved = [device for device in unserved if device.states or device.events]
            report.say(f"{_line(seen[-_SHOWN_EVERY:])}, not served yet {len(unserved)}")
            report.say(f"        processors: {spent.since_last()}")
        if not unserved and all_served is None:
            all_served = point.second
        if all_served is not None and point.second >= all_served + _AFTERWARDS_SECONDS:
            stop.set()

    # The agents check the certificate on machines of their own, and have looked up its name before.
    target = target._replace(host="127.0.0.1", tls=ssl._create_unverified_context())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    _wait_for_no_processor()
    # Nor is the gateway to wait, beside a free processor, for one that was just taken from it.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    async with Client(target, connections=plan.connections, first_is_new=True) as client:
        traffic = FleetTraffic(
            client,
            devices,
            Rhythm(speed=plan.speed),
            ramp=plan.ramp / plan.speed,
            steady=False,
            backlog=OUTAGE_SECONDS,
        )
        # They live to the end: the simulator is not to look through all of them for garbage.
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 50, 1000)
        stats = await run(
            traffic, client, plan.seconds, each_second=each_second, stop=stop, drain=35
        )
        connects = client.connects
    return {
        "devices": plan.devices,
        "speed": plan.speed,
        "connections": plan.connections or plan.devices,
        "connects": connects,
        "unserved_devices": len(unserved),
        "all_served_after_seconds": all_served,
        "states_sent_again": sum(device.repeated for device in devices),
        "well_again_after_seconds": _well_again(seen),
        "seconds_not_in_time_by_minute": _not_in_time_by_minute(seen),
        "simulator_late_seconds": round(max(point.lag for point in seen), 1),
        "memory_mib": memory(started),
        **stats.as_json(),
    }


def _wait_for_no_processor() -> None:
    """Devices have processors of their own: what is measured is not how long they wait for ours."""
    # A nice value would count only among the processes of one session.
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))


async def flood(plan: Plan, started: Product, report: Report) -> dict[str, Any]:
    """One organisation calls as fast as it goes; another one's devices call as they always do."""
    noisy = await _fleet(plan.devices, started)
    quiet = await _fleet(
        _QUIET_DEVICES, started, first=plan.devices + 1, tenant=_other_tenant(started)
    )
    stack = started.stack
    target = Target.of(stack.url, stack.ca_file)
    results: dict[str, Any] = {}
    rhythm = Rhythm(speed=_QUIET_SPEED)
    for name, with_flood in (("alone", False), ("beside_the_flood", True)):
        stop = multiprocessing.get_context("spawn").Event()
        other = multiprocessing.get_context("spawn").Process(
            target=_flood_process,
            args=(target[:2], stack.ca_file, [_plain(d) for d in noisy], plan, stop),
        )
        if with_flood:
            other.start()
            await asyncio.sleep(10)
        _wait_for_no_processor()
        async with Client(target, connections=200) as client:
            stats = await run(
                FleetTraffic(client, quiet, rhythm), client, plan.seconds, warm_up=3, drain=35
            )
        results[name] = stats.as_json()
        report.say(f"{name}: {_figures(stats)}")
        if with_flood:
            stop.set()
            await asyncio.to_thread(other.join)
    results["memory_mib"] = memory(started)
    return results


def _flood_process(
    where: tuple[str, int],
    ca_file: str,
    devices: list[tuple[int, str, str, str]],
    plan: Plan,
    stop: Any,
) -> None:
    async def work() -> None:
        asyncio.get_running_loop().set_exception_handler(_quiet)
        target = Target.of(f"https://{where[0]}:{where[1]}", ca_file)
        stopped = asyncio.Event()

        def watch(point: Point) -> None:
            if stop.is_set():
                stopped.set()

        in_flight = plan.connections or len(devices)
        mix = {EVENTS: 1} if plan.events else FLEET_MIX
        async with Client(target, connections=in_flight) as client:
            traffic = SaturatingTraffic(
                client,
                [Device(*device) for device in devices],
                in_flight,
                mix,
                events_per_batch=plan.events or 5,
            )
            stats = await run(traffic, client, None, each_second=watch, stop=stopped, drain=5)
        sys.stdout.write(f"  the flood: {_figures(stats)}\n")
        sys.stdout.flush()

    uvloop.run(work())


def _plain(device: Device) -> tuple[int, str, str, str]:
    return device.index, device.id, device.token, device.version


def _other_tenant(started: Product) -> str:
    stack = started.stack
    with stack.client(stack.login()["token"]) as client:
        tenants = client.get("/api/tenants").raise_for_status().json()["tenants"]
        root = next(t["id"] for t in tenants if "parentId" not in t or not t["parentId"])
        made = client.post("/api/tenants", json={"name": "Quiet school", "parentId": root})
        return str(made.raise_for_status().json()["id"])


async def _fleet(count: int, started: Product, *, first: int = 1, tenant: str = "") -> list[Device]:
    """Devices with tokens; those of the first organisation are registered, with a policy."""
    stack = started.stack
    version = ""
    if not tenant:
        version = str(started.publish_policy())
        database = await started.superuser()
        await Fleet(stack.tenant_id, int(version)).grow(database, count)
        await database.close()
    ids = [device_id(number) for number in range(first, first + count)]
    signer, issued = await started.signer(), datetime.now(UTC) - timedelta(minutes=1)

    def make() -> list[Device]:
        owner = tenant or stack.tenant_id
        tokens = (signer.device_token(name, owner, 1, issued)[0] for name in ids)
        return [Device(n, *pair, version) for n, pair in enumerate(zip(ids, tokens, strict=True))]

    return await asyncio.to_thread(make)


def memory(started: Product) -> dict[str, float]:
    """The most memory that each part ever had, in MiB; of PostgreSQL the largest process."""
    peaks: dict[str, float] = {}
    for process in started.processes():
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            continue
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                part = part_of(process.command).split("/", 1)[0]
                peaks[part] = max(peaks.get(part, 0.0), round(int(line.split()[1]) / 1024, 1))
    return dict(sorted(peaks.items()))


def _in_time(point: Point) -> bool:
    """Whether a second was served in time.

    A device may have to wait with its queue, or to come later, but with nothing that is of the
    moment.
    """
    return all(
        _is_quick(part, ENOUGH_FOR_OLD)
        if kind == QUEUED_STATE
        else _is_quick(part, ENOUGH) and not part.failures
        for kind, part in point.parts.items()
    )


def _is_quick(part: Part, enough: float) -> bool:
    # A few calls in one second are no percentile.
    return part.calls < 20 or part.p99 / 1e6 <= enough


def _well_again(points: Sequence[Point]) -> float | None:
    """From when on every second was served in time; `None` when the last was not."""
    since: float | None = None
    for point in points:
        if not _in_time(point):
            since = None
        elif since is None:
            since = point.second
    return since


def _not_in_time_by_minute(points: Sequence[Point]) -> list[int]:
    """How many seconds of each minute were not served in time."""
    return [
        sum(not _in_time(point) for point in points[first : first + 60])
        for first in range(0, len(points), 60)
    ]


def _line(points: Sequence[Point]) -> str:
    kinds = sorted({kind for point in points for kind in point.parts})
    texts = []
    for kind in kinds:
        parts = [point.parts[kind] for point in points if kind in point.parts]
        calls, failed = sum(p.calls for p in parts), sum(p.failures for p in parts)
        worst = max((p.p99 for p in parts if p.calls), default=math.nan) / 1000
        texts.append(f"{KINDS[kind]} {calls} (p99 {worst:.0f} ms, failed {failed})")
    last = points[-1]
    return (
        f"{last.second:5.0f} s  in flight {last.in_flight:6d}  lag {last.lag * 1000:5.0f} ms  "
        + ", ".join(texts)
    )


class _Spent:
    """How many processors each part keeps busy, and how many other machines took away."""

    def __init__(self, started: Product) -> None:
        self._started = started
        self._at, self._usage = time.monotonic(), self._now()

    def _now(self) -> Usage:
        found = usage(self._started.processes(), lambda command: part_of(command).split("/", 1)[0])
        own = {"simulator": time.process_time(), "stolen": Machine.now().steal}
        return Usage({**found.seconds, **own})

    def since_last(self) -> str:
        """What was used since the last time, largest first."""
        at, now = time.monotonic(), self._now()
        spent = now.since(self._usage).seconds
        seconds, self._at, self._usage = at - self._at, at, now
        busy = sorted(((used / seconds, name) for name, used in spent.items()), reverse=True)
        return ", ".join(f"{name} {share:.2f}" for share, name in busy if share >= 0.01)


def _figures(stats: Stats) -> str:
    latency = {KINDS[k]: h.percentile(0.99) / 1000 for k, h in stats.latency.items() if h.count}
    p99 = ", ".join(f"{name} {value:.1f}" for name, value in latency.items())
    failed = {KINDS[k]: dict(c) for k, c in stats.failures.items()}
    return f"{stats.calls / stats.seconds:.0f} calls/s, p99 in ms: {p99}; failed: {failed}"


def _quiet(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Drops what uvloop tells of connections that were broken off while it wrote to them."""
    of_connection = "transport" in context or "protocol" in context
    if not of_connection or not isinstance(context.get("exception"), (OSError, RuntimeError)):
        loop.default_exception_handler(context)


def main() -> None:
    """Runs one experiment."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("experiment", choices=("herd", "connections", "flood"))
    parser.add_argument("--devices", type=int)
    parser.add_argument("--connections", type=int, help="that the devices share")
    parser.add_argument("--seconds", type=float)
    parser.add_argument(
        "--ramp",
        type=float,
        default=Rhythm().backoff_last,
        help="seconds over which they return: an agent's longest back-off",
    )
    parser.add_argument(
        "--speed", type=float, default=1.0, help="of the time of a herd's devices: at most 1"
    )
    parser.add_argument(
        "--events", type=int, default=0, help="the flood is batches of so many events, no fleet mix"
    )
    arguments = parser.parse_args()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    devices, connections, seconds = {
        "herd": (100_000, files - 4500, 14_400.0),
        "connections": (min(20_000, files - 4500), None, 150.0),
        "flood": (20_000, 1000, 30.0),
    }[arguments.experiment]
    plan = Plan(
        arguments.devices or devices,
        arguments.connections or connections,
        arguments.seconds or seconds,
        arguments.ramp,
        arguments.speed,
        arguments.events,
    )
    if not 0 < plan.speed <= 1:
        parser.error("--speed is more than 0, and at most 1: more would make waves of its own")
    if plan.speed < 1:
        os.environ.setdefault("EVERGREEN_GATEWAY_IDLE", f"{Limits().idle / plan.speed:g}")
    report = Report()
    report.stage(f"{arguments.experiment}: {plan}")
    experiment = flood if arguments.experiment == "flood" else herd
    began = time.monotonic()
    with product.running() as started, asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        loop.get_loop().set_exception_handler(_quiet)
        found = loop.run(experiment(plan, started, report))
    found = {"machine": facts(), "took_seconds": round(time.monotonic() - began), **found}
    for name in (
        "unserved_devices",
        "all_served_after_seconds",
        "states_sent_again",
        "well_again_after_seconds",
        "seconds_not_in_time_by_minute",
        "connects",
        "simulator_late_seconds",
        "memory_mib",
    ):
        if name in found:
            report.say(f"{name.replace('_', ' ')}: {found[name]}")
    if found.get("simulator_late_seconds", 0) > _LATE_SECONDS:
        report.say("The simulator itself was late: what it saw says little of the product.")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{arguments.experiment}.json"
    path.write_text(json.dumps(found, indent=2) + "\n")
    report.say(f"written to {path}")


if __name__ == "__main__":
    main()
