"""A report as one page of HTML, which prints on A4: no script, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any, Final

from auditlog.reports import MANIFEST
from services.audit.reports.domain import Cell, Figure, Row, Summary, Table, to_second, worded

CONTENT_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
"""What a browser lets the page do; the answer that serves it adds `sandbox`."""
MOST_PRINTED: Final = 10_000
"""Rows of a table that the page has; the other formats have all."""
_MOST_MISSING: Final = 5
"""Pruned chains that the page names."""
_BAR: Final = 360
_LINE: Final = 22
_LABEL: Final = 36
"""Characters of a bar's label that have room beside the bars."""
_WIDE: Final = 10
"""From so many columns on a table has smaller letters."""
_LONG_WORD: Final = 24
"""A word of more characters is broken where the line ends: digests, ids, long addresses. Words of
people are not, for a column is as wide as its longest one."""
_STYLE: Final = """
@page { size: A4 landscape; margin: 12mm; }
* { box-sizing: border-box; }
body { font: 10pt/1.4 system-ui, sans-serif; color: #1a1a1a; margin: 2em auto; max-width: 75em;
 padding: 0 1em; }
h1 { font-size: 18pt; margin: 0 0 .3em; }
h2 { font-size: 13pt; margin: 1.6em 0 .5em; }
dl.about { display: grid; grid-template-columns: max-content 1fr; gap: .2em 1em; margin: 0; }
dl.about dt { color: #555; }
dl.about dd { margin: 0; overflow-wrap: anywhere; }
ul.figures { display: flex; flex-wrap: wrap; gap: 1em; list-style: none; margin: 1em 0;
 padding: 0; }
ul.figures li { border: 1px solid #999; padding: .5em 1em; min-width: 9em; }
ul.figures strong { display: block; font-size: 16pt; }
svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: 8.5pt; }
table.wide { font-size: 7.5pt; }
th, td { border: 1px solid #bbb; padding: .25em .4em; text-align: left; vertical-align: top;
 overflow-wrap: break-word; }
td.long { min-width: 8em; overflow-wrap: anywhere; }
td span { white-space: nowrap; }
th { background: #eee; }
td.n { text-align: right; }
thead { display: table-header-group; }
tfoot { display: table-row-group; font-weight: bold; }
tr, li, svg { break-inside: avoid; }
code, pre { font-family: ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap; }
@media print { body { margin: 0; max-width: none; padding: 0; } }
"""


@dataclass(frozen=True, slots=True)
class Pruned:
    """Entries of the log that are in an archive alone."""

    org_id: str
    org_name: str
    sequence: int
    """Of the last one."""
    last_occurred_at: datetime
    """When the latest of them happened."""
    pruned_at: datetime
    archive_sha256: str


@dataclass(frozen=True, slots=True)
class About:
    """What stands above a report."""

    report_kind: str
    title: str
    text: str
    org_id: str
    org_name: str
    parameters: Mapping[str, Any]
    as_of: datetime
    made_from: Sequence[str]
    cryptography: str = ""
    """The FIPS module that made it; empty without FIPS mode."""
    pruned: Sequence[Pruned] = ()
    """What the log does not have any more that the report may be about, of the first chains"""
    pruned_chains: int = 0
    """of so many."""

    @property
    def period(self) -> str:
        """Which time it is about, for people to read."""
        start, until = self.parameters.get("from"), self.parameters.get("until")
        end = _shown_time(until) if until else _shown(self.as_of)
        return f"{_shown_time(start)} to {end}" if start else f"up to {end}"


def head(about: About, summary: Summary, rows: int) -> str:
    """The page up to its first table."""
    parameters = ", ".join(f"{worded(name)} {value}" for name, value in about.parameters.items())
    facts = {
        "Organisation": about.org_name,
        "Period": about.period,
        "As of": _shown(about.as_of),
        "Made from": ", ".join(about.made_from),
        "Parameters": parameters or "none",
        "Rows, of all tables": f"{rows:,}",
        **({"Cryptography": about.cryptography} if about.cryptography else {}),
    }
    if about.pruned:
        facts["Not in it"] = _missing(about)
    told = "".join(
        f"<dt>{escape(name)}</dt><dd><bdi>{escape(text)}</bdi></dd>" for name, text in facts.items()
    )
    figures = "".join(
        f"<li><strong>{figure.value:,}</strong>{escape(figure.label)}</li>"
        for figure in summary.figures
    )
    title = escape(f"{about.title}: {about.org_name}")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(CONTENT_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(about.title)}</h1>\n<p>{escape(about.text)}</p>\n"
        f'<dl class="about">{told}</dl>\n<h2>Summary</h2>\n<ul class="figures">{figures}</ul>\n'
        f"{_picture(summary)}\n"
    )


