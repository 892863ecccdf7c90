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


def _leaves(command: Any) -> Iterator[Any]:
    below = getattr(command, "commands", {}).values()
    if not below:
        yield command
    for one in below:
        yield from _leaves(one)


def test_no_command_shows_types_of_programs() -> None:
    """Words for values are plain ones: no `<bool>`, no `<int range>`."""
    shown = {
        one.display_type(None)
        for command in _leaves(get_command(app))
        for one in command.params
        if one.name != "help"
    }
    assert len(shown) > 5
    for word in shown:
        assert not re.search(r"<|\b(?:str|int|bool|float|list|range)\b", word), word


def test_help_shows_them() -> None:
    """And nothing beside a switch."""
    runner = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"})
    done = runner.invoke(app, ["orgs", "sign-in", "--help"])
    assert done.exit_code == 0
    assert re.search(r"--grace-days +NUMBER", done.output)
    assert re.search(r"--mfa +TEXT", done.output)
    assert re.search(r"--yes +Do not ask", done.output)


@pytest.mark.parametrize("command", ["apply", "export"])
def test_sets_name_no_option_that_they_lack(command: str) -> None:
    """What `--help` points to is there."""
    runner = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"})
    shown = runner.invoke(app, [command, "--help"]).output
    found = next(one for one in _leaves(get_command(app)) if one.name == command)
    options = {name for one in found.params for name in one.opts} | {"--help"}
    assert set(re.findall(r"--[a-z-]+", shown)) <= options


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
