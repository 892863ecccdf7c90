"""The changelog: what is unreleased becomes a release's."""

from __future__ import annotations

import re
from typing import Final

from tools.release.tree import ReleaseError

UNRELEASED: Final = "## Unreleased"
_HEADING: Final = re.compile(r"^## .*$", re.M)


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one of its kind.

    Raises:
        ReleaseError: the heading is not there.
    """
    for found in _HEADING.finditer(text):
        if found[0] == heading or found[0].startswith(f"{heading} - "):
            after = _HEADING.search(text, found.end())
            return text[found.end() : after.start() if after else len(text)].strip()
    raise ReleaseError(f"CHANGELOG.md has no section {heading!r}")


def released(text: str, version: str, date: str) -> str:
    """The changelog of a release.

    Raises:
        ReleaseError: nothing is unreleased, or the release is in it already.
    """
    if re.search(rf"^## {re.escape(version)}(?: |$)", text, re.M):
        raise ReleaseError(f"CHANGELOG.md has a section of {version} already")
    if not section(text, UNRELEASED):
        raise ReleaseError("CHANGELOG.md: nothing is unreleased")
    return text.replace(f"{UNRELEASED}\n", f"## {version} - {date}\n", 1)


def begun(text: str) -> str:
    """The changelog after a release, with room for what comes next."""
    first = _HEADING.search(text)
    if first is None:
        raise ReleaseError("CHANGELOG.md has no release")
    return f"{text[: first.start()]}{UNRELEASED}\n\n{text[first.start() :]}"
