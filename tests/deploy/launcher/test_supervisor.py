"""The supervisor, with real processes."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.launcher import probe
from deploy.launcher import supervisor as module
from deploy.launcher.console import Console
from deploy.launcher.errors import LauncherError
from deploy.launcher.events import parse_service
from deploy.launcher.logs import Logs
from deploy.launcher.process import ProcessSpec, environment, start_time
from deploy.launcher.supervisor import Backoff, Supervisor, clear_leftovers
from servicekit.security import mode

_SLEEP = "import time; print('up', flush=True); time.sleep(600)"
_STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + _SLEEP


class FakeClock:
    """Time that passes only in sleeps, and at once."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 1))
        self.now += seconds
        await asyncio.sleep(0)


class Bench:
    """A supervisor whose terminal can be read."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.screen = io.StringIO()
        self.console = Console(self.screen)
        self.clock = FakeClock()
        self.supervisor = Supervisor(Logs(directory, self.console), directory, self.clock)
        self.names: list[str] = []

    def start(self, name: str, code: str, **more: object) -> module.Supervised:
        self.names.append(name)
        return self.supervisor.start(
            ProcessSpec(
                name=name,
                argv=(sys.executable, "-c", code),
                parse=parse_service,
                cwd=self.directory,
                **more,  # type: ignore[arg-type]
            )
        )

    async def stop(self) -> str:
        await self.supervisor.stop([self.names])
        self.console.close()
        return self.screen.getvalue()


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    found = Bench(tmp_path)
    yield found
    found.supervisor.hurry()
    await found.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    return start_time(pid) is not None


def test_backoff_doubles_to_its_limit_and_forgets_after_a_stable_run() -> None:
    """0.2 s, doubling to 10 s; a process that ran for twenty seconds starts over."""
    backoff = Backoff()
    delays = [backoff.after(1.0) for _ in range(8)]
    assert delays == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert backoff.after(19.9) == 10.0
    assert backoff.after(20.0) == 0.2
    assert backoff.after(0.0) == 0.4


async def test_a_process_that_dies_is_started_again_with_growing_delays(bench: Bench) -> None:
    """Each crash is announced in one line with the delay; the delays are those of the back-off."""
    process = bench.start("policy", "raise SystemExit(3)")
    await until(lambda: process.crashes >= 4)
    screen = await bench.stop()
    assert bench.clock.slept[:4] == [0.2, 0.4, 0.8, 1.6]
    lines = [line for line in screen.splitlines() if "starting it again" in line]
    assert "policy ended (exit status 3); starting it again in 0.2 s" in lines[0]
    assert "in 0.4 s" in lines[1]


async def test_a_process_that_refuses_is_not_started_again(bench: Bench) -> None:
    """As it is set up it never will run; who waits for it is told, with the exit status."""
    said = "FIPS mode refused: there is no module; install one"
    process = bench.start("policy", f"import sys; print({said!r}); sys.exit(78)")

    async def never() -> bool:
        return False

    with pytest.raises(LauncherError, match="policy refuses to run") as refused:
        await probe.wait_until(never, process, 60)
    assert refused.value.status == mode.REFUSED
    assert said in refused.value.log[-1]
    screen = await bench.stop()
    assert "policy refused to run; it is not started again" in screen
    assert (process.crashes, bench.clock.slept) == (1, [])


async def test_only_our_own_processes_refuse(bench: Bench) -> None:
    """Another program that ends with the same status is started again."""
    argv = ("/bin/sh", "-c", "exit 78")
    process = bench.supervisor.start(ProcessSpec("nats", argv, parse_service, bench.directory))
    bench.names.append("nats")
    await until(lambda: process.crashes >= 2)
    assert "starting it again" in await bench.stop()


def test_openssl_is_configured_by_the_shell_in_fips_mode_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What another program's OpenSSL needs must not reach PostgreSQL and the services."""
    spec = ProcessSpec("audit", ("true",), parse_service, tmp_path)
    monkeypatch.setenv("OPENSSL_CONF", "/etc/evergreen/openssl.cnf")
    assert "OPENSSL_CONF" not in environment(spec)
    monkeypatch.setattr(mode, "_required", True)
    assert environment(spec)["OPENSSL_CONF"] == "/etc/evergreen/openssl.cnf"


