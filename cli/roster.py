"""Lists of devices in files: CSV as schools' programs write it, and JSON.

A spreadsheet's file has one of several encodings, separators and languages, and damages some serial
numbers. What cannot be read for certain is refused, with its line.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cli.errors import CliError

_HEADERS: Final = {
    "serial": "serial",
    "serialnumber": "serial",
    "seriennummer": "serial",
    "servicetag": "serial",
    "assettag": "assetTag",
    "annotatedassetid": "assetTag",
    "inventarnummer": "assetTag",
    "model": "model",
    "modell": "model",
    "groups": "groups",
    "gruppen": "groups",
    "note": "note",
    "notiz": "note",
    "room": "label:room",
    "location": "label:room",
    "annotatedlocation": "label:room",
    "raum": "label:room",
}
_SEPARATORS: Final = ";,\t|"
_EDGES: Final = " \t\r\n\u00a0\u200b\u200c\u200d\ufeff"
_DAMAGED: Final = re.compile(r"\d+[.,]\d+[Ee]\+?\d+")
_GUARD: Final = re.compile(r"'(?=[=+\-@\t\r])|^=\"(.*)\"$")
_CLEAR: Final = "-"
_LABEL: Final = "label:"
_MOST_BYTES: Final = 64 << 20
_ZIP: Final = b"PK\x03\x04"


@dataclass(frozen=True, slots=True)
class Roster:
    """The rows of a file, as the API takes them, and how it was read."""

    rows: Sequence[Mapping[str, Any]]
    about: str


def read_roster(
    data: bytes, *, mapped: Mapping[str, str], ignored: Iterable[str], clear_empty: bool
) -> Roster:
    """Reads a file.

    Args:
        data: its bytes.
        mapped: column → what it is, such as `label:colour`.
        ignored: columns that are left out.
        clear_empty: whether an empty cell removes what is known.

    Raises:
        CliError: with the line and what is wrong.
    """
    if len(data) > _MOST_BYTES:
        raise CliError("the file is too large to be a list of devices")
    if data.startswith(_ZIP):
        raise CliError("this is a spreadsheet's own format; save it as CSV")
    text, encoding = _decoded(data)
    if text.lstrip(_EDGES)[:1] in {"[", "{"}:
        return Roster(_from_json(text), "JSON")
    lines, separator = _lines(text)
    names = _columns(lines[0][1], mapped, {_plain(name) for name in ignored})
    rows = []
    for number, cells in lines[1:]:
        if len(cells) > len(names) and any(cells[len(names) :]):
            raise CliError(f"line {number} has {len(cells)} cells, and the header {len(names)}")
        rows.append(_row(number, dict(zip(names, cells, strict=False)), clear_empty=clear_empty))
    shown = {"\t": "tab"}.get(separator, separator)
    return Roster(rows, f"CSV with {shown}, {encoding}")


def _decoded(data: bytes) -> tuple[str, str]:
    for mark, encoding in (
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
        (b"\xef\xbb\xbf", "utf-8-sig"),
    ):
        if data.startswith(mark):
            return data.decode(encoding, "replace"), encoding.upper().removesuffix("-SIG")
    try:
        return data.decode("utf-8"), "UTF-8"
    except UnicodeDecodeError:
        # What spreadsheets write in western Europe; a few bytes mean nothing in it.
        return data.decode("cp1252", "replace"), "Windows-1252"


def _lines(text: str) -> tuple[list[tuple[int, list[str]]], str]:
    """The lines that have something in them, with their numbers; and what separates cells."""
    skipped = 0
    first = text.partition("\n")[0].strip(_EDGES)
    if first.lower().startswith("sep=") and len(first) == len("sep=") + 1:
        separator, skipped = first[-1], 1
        text = text.partition("\n")[2]
        first = text.partition("\n")[0]
    else:
        separator = max(_SEPARATORS, key=first.count)
    reader = csv.reader(
        io.StringIO(text.replace("\r\n", "\n").replace("\r", "\n")), delimiter=separator
    )
    lines, begin = [], 1 + skipped
    try:
        for cells in reader:
            cleaned = [_cell(cell) for cell in cells]
            if any(cleaned):
                lines.append((begin, cleaned))
            begin = reader.line_num + 1 + skipped
    except csv.Error as broken:
        raise CliError(f"line {begin} cannot be read: {broken}") from broken
    if not lines:
        raise CliError("the file is empty")
    return lines, separator


def _cell(text: str) -> str:
    text = unicodedata.normalize("NFC", text.strip(_EDGES))
    found = _GUARD.match(text)
    if found is None:
        return text
    return found[1] if found[1] is not None else text[1:]


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]+", "", name).lower()


def _columns(header: Sequence[str], mapped: Mapping[str, str], ignored: set[str]) -> list[str]:
    """What each column is; empty for one that is left out."""
    meanings = {_plain(name): what for name, what in mapped.items()}
    names = []
    for cell in header:
        plain = _plain(cell)
        if plain in ignored or not plain:
            names.append("")
            continue
        if plain in meanings:
            name = meanings[plain]
        elif cell.lower().startswith(_LABEL):
            name = _LABEL + cell[len(_LABEL) :].strip().lower()
        elif (known := _HEADERS.get(plain)) is not None:
            name = known
        else:
            raise CliError(
                f"column {cell} is not known; give --map '{cell}=label:{plain}'"
                f" or --ignore-columns '{cell}'"
            )
        if name in names:
            raise CliError(f"two columns are {name}: {', '.join(header)}")
        names.append(name)
    if "serial" not in names:
        raise CliError(f"no column is the serial number: {', '.join(header)}")
    return names


def _row(line: int, cells: Mapping[str, str], *, clear_empty: bool) -> dict[str, Any]:
    serial = cells["serial"]
    if not serial:
        raise CliError(f"line {line} has no serial number")
    if _DAMAGED.fullmatch(serial):
        raise CliError(
            f"line {line}: {serial} looks like what a spreadsheet made of a serial number;"
            " format the column as text"
        )
    row: dict[str, Any] = {"line": line, "serial": serial}
    labels, removed = {}, []
    for name, text in cells.items():
        value = "" if text == _CLEAR else text
        if name in {"", "serial"} or (not text and not clear_empty):
            continue
        if name == "groups":
            row["groups"] = [alias for part in value.split("|") if (alias := part.strip())]
        elif not name.startswith(_LABEL):
            row[name] = value
        elif value:
            labels[name.removeprefix(_LABEL)] = value
        else:
            removed.append(name.removeprefix(_LABEL))
    return (
        row
        | ({"labels": labels} if labels else {})
        | ({"removeLabels": removed} if removed else {})
    )


def _from_json(text: str) -> list[dict[str, Any]]:
    """A list of objects, or an object a line, with the members of the API."""
    text = text.strip(_EDGES)
    try:
        found = json.loads(text) if text.startswith("[") else [*_objects(text)]
    except ValueError as broken:
        raise CliError(f"the file is no JSON: {broken}") from broken
    rows = []
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict) or not isinstance(row.get("serial"), str):
            raise CliError(f"entry {number} is no object with a serial number, `serial`")
        rows.append({"line": number} | row)
    return rows


def _objects(text: str) -> Iterator[Any]:
    for line in text.splitlines():
        if line.strip():
            yield json.loads(line)
