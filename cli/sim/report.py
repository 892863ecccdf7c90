"""What is left of a run: JSON for programs, a table for people, and whether it was good enough."""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cli.errors import CliError
from cli.sim.device import KINDS
from cli.sim.histogram import Histogram
from cli.sim.stats import SHARES, Stats

_FILE_WIDTH: Final = 120
_ROOMY: Final = 100
"""Columns of a terminal from which on the table does not have to be narrow."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a run must keep within; `None` where nothing is asked."""

    p99_ms: float | None = None
    failures: int | None = None

    def broken(self, stats: Stats) -> list[str]:
        """Sentences about what was not kept."""
        found = []
        if self.p99_ms is not None:
            worst = stats.worst("p99") * 1000
            if math.isnan(worst):
                found.append("no call that counts for the p99 was answered")
            elif worst > self.p99_ms:
                found.append(f"p99 is {worst:.1f} ms, and {self.p99_ms:g} ms are allowed")
        if self.failures is not None and stats.failed > self.failures:
            found.append(f"{stats.failed:,} calls failed, and {self.failures:,} may")
        return found


@dataclass(frozen=True, slots=True)
class Meter:
    """What the simulator itself costs; made when the run begins."""

    started: datetime
    cpu: float

    @classmethod
    def begin(cls) -> Meter:
        """Reads the clocks."""
        return cls(datetime.now(UTC), time.process_time())

    def as_json(self, stats: Stats) -> dict[str, Any]:
        """CPU time since the beginning, and the most memory the process ever had."""
        spent = time.process_time() - self.cpu
        calls = max(1, stats.calls + stats.failed)
        return {
            "cpu_seconds": round(spent, 2),
            "cpu_us_per_call": round(spent / calls * 1e6, 1),
            "max_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "max_lag_ms": round(max((p.lag for p in stats.series), default=0.0) * 1000, 1),
        }


def as_json(
    stats: Stats, meter: Meter, *, url: str, devices: int, traffic: str, options: dict[str, Any]
) -> dict[str, Any]:
    """The whole report."""
    return {
        "url": url,
        "started": meter.started.isoformat(timespec="seconds"),
        "devices": devices,
        "traffic": traffic,
        "options": options,
        **stats.as_json(),
        "unfinished": stats.in_flight,
        "simulator": meter.as_json(stats),
    }


def write(report: dict[str, Any], file: Path) -> None:
    """Writes a report.

    Raises:
        CliError: it cannot be written.
    """
    try:
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CliError(f"{file} cannot be written: {error.strerror}") from error


def show(console: Console, report: dict[str, Any], stats: Stats) -> None:
    """Prints the final table and what should be said about it."""
    if not console.is_terminal:
        console.width = max(console.width, _FILE_WIDTH)
    console.print(f"{report['devices']:,} devices, {report['traffic']}", highlight=False)
    padding = (0, 1) if console.width >= _ROOMY else (0, 0)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=padding, show_edge=False)
    table.add_column("call", no_wrap=True)
    for name in ("calls", "calls/s", "failed", *SHARES, "max"):
        table.add_column(name, justify="right", no_wrap=True)
    for kind in sorted(stats.latency.keys() | stats.failures.keys()):
        table.add_row(KINDS[kind], *_cells(stats, kind))
    console.print(table)
    for line in remarks(report, stats):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _cells(stats: Stats, kind: int) -> list[str]:
    histogram = stats.latency.get(kind, Histogram())
    failed = stats.failures[kind].total() if kind in stats.failures else 0
    values = histogram.percentiles(SHARES.values())
    latencies = [milliseconds(value) for value in (*values, histogram.maximum or math.nan)]
    return [f"{histogram.count:,}", f"{stats.rate(kind):,.1f}", f"{failed:,}", *latencies]


def remarks(report: dict[str, Any], stats: Stats) -> Iterator[str]:
    """Lines below the table."""
    causes: dict[str, int] = {}
    for counts in stats.failures.values():
        for cause, count in counts.items():
            causes[cause] = causes.get(cause, 0) + count
    if causes:
        listed = sorted(causes.items(), key=lambda item: -item[1])
        yield "failures: " + ", ".join(f"{cause} {count:,}" for cause, count in listed)
    if causes.get("401"):
        yield (
            "401 says that the gateway does not know these devices (any more); when the"
            " installation is a new one, remove the fleet's file."
        )
    if stats.in_flight:
        yield f"{stats.in_flight:,} calls were still in flight at the end and do not count."
    if stats.skipped:
        yield (
            f"{stats.skipped:,} calls were left out, for every device had one of the kind in"
            " flight: take more devices."
        )
    own = report["simulator"]
    yield (
        f"the simulator itself: {own['cpu_us_per_call']:.0f} µs of CPU a call,"
        f" {own['max_rss_mb']:,} MB, at most {own['max_lag_ms']:.0f} ms late"
    )


def milliseconds(microseconds: float) -> str:
    """A duration for a table."""
    if math.isnan(microseconds):
        return "-"
    value = microseconds / 1000
    if value >= 1000:
        return f"{value / 1000:.2f} s" if value < 100_000 else f"{value / 1000:,.0f} s"
    return f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"