async def test_all_processes_live_in_one_time_zone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the shell's is."""
    monkeypatch.setenv("TZ", "America/Los_Angeles")
    process = bench.start(
        "audit", "import time; print('zone', *time.tzname, flush=True); time.sleep(600)"
    )
    await until(lambda: "zone" in str(process.log.tail))
    assert "zone UTC UTC" in str(process.log.tail)


async def test_a_killed_process_is_back(bench: Bench) -> None:
    """kill -9 of a process: another one runs a moment later."""
    process = bench.start("audit", _SLEEP)
    await until(lambda: "info: up" in str(process.log.tail) or "up" in str(process.log.tail))
    first = process.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: process.pid not in (first, None))
    assert process.crashes == 1
    assert process.last_exit == "killed by SIGKILL"
    assert not alive(first)


async def test_stopping_ends_groups_in_order(bench: Bench) -> None:
    """A group is gone before the next one is asked to stop."""
    code = (
        "import signal, sys, time, pathlib\n"
        "def stop(*_):\n"
        "    open('order', 'a').write(sys.argv[-1] + '\\n'); sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop); print('up', flush=True); time.sleep(600)"
    )
    processes = []
    for name in ("postgres", "nats", "gateway"):
        processes.append(bench.start(name, code.replace("sys.argv[-1]", repr(name))))
    await until(lambda: all(process.log.tail for process in processes))
    pids = [process.pid for process in processes]
    await bench.supervisor.stop([["gateway"], ["nats"], ["postgres"]])
    assert (bench.directory / "order").read_text().split() == ["gateway", "nats", "postgres"]
    assert not any(alive(pid) for pid in pids if pid)
    assert not list(bench.directory.glob("*.pid"))


async def test_a_process_that_does_not_stop_is_killed_after_its_grace(bench: Bench) -> None:
    """The grace ends with the hurry signal, and a line says so."""
    process = bench.start("telemetry", _STUBBORN, grace=0.2)
    await until(lambda: bool(process.log.tail))
    screen = await bench.stop()
    assert process.last_exit == "killed by SIGKILL"
    assert "telemetry did not stop within 0 s; sending SIGKILL" in screen


async def test_hurry_cuts_the_grace_short(bench: Bench) -> None:
    """A second Ctrl-C does not wait for a stubborn process."""
    process = bench.start("telemetry", _STUBBORN, grace=600)
    await until(lambda: bool(process.log.tail))
    stopping = asyncio.create_task(bench.stop())
    await asyncio.sleep(0.1)
    assert not stopping.done()
    bench.supervisor.hurry()
    await asyncio.wait_for(stopping, 60)
    assert process.last_exit == "killed by SIGKILL"


async def test_the_drain_comes_before_the_stop_signal(bench: Bench) -> None:
    """The process still runs while it is drained; a failing drain does not keep it."""
    alive_while_drained = []

    async def drain() -> None:
        assert process.pid
        alive_while_drained.append(alive(process.pid))
        raise OSError("nobody there")

    process = bench.start("gateway", _SLEEP, drain=drain)
    await until(lambda: bool(process.log.tail))
    await bench.stop()
    assert alive_while_drained == [True]
    assert process.last_exit == "killed by SIGTERM"