def _missing(about: About) -> str:
    """What was pruned of the log, of the first chains."""
    told = [
        f"{one.org_name}: entries up to no. {one.sequence:,}, of {_shown(one.last_occurred_at)} and"
        f" before, pruned {_shown(one.pruned_at)}, archive {one.archive_sha256}"
        for one in about.pruned[:_MOST_MISSING]
    ]
    left = about.pruned_chains - len(told)
    more = [f"and those of {left:,} more chains"] if left else []
    return f"what was pruned of the audit log. {'; '.join([*told, *more])}."


def begin_table(table: Table) -> str:
    """The beginning of a table."""
    labels = [column.label for column in table.columns if column.label]
    heads = "".join(f'<th scope="col">{escape(label)}</th>' for label in labels)
    size = ' class="wide"' if len(labels) >= _WIDE else ""
    return (
        f"<h2>{escape(table.title)}</h2>\n<table{size}>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n"
    )


def table_row(table: Table, row: Row) -> str:
    """A row of a table."""
    cells = "".join(
        _cell(worded(value) if column.coded and isinstance(value, str) else value)
        for column, value in zip(table.columns, row, strict=True)
        if column.label
    )
    return f"<tr>{cells}</tr>\n"


def end_table(table: Table, rows: int, sums: Mapping[str, int]) -> str:
    """The end of a table, with its totals.

    Args:
        rows: all rows, whether they are on the page or not.
        sums: of the columns that have one, by their names.
    """
    printed = [column for column in table.columns if column.label]
    cells = [f"<td>Total: {rows:,} {'row' if rows == 1 else 'rows'}</td>"]
    cells += [
        f'<td class="n">{sums[c.name]:,}</td>' if c.total else "<td></td>" for c in printed[1:]
    ]
    left = rows - MOST_PRINTED
    more = (
        f"<p>The page has the first {MOST_PRINTED:,} rows; {left:,} more are in the files of the"
        " other formats. The totals are those of all rows.</p>\n"
        if left > 0
        else ""
    )
    return f"</tbody>\n<tfoot><tr>{''.join(cells)}</tr></tfoot>\n</table>\n{more}"


def end() -> str:
    """The end of the page: how it is verified."""
    return (
        "<h2>How to verify this report</h2>\n"
        f"<p>The SHA-256 of this file stands in the report's signed manifest, <code>{MANIFEST}"
        "</code>, and the digest of the manifest in the entry <code>audit.report_created</code> of"
        " the audit log. With the manifest and the installation's public keys, which were fetched"
        " before and from elsewhere, this needs no server:</p>\n"
        f"<pre>evergreen reports verify {MANIFEST} --public-key audit-keys.pem</pre>\n"
        "</body>\n</html>\n"
    )


def _cell(value: Cell) -> str:
    if isinstance(value, bool):
        return f"<td>{'yes' if value else 'no'}</td>"
    if isinstance(value, int):
        return f'<td class="n">{value:,}</td>'
    if isinstance(value, float):
        return f'<td class="n">{value:g}</td>'
    if isinstance(value, datetime):
        day, time = _shown(value).split(" ", 1)
        return f"<td><span>{day}</span> <span>{time}</span></td>"
    if not value:
        return "<td></td>"
    is_long = any(len(word) > _LONG_WORD for word in value.split())
    opened = '<td class="long">' if is_long else "<td>"
    return f"{opened}<bdi>{escape(value)}</bdi></td>"


def _shown(at: datetime) -> str:
    return f"{to_second(at):%Y-%m-%d %H:%M} UTC"


def _shown_time(text: object) -> str:
    return f"{str(text)[:16].replace('T', ' ')} UTC"


def _picture(summary: Summary) -> str:
    """Bars, the longest as wide as the picture; each says its number, too, and so does the
    description, for those who do not see it."""
    most = max((bar.value for bar in summary.bars), default=0) or 1
    lines = "".join(_bar(number, bar, most) for number, bar in enumerate(summary.bars))
    told = "; ".join(f"{bar.label}: {bar.value:,}" for bar in summary.bars) or "nothing"
    height = _LINE * max(len(summary.bars), 1) + 6
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {height}" width="720"'
        f' height="{height}" role="img" aria-label="{escape(summary.chart)}">'
        f"<title>{escape(summary.chart)}</title><desc>{escape(told)}</desc>{lines}</svg>"
    )


def _bar(number: int, bar: Figure, most: int) -> str:
    top = number * _LINE + 3
    width = bar.value * _BAR // most
    label = bar.label if len(bar.label) <= _LABEL else f"{bar.label[: _LABEL - 1]}…"
    return (
        f'<text x="0" y="{top + 13}" font-size="12" unicode-bidi="isolate">{escape(label)}</text>'
        f'<rect x="270" y="{top}" width="{width}" height="16" fill="#4a6fa5"/>'
        f'<text x="{276 + width}" y="{top + 13}" font-size="12">{bar.value:,}</text>'
    )
