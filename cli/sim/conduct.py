"""The order of things in `evergreen sim`: enroll, run, show, keep."""

from __future__ import annotations

import asyncio
import gc
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import uvloop
from rich.console import Console

from cli.errors import CliError
from cli.sim import report as reports
from cli.sim.device import Check, Device
from cli.sim.fleet import enroll, load, save, serials
from cli.sim.http import Client
from cli.sim.limits import allow_connections
from cli.sim.live import Enrolling, View, say
from cli.sim.picture import check_drawable, draw
from cli.sim.plan import Place, Plan
from cli.sim.report import Meter, Thresholds
from cli.sim.run import run
from cli.sim.stats import Stats

_ENROLLING_CONNECTIONS: Final = 32


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be left of a run."""

    report: Path | None
    picture: Path | None
    thresholds: Thresholds


def conduct(place: Place, plan: Plan, wanted: Wanted) -> bool:
    """Does it all; answers whether the run kept within its thresholds.

    Raises:
        CliError: it cannot be done.
    """
    if wanted.picture is not None:
        check_drawable(wanted.picture)
    for file in (wanted.report, wanted.picture, place.fleet):
        if file is not None and not file.absolute().parent.is_dir():
            raise CliError(f"there is no directory {file.absolute().parent}")
    allow_connections(plan.devices if plan.connections is None else plan.connections)
    check = place.check()
    # Progress goes to standard error, so that the result alone can be kept.
    progress, result = Console(stderr=True), Console()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stats, meter = runner.run(_simulate(place, plan, check, progress))
    report = reports.as_json(
        stats, meter, url=place.url, devices=plan.devices, traffic=plan.title(),
        options=asdict(plan),
    )  # fmt: skip
    reports.show(result, report, stats)
    if wanted.report is not None:
        reports.write(report, wanted.report)
    if wanted.picture is not None:
        draw(report, wanted.picture)
    broken = wanted.thresholds.broken(stats)
    for sentence in broken:
        say(progress, f"evergreen: {sentence}")
    return not broken


async def _simulate(
    place: Place, plan: Plan, check: Check | None, console: Console
) -> tuple[Stats, Meter]:
    stop = asyncio.Event()
    with _interruptible(stop):
        everyone = await _fleet(place, plan, check, console, stop)
        devices = everyone[: plan.devices]
        for device in devices[: plan.stuck]:
            device.applies = False
        # They live as long as the process: nothing of them has to be looked at for garbage.
        gc.collect()
        gc.freeze()
        async with Client(place.target, connections=plan.connections) as client:
            traffic = plan.traffic(client, devices, check)
            meter = Meter.begin()
            try:
                with View(console, plan.seconds) as view:
                    stats = await run(
                        traffic,
                        client,
                        plan.seconds,
                        warm_up=plan.warm_up,
                        each_second=lambda point: view.point(traffic.stats, point),
                        stop=stop,
                    )
            finally:
                save(place.fleet, place.url, everyone)
    return stats, meter


@contextmanager
def _interruptible(stop: asyncio.Event) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) ends the run in good order; the second one at once."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def first() -> None:
        stop.set()
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, first)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def _fleet(
    place: Place, plan: Plan, check: Check | None, console: Console, stop: asyncio.Event
) -> list[Device]:
    """The devices of the file, and as many new ones as are missing."""
    try:
        known = load(place.fleet, place.url)
    except FileNotFoundError:
        known = []
    missing = plan.devices - len(known)
    if missing <= 0:
        return known
    if not place.pre_shared_key:
        raise CliError(
            f"{place.fleet} has {len(known):,} of {plan.devices:,} devices, and others cannot"
            " enroll without --pre-shared-key"
        )
    say(console, f"{len(known):,} devices are known in {place.fleet}, {missing:,} enroll now")
    # Another fleet may have enrolled there already, and serial numbers belong to one device each.
    prefix, _, last = known[-1].serial.rpartition("-") if known else ("", "", "")
    first = int(last) + 1 if last.isdecimal() else 0
    prefix = prefix or f"{place.serial_prefix}{secrets.token_hex(3)}"
    new: list[Device] = []
    async with Client(place.target, connections=_ENROLLING_CONNECTIONS) as client:
        try:
            with Enrolling(console, missing) as progress:

                def done(device: Device) -> None:
                    new.append(device)
                    progress.one()

                await enroll(
                    client,
                    place.pre_shared_key,
                    serials(prefix, missing, first),
                    check=check,
                    done=done,
                    waiting=lambda why: say(console, f"evergreen: {why}"),
                    stop=stop,
                )
        finally:
            # Also when it ended early: these devices exist now.
            new.sort(key=lambda device: device.serial)
            for number, device in enumerate(new, len(known)):
                device.index = number
            known.extend(new)
            save(place.fleet, place.url, known)
    if len(known) < plan.devices:
        raise CliError(f"interrupted; {len(known):,} devices are kept in {place.fleet}")
    return known
