"""The terminal: written by a thread of its own, so that a stuck one never stops the supervisor."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Literal, TextIO

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from deploy.launcher.events import LogEvent, now
from deploy.launcher.render import as_journal, as_json, as_text

Format = Literal["console", "json", "journal"]
_MOST_WAITING: Final = 5000


def wants_colour(stream: TextIO) -> bool:
    """Whether to colour what is written there (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Console:
    """Shows events and text in order; drops and counts lines when the reader is too slow."""

    def __init__(self, stream: TextIO | None = None, fmt: Format = "console") -> None:
        self._stream = stream or sys.stdout
        self.format: Format = fmt
        self.colour = fmt == "console" and wants_colour(self._stream)
        self.interactive = fmt == "console" and self._stream.isatty()
        self._rich = RichConsole(file=self._stream, no_color=not self.colour, highlight=False)
        self._live: Live | None = None
        self._waiting: deque[Callable[[], None]] = deque()
        self._dropped = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write_all, name="console", daemon=True)
        self._thread.start()

    def show(self, event: LogEvent) -> None:
        """Shows one event as one line."""
        self._add(self._as_line(event))

    def _as_line(self, event: LogEvent) -> str:
        if self.format == "json":
            return as_json(event)
        if self.format == "journal":
            return as_journal(event)
        return as_text(event, colour=self.colour)

    def say(self, text: str = "") -> None:
        """Shows text that the launcher addresses to a person; as events where no person reads."""
        if self.format != "console":
            for line in filter(None, (line.strip() for line in text.splitlines())):
                self.show(LogEvent(now(), "evergreen", "info", line))
        else:
            self._add(text)

    def start_live(self, render: Callable[[], RenderableType]) -> None:
        """Keeps what `render` answers below the lines, redrawn until `stop_live`."""

        def start() -> None:
            self._live = Live(
                get_renderable=render,
                console=self._rich,
                refresh_per_second=8,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()

        self._call(start)

    def stop_live(self) -> None:
        """Draws the live part a last time and leaves it there."""

        def stop() -> None:
            if self._live is not None:
                live, self._live = self._live, None
                live.stop()

        self._call(stop)

    def close(self, timeout: float = 2.0) -> None:
        """Writes what still waits; gives up on a reader that does not read."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)

    def _add(self, line: str) -> None:
        with self._changed:
            if len(self._waiting) >= _MOST_WAITING:
                self._dropped += 1
                return
            self._waiting.append(lambda: self._line(line))
            self._changed.notify()

    def _call(self, action: Callable[[], None]) -> None:
        with self._changed:
            self._waiting.append(action)
            self._changed.notify()

    def _line(self, line: str) -> None:
        if self._live is not None:
            self._rich.print(Text.from_ansi(line), soft_wrap=True)
        else:
            self._stream.write(line + "\n")

    def _write_all(self) -> None:
        broken = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                actions = list(self._waiting)
                self._waiting.clear()
                dropped, self._dropped = self._dropped, 0
            if dropped:
                note = f"{dropped} lines were not shown; the log files have them."
                event = LogEvent(now(), "evergreen", "warning", note)
                line = self._as_line(event)
                actions.append(lambda line=line: self._line(line))  # type: ignore[misc]
            try:
                for action in actions if not broken else ():
                    action()
                self._stream.flush()
            except (OSError, ValueError):
                # The reader is gone (`make run | head`, a closed terminal): go on without it.
                broken = True
