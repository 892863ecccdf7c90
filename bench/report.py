"""What a run says: lines while it goes on, a table at its end, and a file for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.figures import Round, Series, by_part, ratio
from bench.picture import draw
from contract.contexts import CONTEXTS

RESULTS = Path("bench-results")
_PARTS = ("gateway", *CONTEXTS, "postgres", "nats", "python")


class Report:
    """Tells a person, and gathers for the file."""

    def __init__(self, console: Console | None = None) -> None:
        # Tables need more than the 80 columns of a pipe.
        self._console = console or Console(
            highlight=False, width=None if sys.stdout.isatty() else 120
        )
        self._began = time.monotonic()
        self.results: dict[str, Any] = {}

    def stage(self, title: str) -> None:
        """A new part of the run begins."""
        self._console.print(f"\n[bold]{title}[/]  [dim]({self._minutes()})[/]")

    def say(self, text: str) -> None:
        self._console.print(f"  {text}", soft_wrap=True)

    def round(self, one: Round) -> None:
        """One round is over."""
        rate = one.outcome.calls / one.outcome.seconds
        p99 = one.outcome.latency_ms()["p99"]
        self.say(
            f"{one.side:<11} {rate:7.0f} calls/s  {one.cpu_us_per_call:7.1f} µs CPU a call"
            f"  p99 {p99:6.1f} ms{_trouble(one.outcome.failed)}"
        )

    def costs(self, title: str, sides: Mapping[str, Series]) -> None:
        """CPU by part, side by side."""
        table = Table(title=title, title_justify="left", title_style="bold")
        table.add_column("CPU µs a call")
        for side in sides:
            table.add_column(side, justify="right")
        columns = [by_part(side.parts_us_per_call) for side in sides.values()]
        names = sorted({n for c in columns for n in c}, key=_rank)
        for name in names:
            table.add_row(name, *(_number(column.get(name)) for column in columns))
        table.add_section()
        middles = [side.cpu_us_per_call for side in sides.values()]
        table.add_row("all (median)", *(f"[bold]{value:.0f}[/]" for value in middles))
        table.add_row("of which at rest", *(f"{s.rest_us_per_call:.0f}" for s in sides.values()))
        table.add_row("least of a round", *(f"{s.least:.0f}" for s in sides.values()))
        table.add_row("± between rounds", *(f"{100 * s.spread:.0f} %" for s in sides.values()))
        product, *floors = sides.values()
        table.add_row("the product costs", "", *(f"{ratio(product, f):.2f} x" for f in floors))
        table.add_row("calls/s", *(f"{s.calls_per_second:.0f}" for s in sides.values()))
        table.add_row("others, CPUs", *(f"{s.noise:.2f}" for s in sides.values()))
        self._console.print(table)

    def latencies(self, title: str, one: Series) -> None:
        """How long calls took, by kind."""
        whole = one.together()
        table = Table(title=title, title_justify="left", title_style="bold")
        for name in ("milliseconds", "calls", "p50", "p90", "p99", "max"):
            table.add_column(name, justify="left" if name == "milliseconds" else "right")
        for kind, values in sorted(whole.latencies.items()):
            shown = whole.latency_ms(kind)
            table.add_row(kind, str(len(values)), *(f"{v:.1f}" for v in shown.values()))
        self._console.print(table)
        if whole.failed:
            self.say(f"[red]not answered as they should:{_trouble(whole.failed)}[/]")

    def table(self, title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
        """Any other table; the first column is text."""
        table = Table(title=title, title_justify="left", title_style="bold")
        for number, name in enumerate(head):
            table.add_column(name, justify="right" if number else "left")
        for row in rows:
            table.add_row(*row)
        self._console.print(table)

    def write(self, directory: Path = RESULTS, name: str = "latest") -> Path:
        """Writes a file of that name, and the same under the moment's."""
        directory.mkdir(exist_ok=True)
        self.results["seconds"] = round(time.monotonic() - self._began)
        text = json.dumps(self.results, indent=2) + "\n"
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        (directory / f"{stamp}.json").write_text(text)
        latest = directory / f"{name}.json"
        latest.write_text(text)
        if "fleet_mix" in self.results:
            draw(self.results, directory / "latest.svg")
        return latest

    def _minutes(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        return f"{minutes}:{seconds:02}"


def _rank(name: str) -> tuple[int, str]:
    return (_PARTS.index(name) if name in _PARTS else len(_PARTS), name)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _trouble(failed: Mapping[str, int]) -> str:
    if not failed:
        return ""
    return "  FAILED " + ", ".join(f"{count} x {what}" for what, count in failed.items())
