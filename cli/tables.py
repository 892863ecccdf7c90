"""How results are printed: tables of lists, in columns as wide as they need, times, numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import typer


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table.

    Args:
        names: of the columns.
        rows: a text for each column. Clients say some of it: what would control the terminal
            is shown as in a program, such as `\\x1b`.
    """
    lines = [names, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def show_list(
    found: Iterable[Mapping[str, Any]],
    names: Sequence[str],
    row: Callable[[Any], Sequence[str]],
    *,
    as_json: bool,
) -> None:
    """Prints a list of the API: as a table, or as JSON, an object a line.

    Args:
        found: what the API answered.
        names: of the columns.
        row: makes a row out of an item.
    """
    if as_json:
        lines = [json.dumps(one, ensure_ascii=False) for one in found]
    else:
        lines = table(names, [row(one) for one in found])
    for line in lines:
        typer.echo(line)


def moment(text: str | None) -> str:
    """A time of the API as people read it, to the second; its column or sentence says UTC."""
    return text[:19].replace("T", " ") if text else "-"


def counted(number: int, noun: str) -> str:
    """A number with its noun, such as `1 device` and `2 devices`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def printable(text: str) -> str:
    """A text of a client, whose characters that would control the terminal are shown."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text
    )
