"""`evergreen backup schedule`: runs backups and rehearsals when they are due.

It is small, because it waits for most of its life: the work is done by processes of its own. What
it says are lines of JSON, as services' logs are.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from deploy.schedule import Schedule

_BEFORE_THE_FIRST: Final = timedelta(minutes=2)
"""After a start, the product gets this long before a backup that is overdue."""
_FIRST_RETRY: Final = timedelta(minutes=15)
_LAST_RETRY: Final = timedelta(hours=6)
_LONGEST_WAIT: Final = 300.0
"""Seconds, after which the clock is looked at again: a machine may have slept."""
_WRONG: Final = 2


@dataclass(slots=True)
class Work:
    """Something that is due again and again."""

    name: str
    schedule: Schedule
    arguments: tuple[str, ...]
    last: datetime | None
    """When it last began and ended well."""
    not_before: datetime
    failures: int = 0

    def due(self, now: datetime) -> datetime:
        """When to begin."""
        return max(self.schedule.due(now, self.last), self.not_before)

    def ended(self, began: datetime, now: datetime, *, well: bool) -> None:
        """Notes how it went; after a failure it is tried again, later each time."""
        if well:
            self.last, self.failures, self.not_before = began, 0, now
            return
        delay = min(_FIRST_RETRY * 2**self.failures, _LAST_RETRY, self.schedule.every)
        self.failures += 1
        self.not_before = now + delay


def _say(level: str, event: str, **context: Any) -> None:
    line = {"time": datetime.now(UTC).isoformat(), "level": level, "event": event, **context}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _evergreen(*arguments: str) -> tuple[str, ...]:
    # -P: the working directory is no place to import from.
    return (sys.executable, "-P", "-m", "cli.entry", "backup", *arguments)


class Scheduler:
    """Waits, and runs what is due, one thing at a time."""

    def __init__(
        self,
        works: list[Work],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._works = works
        self._clock = clock
        self._is_stopped = False
        self._child: subprocess.Popen[str] | None = None
        # A signal's handler may hold up no lock of what it interrupts, as an Event's would.
        self._told, self._tells = os.pipe()

    def stop(self, *_: object) -> None:
        """Ends the waiting, and the work under way: it leaves the store as it was."""
        self._is_stopped = True
        os.write(self._tells, b"!")
        if self._child is not None:
            self._child.terminate()

    def run(self) -> None:
        """Runs until it is stopped."""
        while not self._is_stopped:
            now = self._clock()
            work = min(self._works, key=lambda one: one.due(now))
            left = (work.due(now) - now).total_seconds()
            if left > 0:
                select.select([self._told], [], [], min(left, _LONGEST_WAIT))
                continue
            self._do(work)

    def _do(self, work: Work) -> None:
        began = self._clock()
        self._child = subprocess.Popen(  # noqa: S603 - no shell
            _evergreen(*work.arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        if self._is_stopped:  # before there was a child to tell
            self._child.terminate()
        output, _ = self._child.communicate()
        code, self._child = self._child.returncode, None
        if self._is_stopped:
            return
        lines = [line for line in output.splitlines() if line.strip()]
        work.ended(began, self._clock(), well=code == 0)
        seconds = round((self._clock() - began).total_seconds(), 1)
        if code == 0:
            _say("info", f"{work.name} done", seconds=seconds, said=lines[-3:])
        else:
            again = work.not_before.isoformat(timespec="seconds")
            _say("error", f"{work.name} failed", said=lines[-5:], exit=code, again=again)


def _status() -> dict[str, Any]:
    """What `evergreen backup status` knows; empty when it cannot be had."""
    done = subprocess.run(  # noqa: S603 - no shell
        _evergreen("status", "--json"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        found = json.loads(done.stdout)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _works(environment: Mapping[str, str], now: datetime) -> list[Work]:
    """What the environment asks for.

    Raises:
        ValueError: a setting is wrong, or asks for nothing.
    """

    def setting(name: str) -> str:
        return environment.get(f"EVERGREEN_BACKUP_{name}", "").strip()

    if not setting("TARGET"):
        raise ValueError("EVERGREEN_BACKUP_TARGET is not set")
    asked = {
        "backup": (setting("SCHEDULE"), ("run",), "lastSuccess"),
        "rehearsal": (setting("REHEARSE_SCHEDULE"), ("rehearse",), "lastRehearsal"),
    }
    schedules = {}
    for name, (text, _, _) in asked.items():
        if text:
            try:
                schedules[name] = Schedule.read(text)
            except ValueError as error:
                raise ValueError(f"the schedule of the {name}: {error}") from error
    if not schedules:
        raise ValueError("EVERGREEN_BACKUP_SCHEDULE is not set")
    known = _status()
    works = []
    for name, schedule in schedules.items():
        _, arguments, key = asked[name]
        last = known.get(key)
        works.append(
            Work(
                name,
                schedule,
                arguments,
                datetime.fromisoformat(last) if last else None,
                now + _BEFORE_THE_FIRST,
            )
        )
    if len(works) > 1 and works[1].last is None:
        # There is nothing to rehearse with before the first backup.
        works[1].not_before = now + works[1].schedule.every
    return works


def main() -> int:
    """Runs until a signal asks to stop; answers the exit status."""
    try:
        works = _works(os.environ, datetime.now(UTC))
    except ValueError as error:
        _say("error", f"backups are not scheduled: {error}")
        return _WRONG
    scheduler = Scheduler(works)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, scheduler.stop)
    now = datetime.now(UTC)
    _say(
        "info",
        "backups are scheduled",
        **{work.name: work.due(now).isoformat(timespec="seconds") for work in works},
    )
    scheduler.run()
    return 0
