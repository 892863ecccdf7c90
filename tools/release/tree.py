"""The tree that is released, and the programs that work on it."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]


class ReleaseError(Exception):
    """The release cannot be made; the message says what to do first."""


def run(*words: str | Path, cwd: Path = ROOT, environment: dict[str, str] | None = None) -> str:
    """Runs a program; answers what it printed.

    Raises:
        ReleaseError: it failed; with what it said.
    """
    try:
        done = subprocess.run(
            [str(word) for word in words],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise ReleaseError(f"{words[0]} is not installed") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise ReleaseError(f"{' '.join(map(str, words))}:\n{said}")
    return done.stdout


def git(*words: str | Path) -> str:
    """A command of Git in the tree, without the line break at its end."""
    return run("git", *words).rstrip("\n")


def python(*words: str | Path, root: Path = ROOT) -> str:
    """Runs Python with the modules of a tree, whichever is installed."""
    environment = {**os.environ, "PYTHONPATH": f"{root / 'libs'}:{root}"}
    return run(sys.executable, "-P", *words, cwd=root, environment=environment)


def generate() -> None:
    """`make gen`: the documents of the API have the version too."""
    python("-m", "tools.gen")


def origin() -> str:
    """Where the source is published, without credentials; empty when this clone has no origin."""
    try:
        url = git("remote", "get-url", "origin")
    except ReleaseError:
        return ""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in {"https", "ssh"}:
        return ""
    return f"{scheme}://{rest.rpartition('@')[2]}"


def rfc3339(time: datetime) -> str:
    """To the second, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
