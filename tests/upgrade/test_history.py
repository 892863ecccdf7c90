"""The table of releases: each is a commit of this history, with the version that it says."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.upgrade.released import all_releases, unpack
from tools.release import places
from tools.release.record import Release
from tools.release.tree import ReleaseError

RELEASES = all_releases()


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)


def test_releases_follow_each_other() -> None:
    """From 0.1.0 on, none left out, and the tree is of a version after the last one."""
    numbers = [places.parts(release.version) for release in RELEASES]
    assert numbers[0] == (0, 1, 0)
    assert numbers == sorted(set(numbers))
    assert places.parts(places.current()) > numbers[-1]
    for before, after in itertools.pairwise(RELEASES):
        assert before.migrations.items() <= after.migrations.items()


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.version)
def test_a_release_is_in_the_history(release: Release) -> None:
    """Its commit is an ancestor of what is checked out. A clone without it fails, never skips."""
    found = _git("merge-base", "--is-ancestor", release.commit, "HEAD")
    assert found.returncode == 0, f"{release.version}: git fetch --unshallow; {found.stderr}"


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.version)
def test_its_commit_says_its_version(release: Release, tmp_path: Path) -> None:
    """A commit that was rewritten after it was recorded would be another one."""
    tree = unpack(tmp_path, release)
    if release.version == "0.1.0":  # before there was a list of places
        assert 'version = "0.1.0"' in (tree / "pyproject.toml").read_text()
    else:
        assert places.current(tree) == release.version


def test_history_that_is_missing_is_a_failure(tmp_path: Path) -> None:
    """Not a test that was left out."""
    missing = Release("9.9.9", "f" * 40, "2026-11-29", {})
    with pytest.raises(pytest.fail.Exception, match="unshallow"):
        unpack(tmp_path, missing)
    with pytest.raises(ReleaseError, match="form"):
        places.parts("main")
