"""CSV for spreadsheets: what is quoted, and what could be a formula."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.spreadsheet import csv_line, harmless, harmless_json


@pytest.mark.parametrize("sign", "=+-@\uff1d\uff0b\uff0d\uff20")
def test_a_cell_is_no_formula(sign: str) -> None:
    """At its beginning, and behind what other settings of a spreadsheet take for a separator."""
    formula = f"{sign}1+1"
    for begin in ("", " ", '"', '" '):
        assert harmless(begin + formula) == f"'{begin}{formula}"
    for separator in (";", "|", "\t", "\r\n", '; "'):
        assert harmless(f"a{separator}{formula}") == f"a{separator}'{formula}"
    for harm in (f"a{formula}", f"a {formula}", f"a,{formula}", ""):
        assert harmless(harm) == harm
    for begin in "\t\r\n":
        assert harmless(f"{begin}a") == f"'{begin}a"
        assert harmless(begin + formula) == f"'{begin}'{formula}"


@given(st.lists(st.text(), min_size=1))
def test_cells_come_back(cells: list[str]) -> None:
    """From every reader of RFC 4180, with the apostrophes."""
    line = csv_line(cells)
    (found,) = csv.reader(io.StringIO(line, newline="")) if line else [[""]]
    assert found == [harmless(cell) for cell in cells]


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text())))
def test_json_in_a_cell_stays_json(value: dict[str, object]) -> None:
    """Of the same value, and without an apostrophe."""
    value |= {"a": ';=1|@2;"-3', "b": [-1]}
    for indent in (None, "\t"):
        text = harmless_json(json.dumps(value, ensure_ascii=False, indent=indent))
        assert json.loads(text) == value
        assert harmless(text) == text
