"""Where the processes' output goes: all of it to files, what matters to the terminal."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from deploy.launcher.console import Console
from deploy.launcher.events import LEVELS, LogEvent, Parser, now
from deploy.launcher.logfile import DEFAULT, Bounds, LogFile
from deploy.launcher.render import as_json, printable

OWN_NAME: Final = "evergreen"
_LONGEST_LINE: Final = 64 * 1024
_FRAME: Final = re.compile(r' {2}File "| {4}|Traceback \(most recent')
# What a person can follow: lines at once, and lines a second in the long run, per process.
_BURST: Final = 60
_PER_SECOND: Final = 10.0


class Flood:
    """Decides which events of one process a terminal shows when there are very many."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._room = float(_BURST)
        self._at = clock()
        self._held_back = 0

    def admit(self) -> tuple[bool, int]:
        """Whether to show the next event, and how many before it were held back."""
        now = self._clock()
        self._room = min(_BURST, self._room + (now - self._at) * _PER_SECOND)
        self._at = now
        # After a flood the first line waits until there is room for a few.
        if self._room < (_PER_SECOND if self._held_back else 1):
            self._held_back += 1
            return False, 0
        self._room -= 1
        held_back, self._held_back = self._held_back, 0
        return True, held_back


class Logs:
    """The log of the launcher itself and of all its processes."""

    def __init__(
        self, directory: Path, console: Console, level: str = "info", bounds: Bounds = DEFAULT
    ) -> None:
        self._directory = directory
        self._bounds = bounds
        self._console = console
        self._own = self._file(OWN_NAME)
        self._level = level
        self._told: set[tuple[str, str]] = set()
        self.calm = False
        """Whether the terminal shows only warnings, while the launcher tells what happens."""

    def event(self, level: str, message: str, **context: Any) -> None:
        """Logs what the launcher itself did or saw."""
        event = LogEvent(now(), OWN_NAME, level, message, context)
        self._own.write(as_json(event).encode() + b"\n")
        if event.severity >= LEVELS[self._level]:
            self.show(event)

    def process(self, name: str, parse: Parser, least: str) -> ProcessLog:
        """The log of one process; events from the level `least` on are shown."""
        severity = max(LEVELS[least], LEVELS[self._level])
        return ProcessLog(self, name, self._file(name), parse, severity)

    def _file(self, name: str) -> LogFile:
        bounds = self._bounds
        return LogFile(self._directory / f"{name}.log", largest=bounds.largest, kept=bounds.kept)

    def show(self, event: LogEvent) -> None:
        """Shows an event at the terminal."""
        if not (self.calm and self._level != "debug" and self._console.format == "console"):
            self._console.show(event)
        elif event.severity >= LEVELS["warning"]:
            # What a process says at each of its tries is told once.
            said = (event.source, event.message)
            if said not in self._told:
                self._told.add(said)
                self._console.show(event)

    def flood(self) -> Flood | None:
        """What holds a flood of lines back; a program that reads JSON wants everything."""
        return None if self._console.format == "json" else Flood()


class ProcessLog:
    """Takes the output of one process as it comes."""

    def __init__(self, logs: Logs, name: str, file: LogFile, parse: Parser, severity: int) -> None:
        self._logs = logs
        self._name = name
        self._file = file
        self._parse = parse
        self._severity = severity
        self._flood = logs.flood()
        self._rest = b""
        self.tail: list[str] = []
        """The last lines, without the frames of tracebacks: for the word about a failed start."""

    def feed(self, data: bytes) -> None:
        """Takes a piece of output; lines are complete only with their end."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _LONGEST_LINE:
            lines.append(self._rest)
            self._rest = b""
        if lines:
            self._file.write(b"\n".join(lines) + b"\n")
        for line in lines:
            self._line(line[:_LONGEST_LINE].decode("utf-8", "replace").rstrip("\r"))

    def end(self) -> None:
        """Takes what was left when the process ended."""
        if self._rest:
            self.feed(b"\n")

    def _line(self, line: str) -> None:
        event = self._parse(self._name, line)
        if event is None:
            return
        if not _FRAME.match(line):
            context = "".join(f" {key}={value}" for key, value in event.context.items())
            self.tail = [*self.tail[-19:], printable(event.message + context)]
        if event.severity < self._severity:
            return
        shown, held_back = self._flood.admit() if self._flood else (True, 0)
        if held_back:
            note = f"{held_back} more lines of {self._name} are in {self._file.path}"
            self._logs.show(LogEvent(now(), OWN_NAME, "warning", note))
        if shown:
            self._logs.show(event)
