"""Lists of devices as schools' programs write them."""

from __future__ import annotations

from typing import Any

import pytest

from cli.errors import CliError
from cli.roster import Roster, read_roster

ROW = {"line": 2, "serial": "5CD1", "assetTag": "A-1", "labels": {"room": "Büro 2"}}


def read(data: bytes | str, **more: Any) -> Roster:
    given = {"mapped": {}, "ignored": [], "clear_empty": False} | more
    return read_roster(data.encode() if isinstance(data, str) else data, **given)


GERMAN = "Seriennummer;Inventarnummer;Raum\r\n5CD1;A-1;Büro 2\r\n"


@pytest.mark.parametrize(
    ("data", "about"),
    [
        (GERMAN.encode(), "CSV with ;, UTF-8"),
        (GERMAN.encode("utf-8-sig"), "CSV with ;, UTF-8"),
        (GERMAN.encode("cp1252"), "CSV with ;, Windows-1252"),
        (GERMAN.replace(";", "\t").encode("utf-16"), "CSV with tab, UTF-16"),
        (GERMAN.replace(";", ",").replace("\r\n", "\r").encode(), "CSV with ,, UTF-8"),
        (GERMAN.replace(";", "|").encode(), "CSV with |, UTF-8"),
        (GERMAN.replace("Büro", "Bu\u0308ro").encode(), "CSV with ;, UTF-8"),
        (GERMAN.replace("5CD1", "\ufeff 5CD1\u00a0").encode(), "CSV with ;, UTF-8"),
        (GERMAN.replace("A-1", '="A-1"').encode(), "CSV with ;, UTF-8"),
    ],
)
def test_what_spreadsheets_write_is_read(data: bytes, about: str) -> None:
    """Encodings, separators, line ends, invisible characters, guards."""
    found = read(data)
    assert list(found.rows) == [ROW]
    assert found.about == about


def test_lines_keep_their_numbers() -> None:
    """Behind `sep=`, blank lines, and cells of several lines."""
    text = 'sep=;\nserial;note\n\n5CD1;"two\nlines"\n;;\n5CD2;x\n'
    assert [(r["line"], r["serial"], r["note"]) for r in read(text).rows] == [
        (4, "5CD1", "two\nlines"),
        (7, "5CD2", "x"),
    ]


def test_cells_say_what_is_set_and_what_goes() -> None:
    """Empty leaves, `-` removes; so does empty where that is asked for."""
    text = "SERIAL,label:Year,groups,model,Farbe,Extra\n5CD1,,a | b,-,rot,x\n"
    options: dict[str, Any] = {"mapped": {"farbe": "label:colour"}, "ignored": ["EXTRA"]}
    (row,) = read(text, **options).rows
    assert row == {
        "line": 2,
        "serial": "5CD1",
        "groups": ["a", "b"],
        "model": "",
        "labels": {"colour": "rot"},
    }
    (row,) = read(text, **options, clear_empty=True).rows
    assert row["removeLabels"] == ["year"]
    (row,) = read("serial,room\n5CD1,-\n").rows
    assert row == {"line": 2, "serial": "5CD1", "removeLabels": ["room"]}


def test_json_is_taken_as_the_api_has_it() -> None:
    """A list, or an object a line."""
    one, two = '{"serial": "5CD1", "labels": {"room": "1"}}', '{"serial": "5CD2", "line": 9}'
    for text in (f"[{one}, {two}]", f"{one}\n{two}\n"):
        found = read(text)
        assert found.about == "JSON"
        assert [row["line"] for row in found.rows] == [1, 9]
        assert found.rows[0]["labels"] == {"room": "1"}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("room\n214\n", "no column is the serial number: room"),
        ("serial,Farbe\n1,2\n", "column Farbe is not known; give --map 'Farbe=label:farbe'"),
        ("serial,Raum,room\n1,2,3\n", "two columns are label:room"),
        ("serial,room\n,214\n", "line 2 has no serial number"),
        ('serial\n"8,9E+11"\n', "line 2: 8,9E+11 looks like what a spreadsheet made"),
        ("serial,room\n5CD1,2,3\n", "line 2 has 3 cells, and the header 2"),
        ("PK\x03\x04", "save it as CSV"),
        ("[1]", "entry 1 is no object with a serial number"),
        ("[{]", "the file is no JSON"),
        ("serial\n" + "x" * 200_000, "line 2 cannot be read: field larger"),
    ],
)
def test_what_is_not_certain_is_refused(data: str, said: str) -> None:
    """With the line, and what to do."""
    with pytest.raises(CliError) as refused:
        read(data)
    assert said in str(refused.value)
