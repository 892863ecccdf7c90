"""The start as a person sees it: its steps with their durations."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import RenderableType
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from deploy.launcher.console import Console
from deploy.launcher.events import LogEvent, now


@dataclass(slots=True)
class Step:
    """One step of the start."""

    title: str
    started: float
    note: str = ""
    ended: float | None = None
    failed: bool = False
    cancelled: bool = False
    spinner: Spinner = field(default_factory=lambda: Spinner("dots"))

    def seconds(self, until: float) -> float:
        """How long the step has taken."""
        return (until if self.ended is None else self.ended) - self.started


class Report:
    """Shows the steps: redrawn in place at a terminal, a line at each end otherwise."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._steps: list[Step] = []
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long the start has taken so far."""
        return time.monotonic() - self._started

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Shows the steps that are taken meanwhile."""
        if self._console.interactive:
            self._console.start_live(self._render)
        try:
            yield
        finally:
            if self._console.interactive:
                self._console.stop_live()

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Takes a step; it has failed when an exception leaves the block."""
        step = Step(title, time.monotonic())
        self._steps.append(step)
        try:
            yield step
        except Exception:
            step.failed = True
            raise
        except BaseException:
            # Another step failed or a person pressed Ctrl-C.
            step.cancelled = True
            raise
        finally:
            step.ended = time.monotonic()
            if not self._console.interactive and not step.cancelled:
                self._print(step)

    def _print(self, step: Step) -> None:
        seconds = round(step.seconds(time.monotonic()), 2)
        if self._console.format == "json":
            level = "error" if step.failed else "info"
            context = {"seconds": seconds, **({"note": step.note} if step.note else {})}
            self._console.show(LogEvent(now(), "evergreen", level, step.title, context))
            return
        mark = "failed" if step.failed else "ok"
        self._console.say(f"  {mark:<6} {step.title:<28} {seconds:6.2f} s  {step.note}".rstrip())

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        table.add_column(width=2, justify="right")
        table.add_column(min_width=28)
        table.add_column(justify="right", min_width=7, style="dim")
        table.add_column(style="dim", overflow="ellipsis", no_wrap=True)
        current = time.monotonic()
        for step in self._steps:
            mark: RenderableType = step.spinner
            if step.failed:
                mark = Text("✗", style="red")
            elif step.cancelled:
                mark = Text("-", style="dim")
            elif step.ended is not None:
                mark = Text("✓", style="green")
            table.add_row(mark, step.title, f"{step.seconds(current):.1f} s", step.note)
        return table