async def test_a_reload_on_request_is_no_restart(bench: Bench) -> None:
    """The process is told by a signal, and goes on; one that does not run is left alone."""
    code = (
        # A handler may interrupt `print`, which may not be entered again.
        "import os, signal, time\n"
        "signal.signal(signal.SIGHUP, lambda *_: os.write(1, b'read again\\n'))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(600)"
    )
    process = bench.start("nats", code)
    await until(lambda: bool(process.log.tail))
    first = process.pid
    process.reload()
    await until(lambda: any("read again" in line for line in process.log.tail))
    assert (process.pid, process.crashes) == (first, 0)
    await bench.stop()
    process.reload()


async def test_children_of_a_process_do_not_outlive_it(bench: Bench) -> None:
    """What a killed process left in its group is killed before it is started again."""
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    process = bench.start("identity", code)
    await until(lambda: bool(process.log.tail))
    child = int(process.log.tail[0].split()[-1])
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    await until(lambda: not alive(child))


async def test_what_is_stuck_is_restarted(bench: Bench) -> None:
    """Not at the first sign of it, and it does not count as a crash."""
    answers = iter(["stuck", "stuck", "", "stuck", "stuck", "stuck"])

    async def stuck() -> str:
        return next(answers, "")

    process = bench.start("nats", _SLEEP, stuck=stuck)
    pids: set[int] = set()

    def replaced() -> bool:
        pids.update([process.pid] if process.pid else [])
        return len(pids) == 2

    await until(replaced)
    assert list(answers) == []
    assert process.crashes == 0
    assert "nats is restarted: stuck" in await bench.stop()


async def test_a_program_that_is_missing_counts_as_a_crash(bench: Bench) -> None:
    """A program that cannot be executed is tried again and told in one line."""
    spec = ProcessSpec("nats", ("/nowhere/nats-server",), parse_service, bench.directory)
    bench.names.append("nats")
    process = bench.supervisor.start(spec)
    await until(lambda: process.crashes >= 2)
    screen = await bench.stop()
    assert "nats ended (cannot be started: No such file or directory)" in screen


async def test_everything_printed_is_in_the_log_file(bench: Bench) -> None:
    """Long lines, lines without an end and broken UTF-8 arrive in the file as they were."""
    code = "import sys; sys.stdout.buffer.write(b'x' * 200000 + b'\\n\\xff\\nno end'); sys.exit(7)"
    process = bench.start("policy", code)
    await until(lambda: process.crashes >= 1)
    await bench.stop()
    logged = (bench.directory / "policy.log").read_bytes()
    assert logged.count(b"x") >= 200000
    assert b"\xff\n" in logged
    assert b"no end\n" in logged


def test_nothing_survives_the_launcher(tmp_path: Path) -> None:
    """kill -9 of the launcher: the kernel ends its processes, and the next start finds none."""
    program = textwrap.dedent(
        f"""
        import asyncio, io, sys
        from pathlib import Path
        from deploy.launcher.console import Console
        from deploy.launcher.events import parse_service
        from deploy.launcher.logs import Logs
        from deploy.launcher.process import ProcessSpec
        from deploy.launcher.supervisor import Supervisor

        async def main():
            directory = Path({str(tmp_path)!r})
            supervisor = Supervisor(Logs(directory, Console(io.StringIO())), directory)
            argv = (sys.executable, "-c", {_STUBBORN!r})
            process = supervisor.start(ProcessSpec("audit", argv, parse_service, directory))
            while not process.log.tail:
                await asyncio.sleep(0.01)
            print(process.pid, flush=True)
            await asyncio.sleep(600)

        asyncio.run(main())
        """
    )
    launcher = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    pid = int(launcher.stdout.readline())
    assert alive(pid)
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    clear_leftovers(tmp_path, patience=5.0)
    assert not alive(pid)
    assert not list(tmp_path.glob("*.pid"))


def test_a_stranger_with_a_used_id_is_left_alone(tmp_path: Path) -> None:
    """A noted id that now belongs to another process is not signalled."""
    (tmp_path / "audit.pid").write_text(f"{os.getpid()} 1\n")
    assert clear_leftovers(tmp_path) == []
    assert re.fullmatch(r"\d+", start_time(os.getpid()) or "")
