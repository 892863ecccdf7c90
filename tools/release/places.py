"""Every place where the version stands, and its two spellings."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.release.tree import ROOT, ReleaseError

_FORM: Final = re.compile(r"(\d+)\.(\d+)\.(\d+)(\.dev0)?")


def parts(version: str) -> tuple[int, int, int]:
    """The three numbers of a version.

    Raises:
        ReleaseError: it is no version.
    """
    found = _FORM.fullmatch(version)
    if found is None:
        raise ReleaseError(f"{version}: a version has the form 1.2.3 (or 1.2.3.dev0)")
    return int(found[1]), int(found[2]), int(found[3])


def is_release(version: str) -> bool:
    """Whether it is the version of a release, not of what comes before one."""
    return not version.endswith(".dev0")


def next_version(version: str) -> str:
    """What the tree is after a release."""
    major, minor, _ = parts(version)
    return f"{major}.{minor + 1}.0.dev0"


def semver(version: str) -> str:
    """As Helm wants it: `0.3.0-dev.0` for what Python calls `0.3.0.dev0`."""
    return version.replace(".dev", "-dev.")


def _same(version: str) -> str:
    return version


@dataclass(frozen=True, slots=True)
class Place:
    """Lines of a file; the first group of each is the version, the same in all of them."""

    path: str
    line: str
    spell: Callable[[str], str] = _same
    since: str = "0.2.0"
    """The first release that has it."""

    def read(self, root: Path = ROOT) -> str:
        """The version as it stands there."""
        return self._found(root)[0][1]

    def write(self, version: str, root: Path = ROOT) -> None:
        """Puts another version there."""
        file = root / self.path
        text = file.read_text(encoding="utf-8")
        for found in reversed(self._found(root)):
            text = text[: found.start(1)] + self.spell(version) + text[found.end(1) :]
        file.write_text(text, encoding="utf-8")

    def _found(self, root: Path) -> list[re.Match[str]]:
        text = (root / self.path).read_text(encoding="utf-8")
        found = list(re.finditer(self.line, text, re.M))
        if len({one[1] for one in found}) != 1:
            raise ReleaseError(f"{self.path} does not say one version in lines as {self.line}")
        return found


PLACES: Final = (
    Place("libs/servicekit/build.py", r'^VERSION: Final = "(.+)"$'),
    Place("pyproject.toml", r'^version = "(.+)"$'),
    Place("Dockerfile", r"^ARG VERSION=(.+)$"),
    Place("docker-compose.yaml", r"\$\{EVERGREEN_VERSION:-(.+)\}$"),
    Place("docker-compose.fips.yaml", r"\$\{EVERGREEN_VERSION:-([^}]+)\}", since="0.3.0"),
    Place("helm/evergreen/Chart.yaml", r"^version: (.+)$", semver),
    Place("helm/evergreen/Chart.yaml", r"^appVersion: (.+)$"),
    Place("docs/install.md", r"\bevergreen-backend:(\d[\w.]*)"),
    Place("docs/install.md", r"\bimage\.tag=(\d[\w.]*)"),
)
"""The documents of the API have it from `pyproject.toml` (`make gen`)."""


def current(root: Path = ROOT) -> str:
    """The version of the tree.

    Raises:
        ReleaseError: the places disagree.
    """
    version = PLACES[0].read(root)
    for place in PLACES:
        if parts(version) < parts(place.since):
            continue
        if (there := place.read(root)) != place.spell(version):
            raise ReleaseError(f"{place.path} says {there}, and {PLACES[0].path} {version}")
    return version


def write(version: str, root: Path = ROOT) -> None:
    """Writes a version to all places."""
    parts(version)
    for place in PLACES:
        place.write(version, root)
