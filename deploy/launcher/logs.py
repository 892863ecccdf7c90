"""Where the processes' output goes: all of it to files, what matters to the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from deploy.launcher.console import Console
from deploy.launcher.events import LEVELS, LogEvent, Parser, now
from deploy.launcher.logfile import LogFile
from deploy.launcher.render import as_json

OWN_NAME: Final = "evergreen"
_LONGEST_LINE: Final = 64 * 1024


class Logs:
    """The log of the launcher itself and of all its processes."""

    def __init__(self, directory: Path, console: Console, level: str = "info") -> None:
        self._directory = directory
        self._console = console
        self._own = LogFile(directory / f"{OWN_NAME}.log")
        self.level = level

    def event(self, level: str, message: str, **context: Any) -> None:
        """Logs what the launcher itself did or saw."""
        event = LogEvent(now(), OWN_NAME, level, message, context)
        self._own.write(as_json(event).encode() + b"\n")
        if event.severity >= LEVELS[self.level]:
            self._console.show(event)

    def process(self, name: str, parse: Parser, least: str) -> ProcessLog:
        """The log of one process; events from the level `least` on are shown."""
        severity = max(LEVELS[least], LEVELS[self.level])
        return ProcessLog(
            name, LogFile(self._directory / f"{name}.log"), parse, self._console, severity
        )


class ProcessLog:
    """Takes the output of one process as it comes."""

    def __init__(
        self, name: str, file: LogFile, parse: Parser, console: Console, severity: int
    ) -> None:
        self._name = name
        self._file = file
        self._parse = parse
        self._console = console
        self._severity = severity
        self._rest = b""
        self.tail: list[str] = []
        """The last lines, for the message about a failed start."""

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
        context = " ".join(f"{key}={value}" for key, value in event.context.items())
        self.tail = [*self.tail[-19:], f"{event.level}: {event.message} {context}".rstrip()]
        if event.severity >= self._severity:
            self._console.show(event)
