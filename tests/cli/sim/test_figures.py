"""The simulator's figures: what was measured is what is shown, in memory that does not grow."""

from __future__ import annotations

import json
import math
import random
import re
from collections import deque
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cli.errors import CliError
from cli.sim import EVENTS, POLL, STATE, Stats
from cli.sim import report as reports
from cli.sim.device import KINDS, QUEUED_STATE
from cli.sim.histogram import Histogram
from cli.sim.live import View, sparkline
from cli.sim.picture import check_drawable, draw
from cli.sim.report import Meter, Thresholds
from cli.sim.stats import MAX_POINTS

PNG = b"\x89PNG\r\n\x1a\n"


@given(st.lists(st.integers(0, 1 << 33), min_size=1, max_size=200), st.floats(0, 1))
def test_a_percentile_is_at_most_a_hundredth_too_high(values: list[int], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    ordered = sorted(min(value, (1 << 32) - 1) for value in values)
    rank = min(len(ordered), max(1, math.ceil(share * len(ordered) - 1e-9)))
    exact = ordered[rank - 1]
    assert exact <= histogram.percentile(share) <= exact * 1.008 + 1
    assert histogram.maximum == ordered[-1]
    assert histogram.mean == pytest.approx(sum(ordered) / len(ordered))


def test_percentiles_of_merged_histograms_are_those_of_all_values() -> None:
    chance = random.Random(3)
    whole, parts = Histogram(), [Histogram(), Histogram()]
    for number in range(2000):
        value = int(chance.expovariate(1e-4))
        whole.add(value)
        parts[number % 2].add(value)
    parts[0].merge(parts[1])
    shares = (0.0, 0.5, 0.99, 1.0)
    assert parts[0].percentiles(shares) == whole.percentiles(shares)
    assert (parts[0].count, parts[0].mean) == (whole.count, whole.mean)
    whole.clear()
    assert whole.count == 0
    assert math.isnan(whole.percentile(0.5))


def measured(seconds: int = 5, *, failing: bool = False) -> Stats:
    stats = Stats()
    for second in range(seconds):
        for number in range(100):
            stats.add(POLL, 0.001 * (number + 1), "")
            if number < 20:
                stats.add(STATE, 0.5, "503" if failing else "")
        stats.tick(second + 1.0, 7)
    stats.end()
    stats.add(EVENTS, 9.0, "")
    stats.events += 5
    stats.tick(seconds + 2.5)
    return stats


def report_of(stats: Stats, **other: Any) -> dict[str, Any]:
    return reports.as_json(
        stats, Meter.begin(), url="https://localhost:8443", devices=1234,
        traffic="each by its own clock", options={"speed": 10}, **other,
    )  # fmt: skip


def test_the_report_says_what_was_measured() -> None:
    report = json.loads(json.dumps(report_of(measured(failing=True)), allow_nan=False))
    assert (report["calls"], report["failures"]) == (501, 100)
    poll = report["kinds"]["poll"]
    assert (poll["calls"], poll["calls_per_second"]) == (500, 100.0)
    assert poll["latency_ms"]["p50"] == pytest.approx(50, rel=0.01)
    assert poll["latency_ms"]["p99"] == pytest.approx(99, rel=0.01)
    assert report["kinds"]["state"]["failures"] == {"503": 100}
    assert report["kinds"]["state"]["latency_ms"]["p99"] is None
    # What ended after the end has a latency and no rate.
    assert report["kinds"]["events"]["calls_per_second"] == 0
    assert report["events_acknowledged"] == 5
    points = report["series"]
    assert [point["length"] for point in points] == [1.0] * 5 + [2.5]
    assert points[0]["kinds"]["poll"]["calls"] == 100
    assert points[0]["connections"] == 7
    assert sum(p["kinds"].get("state", {}).get("failures", 0) for p in points) == 100


def test_a_very_long_run_has_no_more_points_and_loses_no_call() -> None:
    stats = Stats()
    for second in range(2 * MAX_POINTS + 5):
        stats.add(POLL, 0.01 if second else 3.0, "" if second % 2 == 0 else "429")
        stats.tick(second + 1.0)
    series = stats.series
    assert len(series) <= MAX_POINTS
    assert sum(point.parts[POLL].calls for point in series) == MAX_POINTS + 3
    assert sum(point.parts[POLL].failures for point in series) == MAX_POINTS + 2
    assert sum(point.length for point in series) == 2 * MAX_POINTS + 5
    assert series[0].parts[POLL].p99 == pytest.approx(3e6, rel=0.01), "the worst is kept"
    assert [p.second for p in series] == sorted({p.second for p in series})


@pytest.mark.parametrize(
    ("thresholds", "broken"),
    [
        (Thresholds(), 0),
        (Thresholds(p99_ms=10_000, failures=100), 0),
        (Thresholds(p99_ms=98), 1),
        (Thresholds(failures=99), 1),
        (Thresholds(p99_ms=1, failures=0), 2),
    ],
)
def test_thresholds(thresholds: Thresholds, broken: int) -> None:
    assert len(thresholds.broken(measured(failing=True))) == broken


def test_a_state_of_a_queue_may_take_long_but_not_fail() -> None:
    stats = Stats()
    stats.add(QUEUED_STATE, 20.0, "")
    stats.tick(1.0)
    assert Thresholds(p99_ms=200).broken(stats), "nothing was measured that is judged"
    stats.add(STATE, 0.1, "")
    stats.tick(2.0)
    assert not Thresholds(p99_ms=200, failures=0).broken(stats)
    stats.add(QUEUED_STATE, 0.1, "503")
    stats.tick(3.0)
    assert Thresholds(failures=0).broken(stats)


def test_a_run_without_an_answer_keeps_no_threshold() -> None:
    stats = Stats()
    stats.add(POLL, 0, "connect")
    stats.tick(1.0)
    assert Thresholds(p99_ms=1000).broken(stats)
    assert report_of(stats)["kinds"]["poll"]["latency_ms"]["p50"] is None


@pytest.mark.parametrize("failing", [False, True])
def test_the_table_tells_it_to_people(failing: bool) -> None:
    stats = measured(failing=failing)
    console = Console(record=True, width=80, force_terminal=True)
    reports.show(console, report_of(stats), stats)
    text = console.export_text()
    assert "1,234 devices" in text
    assert all(len(line) <= 80 for line in text.splitlines() if "the simulator" not in line)
    assert ("503 100" in text) is failing


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_of_the_table_is_cut(terminal: bool) -> None:
    stats = Stats()
    for kind in range(len(KINDS)):
        for number in range(1, 2001):
            stats.add(kind, 0.0109 * number, "")
    stats.add(QUEUED_STATE, 200, "")
    stats.tick(0.1)
    console = Console(record=True, width=80, force_terminal=terminal)
    reports.show(console, report_of(stats), stats)
    text = console.export_text()
    assert "…" not in text
    assert all(re.search(rf"^{kind} +2,00[01] +20,0[01]0\.0 ", text, re.M) for kind in KINDS)
    assert "200 s" in text


def test_a_fleet_that_is_not_known_is_explained() -> None:
    stats = Stats()
    stats.add(POLL, 0, "401")
    stats.tick(1.0)
    assert any(
        "remove the fleet's file" in line for line in reports.remarks(report_of(stats), stats)
    )


@pytest.mark.parametrize("failing", [False, True])
def test_pictures(tmp_path: Path, failing: bool) -> None:
    report = json.loads(json.dumps(report_of(measured(failing=failing))))
    draw(report, tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(PNG)
    draw(report, tmp_path / "run.svg")
    text = "".join(ElementTree.parse(tmp_path / "run.svg").getroot().itertext())
    assert "1,234 virtual devices" in text
    assert "policy polls" in text
    assert ("503: 100" in text) is failing


def test_a_picture_of_what_is_rare(tmp_path: Path) -> None:
    stats = Stats()
    for second in range(5):
        for _ in range(20):
            stats.add(POLL, 0.1, "")
        if second % 4 == 0:
            stats.add(QUEUED_STATE, 2.0, "")
        stats.tick(second + 1.0)
    draw(report_of(stats), tmp_path / "run.svg")
    text = "".join(ElementTree.parse(tmp_path / "run.svg").getroot().itertext())
    assert "policy polls 20/s" in text
    assert "queued states 0.4/s" in text


@pytest.mark.parametrize("seconds", [0, 1])
def test_a_picture_of_next_to_nothing(tmp_path: Path, seconds: int) -> None:
    stats = Stats()
    if seconds:
        stats.add(POLL, 0.1, "")
        stats.tick(1.0)
    draw(report_of(stats), tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(PNG)


def test_a_picture_that_cannot_be_drawn_is_refused_before_the_run(tmp_path: Path) -> None:
    check_drawable(tmp_path / "run.SVG")
    with pytest.raises(CliError, match=r"ends in \.svg"):
        check_drawable(tmp_path / "run.gif")
    with pytest.raises(CliError, match="cannot be written"):
        draw(report_of(measured()), tmp_path / "none" / "run.png")


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_seen_while_it_runs(terminal: bool) -> None:
    console = Console(record=True, width=100, force_terminal=terminal)
    stats = Stats()
    with View(console, 60) as view:
        for second in range(7):
            stats.add(POLL, 0.02, "")
            stats.add(STATE, 0.02, "503")
            view.point(stats, stats.tick(second + 1.0))
    text = console.export_text()
    assert "poll" in text
    assert "20.0 ms" in text or "20.1 ms" in text


def test_a_sparkline() -> None:
    assert sparkline(deque([0.0, 0.0])) == "▁▁"
    assert sparkline(deque([0.0, 5.0, 10.0])) == "▁▅█"
