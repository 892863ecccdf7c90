"""The version: one in all places, and what the programs say of the build."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from servicekit.build import VERSION
from tests.support.paths import ROOT
from tools.release import places
from tools.release.tree import ReleaseError


def test_all_places_have_the_version() -> None:
    """Also the documents that are made of it."""
    assert places.current() == VERSION
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION
    chart = yaml.safe_load((ROOT / "helm/evergreen/Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (places.semver(VERSION), VERSION)
    for document in ("openapi/evergreen.v1.yaml", "asyncapi/evergreen.v1.yaml"):
        info = yaml.safe_load((ROOT / document).read_text())["info"]
        assert info["version"] == VERSION


def test_places_that_disagree_are_named(tmp_path: Path) -> None:
    """A release of such a tree is refused."""
    for place in places.PLACES:
        (tmp_path / place.path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place.path).write_text((ROOT / place.path).read_text())
    places.write("7.8.9.dev0", tmp_path)
    assert places.current(tmp_path) == "7.8.9.dev0"
    assert "version: 7.8.9-dev.0\n" in (tmp_path / "helm/evergreen/Chart.yaml").read_text()
    places.PLACES[-1].write("7.8.8", tmp_path)
    with pytest.raises(ReleaseError, match=r"install\.md says 7\.8\.8"):
        places.current(tmp_path)
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    with pytest.raises(ReleaseError, match="Dockerfile does not say one version"):
        places.write("7.8.9", tmp_path)


@pytest.mark.parametrize("version", ["1.2", "v1.2.3", "1.2.3.dev1", "1.2.3-dev.0", "1.2.3rc1"])
def test_other_forms_are_no_version(version: str) -> None:
    with pytest.raises(ReleaseError, match="form"):
        places.parts(version)


def _version(*words: str, cwd: Path = ROOT, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-P", "-m", "cli.entry", *words],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT / 'libs'}:{ROOT}", **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_an_image_says_what_it_was_built_of() -> None:
    """By what the build has written into it, whatever is around it."""
    commit, time = "0" * 40, "2026-11-29T21:50:00Z"
    built = {"EVERGREEN_BUILD_COMMIT": commit, "EVERGREEN_BUILD_TIME": time}
    found = json.loads(_version("version", "--json", **built))
    assert found == {
        "product": "Evergreen Selfhost Backend",
        "version": VERSION,
        "commit": commit,
        "build": time,
        "cryptography": {"fips": "off", "suites": "standard"},
    }
    assert _version("version", **built).splitlines()[1:] == [f"commit  {commit}", f"build   {time}"]


def test_a_tree_without_git_has_no_commit(tmp_path: Path) -> None:
    """As one that was unpacked from the source's archive: it still has a version."""
    (tmp_path / "libs" / "servicekit").mkdir(parents=True)
    program = tmp_path / "libs" / "servicekit" / "build.py"
    program.write_text((ROOT / "libs/servicekit/build.py").read_text() + "\nprint(current())\n")
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, check=True, env={}
    )
    assert done.stdout == f"Build(version='{VERSION}', commit='', built='')\n"
