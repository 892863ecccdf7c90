"""Which release this is, and of which source it was built."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

PRODUCT: Final = "Evergreen Selfhost Backend"
VERSION: Final = "0.4.0.dev0"
"""The release; `python -m tools.release` writes it, here and wherever else a version is printed."""

COMMIT_SETTING: Final = "EVERGREEN_BUILD_COMMIT"
BUILT_SETTING: Final = "EVERGREEN_BUILD_TIME"
_ROOT: Final = Path(__file__).parents[2]
_GIT_SECONDS: Final = 2


@dataclass(frozen=True, slots=True)
class Build:
    """What runs."""

    version: str
    commit: str
    """Of the source, as a Git object name; empty when nobody knows it."""
    built: str
    """When the image was built (RFC 3339); `checkout` for a source tree, else empty."""

    def as_json(self) -> dict[str, str]:
        """The members that the API and the command line show."""
        return {"version": self.version, "commit": self.commit, "build": self.built}


@cache
def current() -> Build:
    """The running build: an image says it by its environment, a checkout by its history."""
    commit, built = os.environ.get(COMMIT_SETTING, ""), os.environ.get(BUILT_SETTING, "")
    if not built and (_ROOT / ".git").exists():
        return Build(VERSION, commit or _head(), "checkout")
    return Build(VERSION, commit, built)


def _head() -> str:
    try:
        said = subprocess.run(  # noqa: S603 - nothing of it comes from outside
            ["git", "-C", str(_ROOT), "rev-parse", "--verify", "HEAD"],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        # No Git, or one that does not look into another user's tree.
        return ""
    return said.stdout.strip()
