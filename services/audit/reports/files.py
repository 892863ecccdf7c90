"""The files of a report: rows become CSV, JSON and HTML as they come, and go away in parts.

What stands at the beginning of a file and is known last, such as a summary, is its part 0.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from servicekit.security.digests import sha256_hex
from servicekit.spreadsheet import BYTE_ORDER_MARK, LINE_BREAK, csv_line
from services.audit.reports import page
from services.audit.reports.domain import Cell, Row, Summary, Table, written
from services.audit.reports.page import About

PART_BYTES: Final = 1 << 20
"""Of a part of a file."""
_SLICE: Final = 50
"""Rows that are written before others have their turn."""

Keep = Callable[[str, int, bytes], Awaitable[None]]
"""Keeps a part of a file: the file's name, the part's number from 0, its bytes."""


class Form(Protocol):
    """How a report becomes a file."""

    name: str
    media_type: str

    def begin_table(self, table: Table) -> str:
        """What stands before the rows of a table."""

    def row(self, table: Table, row: Row, number: int) -> str:
        """A row; `number` counts from 0 in its table."""

    def end_table(self, table: Table, rows: int, sums: dict[str, int]) -> str:
        """What stands behind the rows of a table."""

    def end(self) -> str:
        """The end of the file."""

    def head(self, about: About, summary: Summary, rows: int) -> str:
        """The beginning of the file."""


class CsvForm:
    """A table for spreadsheets; those of others are files of their own."""

    media_type = "text/csv; charset=utf-8"

    def __init__(self, name: str, table: Table) -> None:
        self.name = f"{name}.csv"
        self._table = table

    def begin_table(self, table: Table) -> str:
        """The header."""
        if table is not self._table:
            return ""
        return BYTE_ORDER_MARK + csv_line(column.name for column in table.columns) + LINE_BREAK

    def row(self, table: Table, row: Row, number: int) -> str:
        """A line."""
        return csv_line(map(_text, row)) + LINE_BREAK if table is self._table else ""

    def end_table(self, table: Table, rows: int, sums: dict[str, int]) -> str:
        """Nothing: a line of totals would be read as a row."""
        return ""

    def end(self) -> str:
        """Nothing."""
        return ""

    def head(self, about: About, summary: Summary, rows: int) -> str:
        """Nothing."""
        return ""


class JsonForm:
    """One object: what the report is, and a list of objects for each table."""

    media_type = "application/json"

    def __init__(self, name: str) -> None:
        self.name = f"{name}.json"

    def begin_table(self, table: Table) -> str:
        """The list's name."""
        return f",\n{_json(table.name)}: ["

    def row(self, table: Table, row: Row, number: int) -> str:
        """An object."""
        values = {c.name: _value(v) for c, v in zip(table.columns, row, strict=True)}
        return f"{',' if number else ''}\n{_json(values)}"

    def end_table(self, table: Table, rows: int, sums: dict[str, int]) -> str:
        """The list's end."""
        return "\n]"

    def end(self) -> str:
        """The object's end."""
        return "\n}\n"

    def head(self, about: About, summary: Summary, rows: int) -> str:
        """What the report is."""
        pruned = [
            {
                "orgId": one.org_id,
                "orgName": one.org_name,
                "sequence": one.sequence,
                "lastOccurredAt": written(one.last_occurred_at),
                "prunedAt": written(one.pruned_at),
                "archiveSha256": one.archive_sha256,
            }
            for one in about.pruned
        ]
        manifest = {
            "kind": about.report_kind,
            "title": about.title,
            "orgId": about.org_id,
            "orgName": about.org_name,
            "parameters": about.parameters,
            "asOf": written(about.as_of),
            "madeFrom": list(about.made_from),
            "rows": rows,
            **({"cryptography": about.cryptography} if about.cryptography else {}),
            "figures": {figure.label: figure.value for figure in summary.figures},
            **({"pruned": pruned, "prunedChains": about.pruned_chains} if pruned else {}),
        }
        return f'{{\n"manifest": {_json(manifest)}'


class HtmlForm:
    """One page (`page`)."""

    media_type = "text/html; charset=utf-8"

    def __init__(self, name: str) -> None:
        self.name = f"{name}.html"

    def begin_table(self, table: Table) -> str:
        """The table's head."""
        return page.begin_table(table)

    def row(self, table: Table, row: Row, number: int) -> str:
        """A row, of the first ones."""
        return page.table_row(table, row) if number < page.MOST_PRINTED else ""

    def end_table(self, table: Table, rows: int, sums: dict[str, int]) -> str:
        """The totals."""
        return page.end_table(table, rows, sums)

    def end(self) -> str:
        """How to verify it."""
        return page.end()

    def head(self, about: About, summary: Summary, rows: int) -> str:
        """The summary."""
        return page.head(about, summary, rows)


