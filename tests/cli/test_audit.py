"""`evergreen audit export`: what it does with an answer that is not whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cli.audit import app

LINES = b'{"format":"evergreen-audit/1"}\n{"entry":{}}\n'
ROWS = b'\xef\xbb\xbfoccurredAt,tenantId\r\n2026-11-24,"a\r\nb"'


class FakeApi:
    """Answers the parts of an export."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = parts

    def stream(self, path: str, **parameters: str) -> Iterator[bytes]:
        yield from self._parts


def export(monkeypatch: pytest.MonkeyPatch, api: FakeApi, *options: str) -> Result:
    @contextmanager
    def logged_in(*_: Any) -> Iterator[FakeApi]:
        yield api

    monkeypatch.setattr("cli.audit.session", logged_in)
    return CliRunner().invoke(app, ["export", *options])


@pytest.mark.parametrize("reason", ["", " ", "a\nb", "a\0", "a\udc80", "x" * 501])
def test_a_reason_that_cannot_be_shown_is_refused(reason: str) -> None:
    """It stays in the log for ever, and goes to all forwarders."""
    entry = "01930000-0000-7000-8000-0000000000dd"
    done = CliRunner().invoke(app, ["redact", entry, "--reason", reason, "--yes"])
    assert done.exit_code == 2
    assert "--reason must have 1 to 500 characters" in done.output


@pytest.mark.parametrize(
    ("kind", "text", "end"),
    [("jsonl", LINES, b'{"end":{"entries":1}}\n'), ("csv", ROWS, b"\r\n")],
)
def test_a_whole_export_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, text: bytes, end: bytes
) -> None:
    """In whatever parts it comes."""
    whole = text + end
    file = tmp_path / "audit"
    for size in (1, 7, len(whole)):
        parts = [whole[at : at + size] for at in range(0, len(whole), size)]
        done = export(monkeypatch, FakeApi(*parts), "--format", kind, "-o", str(file))
        assert done.exit_code == 0, done.output
        assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("jsonl", b""),
        ("jsonl", LINES),
        ("jsonl", LINES + b'{"end":{"entries":1}}'),
        ("csv", b""),
        ("csv", ROWS),
    ],
)
def test_an_export_that_broke_off_is_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, text: bytes
) -> None:
    """It says so, and does not end well, be it to a file or not."""
    file = tmp_path / "audit"
    for options in (["-o", str(file)], []):
        done = export(monkeypatch, FakeApi(text), "--format", kind, *options)
        assert done.exit_code == 2
        assert "not whole" in done.stderr
    assert not file.exists()
