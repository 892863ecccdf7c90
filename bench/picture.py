"""A picture of a run: what a call costs on each side, part by part, and how long calls took."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from bench.figures import by_part

_COLOURS: Final = {
    "gateway": "#2a78b8",
    "python": "#9aa7b2",
    "policy": "#e08a1e",
    "telemetry": "#2f9e6b",
    "postgres": "#8e5bb5",
    "nats": "#c9b458",
}
_OTHERS: Final = "#d3dae0"
_INK: Final = "#24303a"


def draw(results: Mapping[str, Any], file: Path) -> bool:
    """Draws the fleet mix of a run, if matplotlib is installed; answers whether it did."""
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional, and slow to import

    mix = results["fleet_mix"]
    figure = Figure(figsize=(9, 6), layout="constrained")
    costs, times = figure.subplots(2, 1, height_ratios=(3, 2))
    figure.suptitle(
        f"Fleet mix: {mix['cpu_us_per_call']:.0f} µs of CPU a call,"
        f" p99 {mix['p99_ms']:.0f} ms at {mix['paced_calls_per_second']:,} calls/s",
        color=_INK,
    )
    _costs(costs, mix["saturating"])
    _times(times, mix["paced"]["product"]["latency_ms"])
    for axes in (costs, times):
        axes.spines[["top", "right"]].set_visible(False)
        axes.invert_yaxis()
    figure.savefig(file)
    return True


def _costs(axes: Any, sides: Mapping[str, Any]) -> None:
    parts = {side: by_part(figures["parts_us_per_call"]) for side, figures in sides.items()}
    names = [*_COLOURS, *sorted({n for found in parts.values() for n in found} - set(_COLOURS))]
    left = dict.fromkeys(parts, 0.0)
    labelled = set()
    for name in names:
        for side, found in parts.items():
            if name not in found:
                continue
            label = name if name in _COLOURS else "other services"
            colour = _COLOURS.get(name, _OTHERS)
            shown = None if label in labelled else label
            labelled.add(label)
            axes.barh(side, found[name], left=left[side], color=colour, label=shown)
            left[side] += found[name]
    for side, total in left.items():
        axes.text(total, side, f" {total:.0f}", va="center", color=_INK)
    axes.set_xlabel("CPU µs a call, saturating")
    axes.legend(frameon=False, ncols=4, loc="lower right")


def _times(axes: Any, latencies: Mapping[str, Mapping[str, float]]) -> None:
    for kind, shares in sorted(latencies.items()):
        axes.barh(kind, shares["p99"], color="#cfe0ee", height=0.6)
        axes.barh(kind, shares["p50"], color="#2a78b8", height=0.3)
        axes.text(shares["p99"], kind, f" p99 {shares['p99']:.0f}", va="center", color=_INK)
    axes.set_xlabel("milliseconds, paced: median (dark) and p99 (light)")