def forms_of(name: str, tables: Sequence[Table], formats: Sequence[str]) -> list[Form]:
    """The files of a report, in the order of its formats and tables."""
    forms: list[Form] = []
    if "csv" in formats:
        forms += [
            CsvForm(f"{name}-{table.name}" if number else name, table)
            for number, table in enumerate(tables)
        ]
    if "json" in formats:
        forms.append(JsonForm(name))
    if "html" in formats:
        forms.append(HtmlForm(name))
    return forms


@dataclass(frozen=True, slots=True)
class Part:
    """What was kept as a part of a file."""

    size: int
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> Part:
        """The part with a content."""
        return cls(len(content), sha256_hex(content))


class Parts:
    """Gathers the text of a file until it is a part."""

    def __init__(self, name: str, keep: Keep) -> None:
        self.name = name
        self._keep = keep
        self._buffer = bytearray()
        self._next = 1
        self.bytes = 0
        """Of all that was written."""
        self.kept: dict[int, Part] = {}
        """What was kept, by the parts' numbers."""

    async def write(self, text: str) -> None:
        """Adds a text."""
        # What cannot be encoded, a lone surrogate, is shown as what it is.
        data = text.encode("utf-8", "backslashreplace")
        self.bytes += len(data)
        self._buffer += data
        while len(self._buffer) >= PART_BYTES:
            part = bytes(self._buffer[:PART_BYTES])
            del self._buffer[:PART_BYTES]
            await self._put(self._next, part)
            self._next += 1

    async def _put(self, number: int, content: bytes) -> None:
        await self._keep(self.name, number, content)
        self.kept[number] = Part.of(content)

    async def close(self, head: str) -> None:
        """Keeps the rest, and what stands before all."""
        if self._buffer:
            await self._put(self._next, bytes(self._buffer))
        data = head.encode("utf-8", "backslashreplace")
        self.bytes += len(data)
        if data:
            await self._put(0, data)


class Files:
    """Writes the files of a report at once.

    Args:
        name: of the files, without an ending.
        tables: of the report.
        formats: of the files.
        keep: takes the parts.
    """

    def __init__(
        self, name: str, tables: Sequence[Table], formats: Sequence[str], keep: Keep
    ) -> None:
        self._tables = tables
        self._forms = forms_of(name, tables, formats)
        self._parts = [Parts(form.name, keep) for form in self._forms]
        self._at = -1
        self._rows = 0
        self._sums: dict[str, int] = {}
        self.rows = 0
        """Of all tables."""

    @property
    def bytes(self) -> int:
        """Of all files, up to now."""
        return sum(parts.bytes for parts in self._parts)

    @property
    def names(self) -> list[tuple[str, str]]:
        """The files' names and media types."""
        return [(form.name, form.media_type) for form in self._forms]

    def kept(self, name: str) -> Mapping[int, Part]:
        """What was kept of a file, by the numbers of its parts."""
        return next(parts.kept for parts in self._parts if parts.name == name)

    async def add(self, table: int, rows: Sequence[Row]) -> None:
        """Writes rows of a table; tables come one behind the other."""
        while self._at < table:
            await self._next_table()
        shown = self._tables[table]
        for begin in range(0, len(rows), _SLICE):
            some = rows[begin : begin + _SLICE]
            for form, parts in zip(self._forms, self._parts, strict=True):
                await parts.write(
                    "".join(form.row(shown, row, self._rows + n) for n, row in enumerate(some))
                )
            self._rows += len(some)
            self.rows += len(some)
            self._count(shown, some)
            await asyncio.sleep(0)

    def _count(self, table: Table, rows: Sequence[Row]) -> None:
        for index, column in enumerate(table.columns):
            if column.total:
                values = (row[index] for row in rows)
                self._sums[column.name] += sum(v for v in values if isinstance(v, int))

    async def _next_table(self) -> None:
        await self._end_table()
        self._at += 1
        self._rows = 0
        table = self._tables[self._at]
        self._sums = {column.name: 0 for column in table.columns if column.total}
        for form, parts in zip(self._forms, self._parts, strict=True):
            await parts.write(form.begin_table(table))

    async def _end_table(self) -> None:
        if self._at < 0:
            return
        table = self._tables[self._at]
        for form, parts in zip(self._forms, self._parts, strict=True):
            await parts.write(form.end_table(table, self._rows, self._sums))

    async def close(self, about: About, summary: Summary) -> None:
        """Writes what stands at the ends and at the beginnings."""
        while self._at < len(self._tables) - 1:
            await self._next_table()
        await self._end_table()
        for form, parts in zip(self._forms, self._parts, strict=True):
            await parts.write(form.end())
            await parts.close(form.head(about, summary, self.rows))


def _text(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(_value(value))


def _value(value: Cell) -> Any:
    return written(value) if isinstance(value, datetime) else value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
