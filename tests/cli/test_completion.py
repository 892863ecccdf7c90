"""The shell completes commands and options, and builds only the group that the line names."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("shell", "line", "wanted", "other"),
    [
        ("bash", "evergreen roll", "rollouts", "policies"),
        ("bash", "evergreen rollouts r", "rollback", "approve"),
        ("zsh", "evergreen rollouts settings --fr", "--freeze", "--unfreeze"),
    ],
)
def test_a_line_is_completed(shell: str, line: str, wanted: str, other: str) -> None:
    """In the shells' own ways of asking."""
    asked = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
    }
    environment = {**os.environ, **asked[shell], "_EVERGREEN_COMPLETE": f"complete_{shell}"}
    # The variable's name is made of the program's.
    program = "import sys; sys.argv = ['evergreen']; from cli.entry import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert wanted in done.stdout, done.stderr
    assert other not in done.stdout
