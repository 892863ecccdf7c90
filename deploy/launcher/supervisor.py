"""Keeps processes running: starts them, starts them again with back-off, stops them in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from deploy.launcher.logs import Logs, ProcessLog
from deploy.launcher.process import (
    Child,
    ProcessSpec,
    describe_exit,
    kill_group,
    spawn,
    start_time,
)
from servicekit.security import mode

_STUCK_CHECK_SECONDS: Final = 2.0
_STUCK_CHECKS: Final = 3


class Clock(Protocol):
    """Time, so that tests need not wait for it."""

    def monotonic(self) -> float:
        """Seconds since some moment."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        ...


class SystemClock:
    """The machine's time."""

    def monotonic(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        await asyncio.sleep(seconds)


@dataclass(slots=True)
class Backoff:
    """The delay before a restart: doubles from crash to crash, forgets after a stable run."""

    first: float = 0.2
    limit: float = 10.0
    stable_after: float = 20.0
    _next: float = 0.0

    def after(self, ran_for: float) -> float:
        """The seconds to wait, now that the process ended after running for some seconds."""
        if ran_for >= self.stable_after or not self._next:
            self._next = self.first
        delay = self._next
        self._next = min(delay * 2, self.limit)
        return delay


class Supervised:
    """One process that is kept running until it is stopped."""

    def __init__(
        self, spec: ProcessSpec, log: ProcessLog, logs: Logs, pids: Path, clock: Clock
    ) -> None:
        self.spec = spec
        self.log = log
        self.crashes = 0
        """How often it ended without being asked to."""
        self.last_exit = ""
        self.refused = False
        """Whether it said that it may not run as it is set up; it is not started again."""
        self.pid: int | None = None
        self._logs = logs
        self._pid_file = pids / f"{spec.name}.pid"
        self._clock = clock
        self._backoff = Backoff()
        self._stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self._task = asyncio.create_task(self._keep(), name=f"supervise {spec.name}")

    async def stop(self) -> None:
        """Stops the process and waits until it is gone."""
        self._stop.set()
        await self._task

    def reload(self) -> None:
        """Lets the process read its configuration and certificates again, if it runs."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGHUP)

    async def _keep(self) -> None:
        while not self._stop.is_set():
            began = self._clock.monotonic()
            asked = await self._run()
            if self._stop.is_set():
                return
            if asked:
                continue
            self.crashes += 1
            if self.refused:
                self._logs.event(
                    "error", f"{self.spec.name} refused to run; it is not started again"
                )
                return
            delay = self._backoff.after(self._clock.monotonic() - began)
            self._logs.event(
                # At a start it is tried a few times, and the step that fails tells of it.
                "info" if self._logs.calm else "warning",
                f"{self.spec.name} ended ({self.last_exit}); starting it again in {delay:.1f} s",
            )
            await self._first(self._clock.sleep(delay), self._stop.wait())

    async def _run(self) -> bool:
        """Runs the process once; answers whether it ended because it was asked to."""
        # A pipe of our own: asyncio's wait() lasts until every holder of its pipe has closed it,
        # also a grandchild that outlives the process.
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        loop = asyncio.get_running_loop()
        try:
            if self.spec.prepare is not None:
                await self.spec.prepare()
            process = await self._spawn(writing)
        except OSError as error:
            self.last_exit = f"cannot be started: {error.strerror or error}"
            os.close(reading)
            return False
        finally:
            os.close(writing)
        self.pid = process.pid
        with contextlib.suppress(OSError):
            self._pid_file.write_text(f"{process.pid} {start_time(process.pid)}\n")
        loop.add_reader(reading, self._read, reading)
        ended = asyncio.create_task(process.wait())
        try:
            await self._first(ended, self._stop.wait(), self._until_stuck())
            asked = not ended.done()
            if asked:
                await self._end(process, ended)
        finally:
            if process.returncode is None:
                process.kill()
            code = await process.wait()
            kill_group(process.pid)
            while self._read(reading):
                pass
            loop.remove_reader(reading)
            os.close(reading)
            self.log.end()
            self.pid = None
            self._pid_file.unlink(missing_ok=True)
        self.last_exit = describe_exit(code)
        # Another program may mean something else by that status.
        self.refused = self.spec.is_ours and code == mode.REFUSED
        return asked

    async def _spawn(self, output: int) -> Child:
        if self.spec.fork is not None:
            try:
                return await self.spec.fork(self.spec, output)
            except OSError as error:
                self._logs.event("debug", f"{self.spec.name} is started by itself: {error}")
        return await spawn(self.spec, output)

    async def _until_stuck(self) -> None:
        """Returns when the process says several times in a row that only a restart helps."""
        if self.spec.stuck is None:
            await asyncio.Event().wait()
            return
        count = 0
        while True:
            await self._clock.sleep(_STUCK_CHECK_SECONDS)
            why = await self.spec.stuck()
            count = count + 1 if why else 0
            if count >= _STUCK_CHECKS:
                self._logs.event("warning", f"{self.spec.name} is restarted: {why}")
                return

    async def _end(self, process: Child, ended: asyncio.Task[int]) -> None:
        """Stops the process: drain, its stop signal, its hurry signal, SIGKILL."""
        if not self.hurry.is_set():
            await self._first(ended, self._drain(), self.hurry.wait())
        steps = [(self.spec.stop_signal, self.spec.grace), (self.spec.hurry_signal, 5.0)]
        if self.hurry.is_set():
            del steps[0]
        for number, (stop_signal, grace) in enumerate(steps):
            if ended.done():
                return
            if number and not self.hurry.is_set():
                self._logs.event(
                    "warning",
                    f"{self.spec.name} did not stop within {steps[0][1]:.0f} s; "
                    f"sending {stop_signal.name}",
                )
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(stop_signal)
            hurry = () if number or self.hurry.is_set() else (self.hurry.wait(),)
            await self._first(ended, asyncio.sleep(grace), *hurry)
        if not ended.done():
            process.kill()
            await ended

    async def _drain(self) -> None:
        """Lets the process finish its work; a failure only means that it is stopped at once."""
        if self.spec.drain is not None:
            try:
                await self.spec.drain()
            except (OSError, TimeoutError) as error:
                self._logs.event("debug", f"{self.spec.name} could not be drained: {error}")

    def _read(self, descriptor: int) -> bool:
        """Takes what the process printed; answers whether there may be more."""
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            return False
        if not data:
            asyncio.get_running_loop().remove_reader(descriptor)
        self.log.feed(data)
        return bool(data)

    @staticmethod
    async def _first(*things: Awaitable[object]) -> None:
        """Waits for the first of several; ends the waiting for the others, but no tasks."""
        tasks = [asyncio.ensure_future(thing) for thing in things]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task, thing in zip(tasks, things, strict=True):
                if task is not thing:
                    task.cancel()


class Supervisor:
    """All processes of one installation."""

    def __init__(self, logs: Logs, pids: Path, clock: Clock | None = None) -> None:
        self._logs = logs
        self._pids = pids
        self._clock = clock or SystemClock()
        self._running: dict[str, Supervised] = {}

    def start(self, spec: ProcessSpec) -> Supervised:
        """Starts a process and keeps it running."""
        log = self._logs.process(spec.name, spec.parse, spec.shown_from)
        supervised = Supervised(spec, log, self._logs, self._pids, self._clock)
        self._running[spec.name] = supervised
        return supervised

    @property
    def has_started(self) -> bool:
        """Whether any process was started."""
        return bool(self._running)

    def __getitem__(self, name: str) -> Supervised:
        return self._running[name]

    async def stop(self, order: Iterable[Sequence[str]]) -> None:
        """Stops the processes, group after group; those that were never started are skipped."""
        for group in order:
            found = [self._running[name] for name in group if name in self._running]
            await asyncio.gather(*(supervised.stop() for supervised in found))

    def hurry(self) -> None:
        """Cuts all grace short."""
        for supervised in self._running.values():
            supervised.hurry.set()


def leftovers(pids: Path) -> dict[str, int]:
    """The processes of an earlier launcher that are still alive, by name."""
    found: dict[str, int] = {}
    for path in pids.glob("*.pid"):
        try:
            pid, started = path.read_text().split()
            if start_time(int(pid)) == started:
                found[path.stem] = int(pid)
        except (OSError, ValueError):
            pass
    return found


def clear_leftovers(pids: Path, patience: float = 10.0) -> list[str]:
    """Ends what an earlier launcher left alive; answers the names.

    The kernel ends orphans by itself within moments, PostgreSQL takes a little longer.
    """
    names = sorted(leftovers(pids))
    deadline = time.monotonic() + patience
    for stop_signal in (signal.SIGQUIT, signal.SIGKILL):
        for pid in leftovers(pids).values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, stop_signal)
        while leftovers(pids) and time.monotonic() < deadline:
            time.sleep(0.02)
        deadline += patience
    for path in pids.glob("*.pid"):
        path.unlink(missing_ok=True)
    return names
