"""What a person sees while it runs: a table that renews itself, or lines where there is no TTY."""

from __future__ import annotations

from collections import deque
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from cli.sim.device import KINDS
from cli.sim.report import milliseconds
from cli.sim.stats import Part, Point, Stats

_BARS: Final = "▁▂▃▄▅▆▇█"
_WIDTH: Final = 60
_LINE_EVERY: Final = 5


class Enrolling:
    """The progress of enrolling."""

    def __init__(self, console: Console, count: int) -> None:
        self._console = console
        self._count = count
        self._done = 0
        self._bar = Progress(
            TextColumn("enrolling"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=count)

    def __enter__(self) -> Enrolling:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def one(self, _: object = None) -> None:
        """One more device has enrolled."""
        self._done += 1
        self._bar.advance(self._task)
        if not self._console.is_terminal and self._done % max(1, self._count // 10) == 0:
            say(self._console, f"enrolled {self._done:,} of {self._count:,}")


class View:
    """Shows the seconds of a run as they end."""

    def __init__(self, console: Console, seconds: float | None) -> None:
        self._console = console
        self._seconds = seconds
        self._rates: deque[float] = deque(maxlen=_WIDTH)
        self._worst: deque[float] = deque(maxlen=_WIDTH)
        self._shown = 0.0
        self._last = 0.0
        self._live = (
            Live(console=console, auto_refresh=False, transient=True)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def point(self, stats: Stats, point: Point) -> None:
        """A second has ended."""
        span = max(stats.seconds - self._last, 1e-3)
        self._last = stats.seconds
        calls = sum(part.calls for part in point.parts.values())
        self._rates.append(calls / span)
        self._worst.append(max((p.p99 for p in point.parts.values() if p.calls), default=0.0))
        if self._live is not None:
            self._live.update(self._screen(stats, point, span), refresh=True)
        elif stats.seconds - self._shown >= _LINE_EVERY:
            self._shown = stats.seconds
            say(self._console, self._line(stats, point, span))

    def _screen(self, stats: Stats, point: Point, span: float) -> Group:
        table = Table(box=None, pad_edge=False)
        for name in ("call", "now/s", "p50", "p99", "answered", "failed"):
            table.add_column(name, justify="left" if name == "call" else "right")
        nothing = Part()
        for kind in sorted(stats.latency.keys() | stats.failures.keys()):
            part = point.parts.get(kind, nothing)
            histogram, failures = stats.latency.get(kind), stats.failures.get(kind)
            failed = failures.total() if failures else 0
            table.add_row(
                KINDS[kind],
                f"{part.calls / span:,.0f}",
                milliseconds(part.p50),
                milliseconds(part.p99),
                f"{histogram.count if histogram else 0:,}",
                Text(f"{failed:,}", style="red" if failed else ""),
            )
        whole = f" of {self._seconds:,.0f}" if self._seconds is not None else ""
        return Group(
            Text(
                f"{stats.seconds:,.0f}{whole} s   {point.in_flight:,} in flight,"
                f" {point.connections:,} connections   (Ctrl-C ends it, with the report)",
                style="dim",
            ),
            table,
            Text(f"calls/s {sparkline(self._rates)} {self._rates[-1]:,.0f}", style="blue"),
            Text(f"p99     {sparkline(self._worst)} {milliseconds(self._worst[-1])}", style="cyan"),
        )

    def _line(self, stats: Stats, point: Point, span: float) -> str:
        kinds = ", ".join(
            f"{KINDS[kind]} {part.calls / span:,.0f}/s p99 {milliseconds(part.p99)}"
            for kind, part in point.parts.items()
        )
        return f"{stats.seconds:6.0f} s: {kinds or 'nothing'}; failed so far {stats.failed:,}"


def say(console: Console, line: str) -> None:
    """Prints a line as it is, however narrow the terminal."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def sparkline(values: deque[float]) -> str:
    """A curve in one line of text, from 0 to its highest value."""
    highest = max(values, default=0.0)
    if not highest:
        return _BARS[0] * len(values)
    return "".join(_BARS[round(value / highest * (len(_BARS) - 1))] for value in values)
