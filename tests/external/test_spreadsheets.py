"""Exported files in LibreOffice, as a school's administrator opens them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from tests.e2e.world import make_org
from tests.support import debian
from tests.support.stack import PATIENCE, Stack, until

_FORMULAS: Final = ("=1+1", "@SUM(1)", "\uff1d1+1", 'x;=1+1;"=1+1', "x\n=1+1", "+1|=1+1")
_UTF_8: Final = 76
_OFFICE: Final = "{urn:oasis:names:tc:opendocument:xmlns:%s:1.0}%s"
_ROW: Final = _OFFICE % ("table", "table-row")
_CELL: Final = _OFFICE % ("table", "table-cell")
_FORMULA: Final = _OFFICE % ("table", "formula")
_REPEATED: Final = _OFFICE % ("table", "number-columns-repeated")
_TEXT: Final = _OFFICE % ("text", "p")


def opened(folder: Path, separator: str, *files: Path) -> list[ElementTree.Element]:
    """Files in the format of a spreadsheet, after LibreOffice has opened them."""
    out = folder / f"separator-{ord(separator)}"
    subprocess.run(
        [
            *("soffice", "--headless", "--norestore", f"-env:UserInstallation=file://{folder}/lo"),
            f"--infilter=CSV:{ord(separator)},34,{_UTF_8}",
            *("--convert-to", "fods", "--outdir", out, *files),
        ],
        check=True,
        capture_output=True,
        timeout=300,
    )
    return [ElementTree.parse(out / f"{file.stem}.fods").getroot() for file in files]


def rows(sheet: ElementTree.Element) -> list[list[str]]:
    found = []
    for row in sheet.iter(_ROW):
        texts: list[str] = []
        for cell in row.iter(_CELL):
            text = "\n".join("".join(p.itertext()) for p in cell.iter(_TEXT))
            # Empty cells up to the sheet's end are one that is repeated.
            texts += [text] * min(int(cell.get(_REPEATED, "1")), 50)
        found.append(texts)
    return found


def test_files_open_in_a_spreadsheet(stack: Stack, tmp_path: Path) -> None:
    """Columns, accents and rows are as they were sent, and nothing is a formula.

    With the comma, and with the semicolon that other countries have.
    """
    debian.require("soffice")
    with stack.first_owner() as root:
        org = make_org(stack, root, "École Žižka")
        agent = org.device()
        for formula in _FORMULAS:
            agent.record("app.installed", {"severity": "info", "message": formula, "x": formula})
        agent.record("app.installed", {"message": "Schüler", "numbers": [1, -1]})
        assert agent.send_events() == len(_FORMULAS) + 1
        files = []
        for name, last in (("devices", agent.device_id), ("events", "Schüler"), ("audit", "Žižka")):
            file = tmp_path / f"{name}.csv"

            def is_there(name: str = name, last: str = last, file: Path = file) -> bool:
                answer = org.owner.get(f"/api/{name}/export", params={"format": "csv"})
                file.write_bytes(answer.content)
                return last in answer.text

            until(is_there, PATIENCE, f"{last} is in no file")
            files.append(file)
        listed = org.owner.get("/api/devices").json()["devices"]
        for separator in ",;":
            sheets = opened(tmp_path, separator, *files)
            assert [cell for sheet in sheets for cell in sheet.iter() if cell.get(_FORMULA)] == []
        devices, events, audit = (rows(sheet) for sheet in opened(tmp_path, ",", *files))
    head, *some = devices
    assert head[:3] == ["serialNumber", "id", "hostname"]
    assert [row[:3] for row in some if any(row)] == [
        [device["serialNumber"], device["id"], device["hostname"]] for device in listed
    ]
    messages = [row[events[0].index("message")] for row in events[1:] if any(row)]
    assert "Schüler" in messages
    assert len(messages) == len(_FORMULAS) + 1
    assert {m.replace("'", "") for m in messages if m.startswith("'")} >= {"=1+1", "@SUM(1)"}
    assert any("École Žižka" in cell for row in audit for cell in row)
