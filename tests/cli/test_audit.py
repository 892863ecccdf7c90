"""`evergreen audit`: what its commands make of what the API answers."""

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

DEVICE = {"resource": "devices/0193", "resourceName": "C02XK1"}
SESSION = {"resource": "users/0195/sessions/1", "resourceName": "a@school.example"}
ENTRIES = [
    {"occurredAt": "2026-11-24T08:00:01.123456Z", "action": "policy.updated", **DEVICE},
    {"occurredAt": "2026-11-24T08:00:00Z", "resource": "policies/0194"},
    {"occurredAt": "2026-11-24T08:00:00Z", **SESSION},
]


class FakeApi:
    """Answers the parts of an export."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = parts

    def answers(self, path: str, *_: object, **parameters: object) -> Iterator[dict[str, Any]]:
        yield {"entries": [dict(one) for one in ENTRIES]}

    def stream(self, path: str, **parameters: str) -> Iterator[bytes]:
        yield from self._parts


def export(monkeypatch: pytest.MonkeyPatch, api: FakeApi, *options: str) -> Result:
    @contextmanager
    def logged_in(*_: Any) -> Iterator[FakeApi]:
        yield api

    monkeypatch.setattr("cli.audit.session", logged_in)
    return CliRunner().invoke(app, ["export", *options])


def test_a_list_says_what_people_called_things(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its id what has no name, or is only a part of what has one."""

    @contextmanager
    def logged_in(*_: Any) -> Iterator[FakeApi]:
        yield FakeApi()

    monkeypatch.setattr("cli.audit.session", logged_in)
    done = CliRunner().invoke(app, ["list"])
    assert done.exit_code == 0, done.output
    head, *lines = done.output.splitlines()
    assert head.split("  ")[0] == "TIME (UTC)"
    assert "2026-11-24 08:00:01" in lines[0]
    assert "devices C02XK1" in lines[0]
    assert "policies/0194" in lines[1]
    assert "users/0195/sessions/1" in lines[2]
    as_json = CliRunner().invoke(app, ["list", "--json"]).output
    assert '"resource": "devices/0193", "resourceName": "C02XK1"' in as_json


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
