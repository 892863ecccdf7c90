"""`evergreen sim`: virtual devices against a real installation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import CliError, told
from cli.options import CaFile, Home, Url

_CANNOT = 2
_NOT_KEPT = 1

_FLEET = "The fleet"
_CLOCKS = "Each device by its own clock (the default)"
_FORCED = "Another traffic"
_RESULTS = "Results"


def _option(panel: str, text: str, *names: str, **more: object) -> typer.models.OptionInfo:
    info: typer.models.OptionInfo = typer.Option(
        *names, help=text, rich_help_panel=panel, **more  # type: ignore[arg-type]
    )  # fmt: skip
    return info


def sim(
    *,
    home: Home = None,
    url: Url = "",
    ca_file: CaFile = None,
    pre_shared_key: Annotated[
        str,
        _option(_FLEET, "What devices enroll with: <tenant code>:<enrollment secret>.",
                "--pre-shared-key", envvar="EVERGREEN_PRE_SHARED_KEY", show_default=False),
    ] = "",
    policy_keys: Annotated[
        Path | None,
        _option(_FLEET, "PEM file with the keys that policies have to be signed with.",
                "--policy-key-file", show_default=False),
    ] = None,
    fleet: Annotated[
        Path | None,
        _option(_FLEET, "File that keeps the devices for the next run, with their tokens;"
                " sim-fleet.jsonl in the home when nothing is given.",
                "--fleet", show_default=False),
    ] = None,
    devices: Annotated[int, _option(_FLEET, "How many devices.", "--devices", "-n")] = 100,
    serial_prefix: Annotated[
        str,
        _option(_FLEET, "What the serial numbers of new devices begin with: SIM-….",
                "--serial-prefix"),
    ] = "SIM-",
    connections: Annotated[
        str,
        _option(_FLEET, "How many connections the devices share, or `each` for one for each.",
                "--connections"),
    ] = "64",
    run_for: Annotated[
        str, _option(_RESULTS, "How long: 90, 5m, 2h; `0`: until Ctrl-C.", "--duration", "-t")
    ] = "60",
    warm_up: Annotated[
        str, _option(_RESULTS, "Time before that, which does not count.", "--warm-up")
    ] = "0",
    speed: Annotated[
        float,
        _option(_CLOCKS, "How much faster the devices' time runs: 20,000 devices at 10 make the"
                " traffic of 200,000.", "--speed"),
    ] = 1.0,
    ramp: Annotated[
        str, _option(_CLOCKS, "Time over which the devices are switched on.", "--ramp")
    ] = "0",
    jitter: Annotated[
        float, _option(_CLOCKS, "Share by which periods vary at random.", "--jitter")
    ] = 0.05,
    boot: Annotated[
        bool,
        _option(_CLOCKS, "Devices are just switched on: each calls at once. Otherwise they have"
                " been on for long, and calls are spread evenly.", "--boot"),
    ] = False,
    backlog: Annotated[
        str,
        _option(_CLOCKS, "Devices were cut off for so long before: that much waits in their"
                " queues.", "--backlog"),
    ] = "0",
    rate: Annotated[
        float | None,
        _option(_FORCED, "So many calls a second, whatever becomes of them.", "--rate",
                show_default=False),
    ] = None,
    in_flight: Annotated[
        int | None,
        _option(_FORCED, "As fast as it goes, with so many calls always in flight.",
                "--in-flight", show_default=False),
    ] = None,
    only: Annotated[
        str,
        _option(_FORCED, "One kind of call instead of the fleet's mix: poll, state or events.",
                "--only", show_default=False),
    ] = "",
    events_per_batch: Annotated[
        int, _option(_FLEET, "New events in a batch.", "--events-per-batch")
    ] = 5,
    stuck: Annotated[
        int,
        _option(_FLEET, "So many of them get policies and do not apply them, as when a version is"
                " broken.", "--stuck"),
    ] = 0,
    report: Annotated[
        Path | None, _option(_RESULTS, "Write the figures as JSON.", "--report",
                             show_default=False)
    ] = None,
    picture: Annotated[
        Path | None,
        _option(_RESULTS, "Draw latency, throughput and failures: .svg, .png or .pdf.",
                "--picture", show_default=False),
    ] = None,
    max_p99: Annotated[
        float | None,
        _option(_RESULTS, "End with exit code 1 when a kind's p99 is longer (milliseconds);"
                " `queued state` does not count.",
                "--max-p99", show_default=False),
    ] = None,
    max_failures: Annotated[
        int | None,
        _option(_RESULTS, "End with exit code 1 when more calls fail.", "--max-failures",
                show_default=False),
    ] = None,
) -> None:  # fmt: skip
    """Simulate a fleet: virtual devices that behave as the released agent does.

    The devices enroll first, as real ones would, and are kept in a file for the next run.
    Then each polls every 60 s, tells its state every 300 s, sends two batches of events an hour,
    and repeats what failed. Ctrl-C ends it with the report.
    """
    # `evergreen up`, which is in a hurry, loads this file.
    from cli.durations import duration  # noqa: PLC0415
    from cli.sim.conduct import Wanted, conduct  # noqa: PLC0415
    from cli.sim.plan import Place, Plan  # noqa: PLC0415
    from cli.sim.report import Thresholds  # noqa: PLC0415
    from cli.sim.schedule import Rhythm  # noqa: PLC0415

    with told(_CANNOT):
        if not serial_prefix.startswith("SIM-"):
            raise CliError("--serial-prefix begins with SIM-, so that real devices are not taken")
        if not (connections == "each" or connections.isdecimal()):
            raise CliError("--connections is a number, or `each`")
        plan = Plan(
            devices=devices,
            seconds=duration(run_for, "--duration") or None,
            warm_up=duration(warm_up, "--warm-up"),
            connections=None if connections == "each" else int(connections),
            rhythm=Rhythm(jitter=jitter, speed=speed),
            ramp=duration(ramp, "--ramp"),
            boot=boot,
            backlog=duration(backlog, "--backlog"),
            rate=rate,
            in_flight=in_flight,
            only=only,
            events_per_batch=events_per_batch,
            stuck=stuck,
        ).checked()
        place = replace(
            Place.find(home, url, ca_file, pre_shared_key, policy_keys, fleet),
            serial_prefix=serial_prefix,
        )
        wanted = Wanted(report, picture, Thresholds(max_p99, max_failures))
        kept = conduct(place, plan, wanted)
    if not kept:
        raise typer.Exit(_NOT_KEPT)
