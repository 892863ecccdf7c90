"""Processes forked from one that has loaded their code."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from deploy.launcher import zygote as module
from deploy.launcher.console import Console
from deploy.launcher.events import parse_service
from deploy.launcher.logs import Logs
from deploy.launcher.process import ProcessSpec, environment, start_time
from deploy.launcher.supervisor import Supervised, Supervisor
from deploy.launcher.zygote import NAME, Zygote

_FORKED = '''
"""Says what it is."""
import asyncio, ctypes, json, os, random, secrets, signal, sys, threading, time
from servicekit.ids import new_id

deadly = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(deadly), 0, 0, 0)
print(json.dumps({
    "pid": os.getpid(), "parent": os.getppid(), "session": os.getsid(0), "name": __name__,
    "environment": dict(os.environ), "directory": os.getcwd(), "zone": time.tzname,
    "files": sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1],
    "input": os.readlink("/proc/self/fd/0"), "deadly": deadly.value,
    "threads": threading.active_count(),
    "terminates": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
    "command": open("/proc/self/cmdline").read(),
    "chance": [random.random(), secrets.token_hex(8), str(new_id())],
    # Which nothing here imports.
    "forked": "fastapi" in sys.modules,
}), flush=True)
if os.environ["TASK"] == "crash":
    raise SystemExit(3)
asyncio.run(asyncio.sleep(600))
'''


class Bench:
    """A supervisor with a zygote."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.screen = io.StringIO()
        self.console = Console(self.screen)
        self.supervisor = Supervisor(Logs(directory, self.console), directory)
        self.zygote = Zygote(directory)
        self.names: list[str] = []

    def start(self, name: str, task: str = "serve") -> Supervised:
        self.names.append(name)
        return self.supervisor.start(
            ProcessSpec(
                name=name,
                argv=(sys.executable, "-P", "-m", "a_forked_one"),
                parse=parse_service,
                cwd=self.directory,
                # Of it, only what is started by itself takes notice.
                env={"TASK": task, "NAME": name, "PYTHONPATH": str(self.directory)},
                fork=self.zygote.fork,
            )
        )

    async def said(self, process: Supervised, times: int = 1) -> dict[str, Any]:
        """What a process said of itself at its start, the last of so many times."""
        file = self.directory / f"{process.spec.name}.log"
        async with asyncio.timeout(60):
            while not file.exists() or file.read_text().count('{"pid"') < times:
                await asyncio.sleep(0.02)
        lines = [line for line in file.read_text().splitlines() if '{"pid"' in line]
        found: dict[str, Any] = json.loads(lines[times - 1][lines[times - 1].index("{") :])
        return found


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    (tmp_path / "a_forked_one.py").write_text(_FORKED)
    found = Bench(tmp_path)
    own = replace(found.zygote.process(), env={"PYTHONPATH": str(tmp_path)})
    found.supervisor.start(own)
    yield found
    found.supervisor.hurry()
    await found.supervisor.stop([[*found.names, NAME]])
    found.console.close()


async def until_other(process: Supervised, pid: int | None) -> None:
    async with asyncio.timeout(60):
        while process.pid in {pid, None}:
            await asyncio.sleep(0.02)


def alive(pid: int | None) -> bool:
    return pid is not None and start_time(pid) is not None


async def test_a_forked_process_is_as_a_new_one(bench: Bench) -> None:
    """A child of the launcher, with an environment, output and chance of its own."""
    one, two = bench.start("one"), bench.start("two")
    said, other = await bench.said(one), await bench.said(two)
    assert said["pid"] == one.pid == said["session"]
    assert said["parent"] == os.getpid()
    assert said["name"] == "__main__"
    assert said["environment"] == environment(one.spec)
    assert said["directory"] == str(bench.directory)
    assert said["files"] == [0, 1, 2]
    assert said["input"] == os.devnull
    assert said["deadly"] == signal.SIGKILL
    assert said["threads"] == 1
    assert said["terminates"]
    assert said["command"].rstrip("\0").split("\0") == list(one.spec.argv)
    assert said["forked"]
    assert other["environment"]["NAME"] == "two"
    assert not set(said["chance"]) & set(other["chance"])


async def test_one_that_ends_is_forked_again_alone(bench: Bench) -> None:
    """After a crash with its status, and after kill -9."""
    crashing, killed, other = bench.start("one", "crash"), bench.start("two"), bench.start("three")
    await bench.said(crashing, times=3)
    assert crashing.last_exit == "exit status 3"
    first = await bench.said(killed)
    untouched = await bench.said(other)
    os.kill(first["pid"], signal.SIGKILL)
    again = await bench.said(killed, times=2)
    assert killed.last_exit == "killed by SIGKILL"
    assert again["forked"]
    assert again["parent"] == os.getpid()
    assert other.pid == untouched["pid"]
    assert alive(other.pid)


async def test_processes_outlive_what_they_were_forked_from(bench: Bench) -> None:
    """It is killed and comes back; it ends, and the next one is started by itself."""
    one, two = bench.start("one"), bench.start("two")
    first, second = await bench.said(one), await bench.said(two)
    own = bench.supervisor[NAME]
    before = own.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    await until_other(own, before)
    assert alive(first["pid"])
    os.kill(first["pid"], signal.SIGKILL)
    assert (await bench.said(one, times=2))["forked"]

    bench.zygote.end()
    await bench.supervisor.stop([[NAME]])
    assert alive(second["pid"])
    os.kill(second["pid"], signal.SIGKILL)
    by_itself = await bench.said(two, times=2)
    assert not by_itself["forked"]
    assert by_itself["environment"] == environment(two.spec)


async def test_nobody_waits_for_one_that_is_to_end(bench: Bench) -> None:
    """Who stops the product in its first second does not wait for what is not there yet."""
    await bench.supervisor.stop([[NAME]])
    process = bench.start("one")
    loop = asyncio.get_running_loop()
    await asyncio.sleep(0.2)
    began = loop.time()
    bench.zygote.end()
    await bench.supervisor.stop([["one"]])
    assert loop.time() - began < module._START_SECONDS / 2
    assert process.pid is None


async def test_one_that_hangs_holds_nobody_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is started by itself, and never twice."""
    one = bench.start("one")
    first = await bench.said(one)
    own = bench.supervisor[NAME]
    assert own.pid is not None
    os.kill(own.pid, signal.SIGSTOP)
    monkeypatch.setattr(module, "_FORK_SECONDS", 0.2)
    os.kill(first["pid"], signal.SIGKILL)
    assert not (await bench.said(one, times=2))["forked"]
    os.kill(own.pid, signal.SIGCONT)
    monkeypatch.undo()
    # It has answered what it was asked before.
    two = bench.start("two")
    assert (await bench.said(two))["forked"]
    assert (bench.directory / "one.log").read_text().count('{"pid"') == 2


async def test_nobody_waits_for_one_that_has_ended(tmp_path: Path) -> None:
    """A start that fails stops at once, however many wait for their turn."""
    zygote = Zygote(tmp_path)
    spec = ProcessSpec(name="one", argv=("x",), parse=parse_service, cwd=tmp_path)
    waiting = [asyncio.create_task(zygote.fork(spec, 1)) for _ in range(6)]
    await asyncio.sleep(0.1)
    assert not any(task.done() for task in waiting)
    zygote.end()
    async with asyncio.timeout(60):
        ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(error) for error in ended} == {ConnectionRefusedError}
