"""The commands of the documentation, as tests run them: literally.

A block of commands says in its first line where it is run, behind the language:

    ```sh compose
    docker compose up --wait
    ```

A third word names the file that the text is for, which the commands behind it read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from tests.support.paths import ROOT

TARGETS: Final = {
    "make-run": "an installation of `make run`; `make test-servers` runs it",
    "compose": "an installation of Docker Compose; `make test-compose` runs it",
    "kubernetes": "a cluster; `tests/kubernetes` runs it",
    "servers": "a server of another vendor; `make test-servers` runs it",
    "by-hand": "no test can run it; `tests/docs/test_commands.py` has the reason",
}
"""Where a block is run."""
COMMANDS: Final = frozenset({"sh", "sql", "ini", "yaml"})
"""Languages of blocks that a reader runs or installs; others are what programs print."""

_LINE: Final = re.compile(
    r"^(?P<indent> *)(?P<fence>```(?P<info>.*)|(?P<heading>#+) (?P<name>.+))$"
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    page: str
    """Its path, such as `docs/backup.md`."""
    line: int
    headings: tuple[str, ...]
    """Above it, the page's own first."""
    language: str
    target: str
    """One of `TARGETS`; empty if it names none."""
    file: str
    """The file that it is the text of; empty for commands."""
    text: str

    @property
    def place(self) -> str:
        """The page and the line, as editors open it."""
        return f"{self.page}:{self.line}"

    def filled(self, values: Mapping[str, str]) -> Block:
        """With examples of the page (hosts, paths) replaced.

        Raises:
            KeyError: if the block does not have one of them: then the test has to follow the page.
        """
        text = self.text
        for example, value in values.items():
            if example not in text:
                raise KeyError(f"{self.place}: does not say {example}")
            text = text.replace(example, value)
        return replace(self, text=text)


def read(page: str) -> list[Block]:
    """All fenced blocks of a page, in order.

    Args:
        page: its path from the project's folder.
    """
    found: list[Block] = []
    headings: list[str] = []
    open_block: tuple[str, int, str] | None = None
    lines: list[str] = []
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        match = _LINE.match(line)
        if open_block:
            indent, began, info = open_block
            if line.strip() != "```":
                lines.append(line.removeprefix(indent))
                continue
            language, target, file, *_ = [*info.split(), "", "", ""]
            text = "".join(f"{text}\n" for text in lines)
            found.append(Block(page, began, tuple(headings), language, target, file, text))
            open_block = None
        elif match and match["heading"]:
            headings[len(match["heading"]) - 1 :] = [match["name"]]
        elif match:
            open_block, lines = (match["indent"], number, match["info"]), []
    if open_block:
        raise ValueError(f"{page}:{open_block[1]}: this block does not end")
    return found


class Commands:
    """The blocks of a page for one target, which a test runs until none is left.

        with Commands("docs/backup.md", "compose") as commands:
            run(script(commands.take("Restore"), directory))

    A block that the test did not take fails it at the end: one that somebody adds to the page has
    to be run, too.
    """

    def __init__(self, page: str, target: str) -> None:
        self._left = [block for block in read(page) if block.target == target]
        self._what = f"{page} for {target}"

    def take(self, heading: str) -> list[Block]:
        """The blocks under a heading (and those below it) that were not taken before.

        Raises:
            LookupError: if there is none: the page was changed.
        """
        found = [block for block in self._left if heading in block.headings]
        if not found:
            raise LookupError(f"{self._what}: nothing under the heading {heading}")
        self._left = [block for block in self._left if block not in found]
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            assert not self._left, f"not run: {', '.join(block.place for block in self._left)}"


def script(blocks: list[Block], directory: Path) -> str:
    """Writes the blocks that are texts of files, and returns the commands for `bash -euo pipefail`.

    Args:
        blocks: in the order of the page.
        directory: where the commands are to run.
    """
    for block in blocks:
        if block.file:
            (directory / block.file).write_text(block.text, encoding="utf-8")
    return "".join(block.text for block in blocks if not block.file and block.language == "sh")
