"""`evergreen sim` says in a sentence what it cannot do, and runs against a gateway's stand-in."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cli.durations import duration
from cli.errors import CliError
from cli.main import app
from cli.sim.limits import allow_connections
from cli.sim.plan import Plan
from cli.sim.schedule import Rhythm
from tests.fakes.gateway import NOT_MODIFIED, OK, Gateway, Request, answer, serving
from tests.support.paths import ROOT
from tests.support.stack import PATIENCE


def evergreen(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["sim", *arguments], env={"COLUMNS": "200"})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--home", "/nonexistent"], "there is no installation in /nonexistent"),
        (["--url", "localhost:8443"], "is not an address"),
        (["--url", "https://localhost", "--ca-file", "/nonexistent"], "no file of CA certificates"),
        (["--devices", "0"], "--devices is at least 1"),
        (["--duration", "soon"], "--duration is a time like"),
        (["--duration", "-5"], "--duration is a time like"),
        (["--connections", "many"], "--connections is a number"),
        (["--connections", "0"], "--connections is at least 1"),
        (["--rate", "5", "--in-flight", "5"], "not both"),
        (["--rate", "0"], "--rate is more than 0"),
        (["--rate", "5", "--only", "enroll"], "--only is one of poll, state, events"),
        (["--only", "poll"], "goes with --rate or --in-flight"),
        (["--in-flight", "101"], "at most one call for each of --devices"),
        (["--rate", "5", "--speed", "2"], "the devices' own clocks"),
        (["--speed", "0"], "--speed is more than 0"),
        (["--jitter", "1"], "--jitter is a share"),
        (["--events-per-batch", "0"], "--events-per-batch is 1 to 50000"),
        (["-n", "5", "--stuck", "6"], "--stuck is at most --devices"),
        (["--url", "https://localhost:1", "--picture", "x.gif"], "ends in .svg"),
        (["--url", "https://localhost:1", "--report", "/nonexistent/r"], "no directory"),
        (["--url", "https://localhost:1", "--policy-key-file", "/nonexistent"], "cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = evergreen(*arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("5m", 300), ("1.5h", 5400), ("250ms", 0.25)]
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text, "--duration") == seconds


@pytest.mark.parametrize(
    ("different", "title"),
    [
        ({}, "each by its own clock"),
        ({"rhythm": Rhythm(speed=10)}, "each by its own clock, 10 times as fast"),
        ({"boot": True}, "all switched on at once"),
        ({"boot": True, "ramp": 30.0}, "all switched on within 30 s"),
        ({"boot": True, "backlog": 3600.0}, "all switched on at once after 3600 s away"),
        ({"rate": 40.0}, "the fleet's mix, 40 calls/s"),
        ({"rate": 40.0, "only": "poll"}, "policy polls only, 40 calls/s"),
        ({"in_flight": 4, "only": "state"}, "state reports only, 4 always in flight"),
        ({"in_flight": 4, "only": "events"}, "batches of events only, 4 always in flight"),
    ],
)
def test_a_run_has_a_title_in_words(different: dict[str, Any], title: str) -> None:
    plan = Plan(
        devices=100, seconds=60, warm_up=0, connections=64, rhythm=Rhythm(), ramp=0, boot=False,
        backlog=0, rate=None, in_flight=None, only="", events_per_batch=5,
    )  # fmt: skip
    assert replace(plan, **different).checked().title() == title


def test_too_many_connections_are_explained() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        pytest.skip("nothing is too many here")
    with pytest.raises(CliError, match="open files") as refused:
        allow_connections(hard)
    assert "--connections" in str(refused.value)
    allow_connections(1)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with serving(tmp_path) as running:
        yield running


def fleet_of(gateway: Gateway) -> dict[str, str]:
    """A script for a gateway with devices; answers the tokens by serial number."""
    tokens: dict[str, str] = {}

    def script(request: Request) -> bytes:
        if request.path.endswith("/enroll"):
            serial = request.body["serial"]
            tokens[serial] = f"token-{serial}"
            device = {"device_id": serial, "device_token": tokens[serial], "policy": {}}
            return answer(200, device)
        if request.token not in tokens.values():
            return answer(401, {"message": "unknown"})
        return NOT_MODIFIED if request.path.endswith("/policy") else OK

    gateway.script = script
    return tokens


@dataclass
class Ended:
    """A command that ran in a process of its own."""

    code: int | None
    out: str
    err: str


async def started(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli.main", "sim", *arguments, stdout=PIPE, stderr=PIPE, cwd=ROOT,
        env={**os.environ, "EVERGREEN_HOME": "/nonexistent", "COLUMNS": "200"},
    )  # fmt: skip


async def ended(process: asyncio.subprocess.Process) -> Ended:
    try:
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    return Ended(process.returncode, out.decode(), err.decode())


async def ran(*arguments: str) -> Ended:
    return await ended(await started(*arguments))


async def test_a_fleet_enrolls_once_and_is_used_again(gateway: Gateway, tmp_path: Path) -> None:
    tokens = fleet_of(gateway)
    fleet, report, picture = (tmp_path / name for name in ("fleet", "report.json", "run.svg"))
    common = ["--url", gateway.url, "--ca-file", str(gateway.ca_file), "--fleet", str(fleet)]
    key = ["--pre-shared-key", "default:secret"]

    refused = await ran(*common)
    assert refused.code == 2
    assert "cannot enroll without --pre-shared-key" in refused.err

    first = await ran(
        *common, *key, "-n", "4", "-t", "500ms", "--rate", "40", "--report", str(report),
        "--picture", str(picture),
    )  # fmt: skip
    assert first.code == 0, first
    assert len(tokens) == 4
    figures = json.loads(report.read_text())
    assert figures["devices"] == 4
    assert figures["failures"] == 0
    assert figures["calls"] == len(gateway.requests) - 4
    assert "<svg" in picture.read_text()

    # Two more; and each device calls at once, over a connection of its own.
    second = await ran(
        *common, *key, "-n", "6", "-t", "500ms", "--boot", "--connections", "each",
        "--max-failures", "0",
    )  # fmt: skip
    assert second.code == 0, second
    assert len(tokens) == 6
    polls = [r for r in gateway.requests if r.path.endswith("/policy")]
    assert {r.token for r in polls} == set(tokens.values())

    # The gateway forgets them, as after a new installation.
    tokens.clear()
    third = await ran(*common, "-n", "2", "-t", "500ms", "--boot", "--max-failures", "0")
    assert third.code == 1
    assert "calls failed, and 0 may" in third.err
    assert "remove the fleet's file" in third.out
    assert "default:secret" not in fleet.read_text() + first.out + first.err


async def test_ctrl_c_ends_it_with_the_report(gateway: Gateway, tmp_path: Path) -> None:
    fleet_of(gateway)
    report = tmp_path / "report.json"
    process = await started(
        "--url", gateway.url, "--ca-file", str(gateway.ca_file), "--pre-shared-key", "a:b",
        "--fleet", str(tmp_path / "fleet"), "-n", "3", "-t", "0", "--in-flight", "2",
        "--report", str(report),
    )  # fmt: skip
    async with asyncio.timeout(PATIENCE):
        # Two are in flight, so some of so many have been answered.
        while sum(r.path.endswith("/policy") for r in gateway.requests) < 6:
            await asyncio.sleep(0.05)
    process.send_signal(signal.SIGINT)
    result = await ended(process)
    assert result.code == 0, result
    assert json.loads(report.read_text())["calls"] > 0
    assert "poll" in result.out
    assert "Traceback" not in result.err
