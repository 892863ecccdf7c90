"""A picture of a run: latency over time, throughput, failures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cli.errors import CliError

FORMATS: Final = (".svg", ".png", ".pdf")
_COLOURS: Final = {
    "poll": "#2a78b8",
    "state": "#e08a1e",
    "events": "#2f9e6b",
    "enroll": "#8e5bb5",
    "queued state": "#b9906a",
}
_NAMES: Final = {
    "poll": "policy polls",
    "state": "state reports",
    "events": "event batches",
    "enroll": "enrollments",
    "queued state": "queued states",
}
_INK: Final = "#24303a"
_SOFT: Final = "#7b8894"
_GRID: Final = "#e4e8ec"
_BAD: Final = "#c93c37"
_STYLE: Final[Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _SOFT,
    "axes.edgecolor": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "evergreen",
}


def check_drawable(file: Path) -> None:
    """Makes sure before a long run that its picture can be drawn afterwards.

    Raises:
        CliError: the name's ending is none that can be drawn, or matplotlib is not installed.
    """
    if file.suffix.lower() not in FORMATS:
        raise CliError(f"a picture's name ends in {', '.join(FORMATS)}, not in {file.name!r}")
    try:
        import matplotlib  # noqa: F401, PLC0415
    except ImportError:
        raise CliError(
            "pictures need matplotlib, which is not installed: pip install 'evergreen-backend[sim]'"
        ) from None


def draw(report: Mapping[str, Any], file: Path, target_ms: float = 200.0) -> None:
    """Draws a report's run.

    Args:
        report: what `--report` writes.
        file: where to; its ending says in which format.
        target_ms: a line in the latencies' part: what a call should take at most.

    Raises:
        CliError: the file cannot be written.
    """
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11.5, 8.2), dpi=110, facecolor="white")
        latency, rate, failures = figure.subplots(
            3, 1, sharex=True, gridspec_kw={"height_ratios": (5, 3, 1.4), "hspace": 0.16}
        )
        figure.subplots_adjust(left=0.075, right=0.855, top=0.872, bottom=0.065)
        figure.text(0.075, 0.952, _title(report), fontsize=15, fontweight="bold")
        figure.text(0.075, 0.921, _subtitle(report), color=_SOFT)
        kinds = [kind for kind in _COLOURS if kind in report["kinds"]]
        seconds, widths = _times(report)
        _latency(latency, report, kinds, seconds, target_ms)
        _rate(rate, report, kinds, seconds, widths)
        _failures(failures, report, kinds, seconds, widths)
        failures.set_xlabel("seconds since the start")
        failures.set_xlim(0, seconds[-1] + widths[-1] if seconds else 1)
        try:
            # Without the date, the same report always makes the same file.
            figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
        except OSError as error:
            raise CliError(f"{file} cannot be written: {error.strerror}") from error


def _title(report: Mapping[str, Any]) -> str:
    return f"{report['devices']:,} virtual devices, {report['traffic']}"


def _subtitle(report: Mapping[str, Any]) -> str:
    failed = f"{report['failures']:,} failed" if report["failures"] else "none failed"
    return (
        f"{report['calls']:,} calls in {report['seconds']:,.0f} s "
        f"({_rated(report['calls_per_second'])}), {failed}  ·  {report['url']}"
        f"  ·  {report['started'][:16].replace('T', ' ')} UTC"
    )


def _times(report: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """The beginnings and the lengths of the points."""
    series = report["series"]
    seconds = [float(point["second"]) for point in series]
    return seconds, [max(float(point["length"]), 0.01) for point in series]


def _values(report: Mapping[str, Any], kind: str, name: str) -> list[float]:
    found = (point["kinds"].get(kind, {}).get(name) for point in report["series"])
    return [math.nan if value is None else float(value) for value in found]


def _counts(report: Mapping[str, Any], kind: str, name: str) -> list[float]:
    return [float(point["kinds"].get(kind, {}).get(name, 0)) for point in report["series"]]


def _lonely(values: list[float]) -> list[int]:
    """Places of the values that no line leads to, for there is none before and none after."""
    missing = [True, *map(math.isnan, values), True]
    around = enumerate(zip(missing, missing[1:], missing[2:], strict=False))
    return [place for place, sides in around if sides == (True, False, True)]


def _latency(
    axes: Any, report: Mapping[str, Any], kinds: list[str], seconds: list[float], target_ms: float
) -> None:
    from matplotlib.ticker import LogLocator  # noqa: PLC0415

    axes.set_yscale("log")
    axes.set_title("Latency", loc="left", fontsize=11, color=_INK)
    ends = []
    for kind in kinds:
        colour = _COLOURS[kind]
        p50, p99 = _values(report, kind, "p50_ms"), _values(report, kind, "p99_ms")
        axes.fill_between(seconds, p50, p99, color=colour, alpha=0.10, linewidth=0)
        axes.plot(
            seconds, p99, color=colour, linewidth=1.7, marker="o", markersize=3.5,
            markevery=_lonely(p99),
        )  # fmt: skip
        axes.plot(seconds, p50, color=colour, linewidth=1.1, alpha=0.75, linestyle=(0, (2, 1.5)))
        whole = report["kinds"][kind]["latency_ms"]
        if whole["p99"] is not None:
            text = f"{_NAMES[kind]}\np50 {_ms(whole['p50'])}\np99 {_ms(whole['p99'])}"
            ends.append((text, colour))
    _, high = axes.get_ylim()
    axes.set_ylim(top=max(high, target_ms * 1.6))
    axes.axhline(target_ms, color=_BAD, linewidth=1, linestyle=(0, (5, 3)), alpha=0.8)
    axes.annotate(
        f"{target_ms:g} ms", (1.0, target_ms), xycoords=("axes fraction", "data"), xytext=(-4, 3),
        textcoords="offset points", ha="right", fontsize=9, color=_BAD,
    )  # fmt: skip
    low, high = axes.get_ylim()
    wide = high / low > 1000
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda value, _: _ms(value))
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    # However many there are, the last one ends above the words at the bottom.
    step = min(0.24, 0.84 / max(1, len(ends)))
    for place, (text, colour) in enumerate(ends):
        axes.text(
            1.015, 0.97 - place * step, text, transform=axes.transAxes, color=colour, va="top",
            fontsize=9.5, linespacing=1.35,
        )  # fmt: skip
    axes.text(
        1.015, 0.02, "solid: p99\ndotted: p50", transform=axes.transAxes, color=_SOFT,
        va="bottom", fontsize=8.5,
    )  # fmt: skip


def _rate(
    axes: Any, report: Mapping[str, Any], kinds: list[str], seconds: list[float],
    widths: list[float],
) -> None:  # fmt: skip
    axes.set_title("Answered calls a second", loc="left", fontsize=11, color=_INK)
    rates = [
        [count / width for count, width in zip(_counts(report, k, "calls"), widths, strict=True)]
        for k in kinds
    ]
    if seconds and kinds:
        # Steps: what is counted within a point is drawn over all of it.
        edges = [*seconds, seconds[-1] + widths[-1]]
        axes.stackplot(
            edges, [[*rate, rate[-1]] for rate in rates], colors=[_COLOURS[k] for k in kinds],
            alpha=0.8, step="post", linewidth=0,
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    # The upper parts of the pile first, as they lie.
    for place, kind in enumerate(reversed(kinds)):
        per_second = report["kinds"][kind]["calls_per_second"]
        axes.text(
            1.015, 0.97 - place * 0.17, f"{_NAMES[kind]} {_rated(per_second)}",
            transform=axes.transAxes, color=_COLOURS[kind], va="top", fontsize=9.5,
        )  # fmt: skip


def _failures(
    axes: Any, report: Mapping[str, Any], kinds: list[str], seconds: list[float],
    widths: list[float],
) -> None:  # fmt: skip
    axes.set_title("Failed calls a second", loc="left", fontsize=11, color=_INK)
    bottom = [0.0] * len(seconds)
    for kind in kinds:
        counts = _counts(report, kind, "failures")
        rates = [count / width for count, width in zip(counts, widths, strict=True)]
        axes.bar(seconds, rates, widths, bottom, align="edge", color=_COLOURS[kind], linewidth=0)
        bottom = [low + rate for low, rate in zip(bottom, rates, strict=True)]
    axes.set_ylim(0, max(1.0, max(bottom, default=0.0) * 1.1))
    if not any(bottom):
        axes.set_yticks([])
        axes.text(0.5, 0.42, "none", transform=axes.transAxes, ha="center", color=_SOFT)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    causes: dict[str, int] = {}
    for kind in kinds:
        for cause, count in report["kinds"][kind]["failures"].items():
            causes[cause] = causes.get(cause, 0) + count
    listed = sorted(causes.items(), key=lambda item: -item[1])[:4]
    axes.text(
        1.015, 0.97, "\n".join(f"{cause}: {count:,}" for cause, count in listed),
        transform=axes.transAxes, color=_BAD, va="top", fontsize=9,
    )  # fmt: skip


def _rated(per_second: float) -> str:
    return f"{per_second:,.0f}/s" if per_second >= 10 else f"{per_second:.1f}/s"


def _ms(value: float) -> str:
    if value >= 1000:
        return f"{value / 1000:.3g} s"
    return f"{value:.3g} ms"
