"""What `--help` shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from cli.main import app
from cli.plain_help import plain_word


def _commands(command: Any, *words: str) -> Iterator[tuple[str, ...]]:
    below = getattr(command, "commands", {})
    if not below:
        yield words
    for name, one in below.items():
        yield from _commands(one, *words, name)


def test_no_command_shows_types_of_programs() -> None:
    """Words for values are plain ones: no `<bool>`, no `<int range>`."""
    runner = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"})
    shown = {}
    for words in _commands(get_command(app)):
        done = runner.invoke(app, [*words, "--help"])
        assert done.exit_code == 0, words
        shown[words] = done.output
    assert len(shown) > 100
    wrong = {
        " ".join(words): found
        for words, text in shown.items()
        if (found := re.findall(r"<[a-z][^>]*>|\b(?:str|int|bool)\b", text))
    }
    assert wrong == {}
    said = shown["orgs", "sign-in"]
    assert re.search(r"--grace-days +NUMBER", said)
    assert re.search(r"--mfa +TEXT", said)
    assert re.search(r"--yes +Do not ask", said)


@pytest.mark.parametrize(
    ("label", "word"),
    [
        ("<int range>", "NUMBER"),
        ("<list[str]>", "TEXT..."),
        ("<csv|json>", "csv|json"),
        ("<path>", "PATH"),
    ],
)
def test_words_for_values(label: str, word: str) -> None:
    """What is not known keeps its name."""
    assert plain_word(label) == word
