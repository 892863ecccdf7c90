"""CSV as spreadsheets open it (RFC 4180), of which no cell is taken for a formula.

A file begins with a byte order mark, without which Excel takes UTF-8 for another encoding. Line
breaks stand between the lines, and the last one only behind the last line of a complete file: a
file that was cut off between two pieces has none there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

BYTE_ORDER_MARK: Final = "\ufeff"
LINE_BREAK: Final = "\r\n"

_SIGNS: Final = r"=+\-@\uff1d\uff0b\uff0d\uff20"
"""What a formula begins with, in the usual and in the full-width forms (OWASP, CSV Injection)."""
_AT_THE_BEGINNING: Final = re.compile(rf'[\t\r\n]|[\s"]*[{_SIGNS}]')
# In countries with a decimal comma, spreadsheets split lines at semicolons, whatever is quoted.
_BEHIND_A_SEPARATOR: Final = re.compile(rf'([;|\t\r\n][\s"]*)(?=[{_SIGNS}])')
_JSON_SEPARATOR: Final = re.compile(rf'[;|](?=[\s"]*[{_SIGNS}])')
_TO_SPACES: Final = str.maketrans("\t\r\n", "   ")
_QUOTED: Final = re.compile(r'[,;|\t\r\n"]')


def csv_line(cells: Iterable[str]) -> str:
    """One line, without its line break; cells that could be formulas become texts."""
    return ",".join(map(_written, cells))


def _written(cell: str) -> str:
    if _QUOTED.search(cell) is None:
        # Nothing in it separates: only its beginning counts.
        return f"'{cell}" if _AT_THE_BEGINNING.match(cell) is not None else cell
    return '"' + harmless(cell).replace('"', '""') + '"'


def harmless(cell: str) -> str:
    """The cell with an apostrophe before each part that a spreadsheet could take for a formula."""
    if _AT_THE_BEGINNING.match(cell) is not None:
        cell = f"'{cell}"
    return _BEHIND_A_SEPARATOR.sub(r"\1'", cell)


def harmless_json(text: str) -> str:
    """The JSON text of an object or a list as a cell that `harmless` leaves as it is.

    It stays JSON of the same value: separators inside of its strings are escaped, and tabs and line
    breaks, which stand between its parts only, become spaces.
    """
    return _JSON_SEPARATOR.sub(lambda found: rf"\u{ord(found[0]):04x}", text.translate(_TO_SPACES))
