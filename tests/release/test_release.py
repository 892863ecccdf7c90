"""A release from its commit to what is published, made in a copy of this repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from servicekit.build import VERSION
from tests.support.paths import ROOT, in_memory
from tools.release import changelog, places
from tools.release.record import RECORD, releases

DAY = "2031-02-03"
_NPM = ROOT / "node_modules" / ".bin" / "buf"

pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(not _NPM.exists(), reason="buf is missing: make lint installs it"),
]


@dataclass(frozen=True)
class Clone:
    """A copy of the repository that a release is made in."""

    root: Path
    version: str
    """What is to be released."""
    following: str

    def run(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(word) for word in words],
            cwd=self.root,
            env={
                **os.environ,
                "PYTHONPATH": f"{self.root / 'libs'}:{self.root}",
                "PATH": str(self.programs),
                **{
                    f"GIT_{who}_{what}": "test@example.org"
                    for who in ("AUTHOR", "COMMITTER")
                    for what in ("NAME", "EMAIL")
                },
            },
            capture_output=True,
            text=True,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{done.args}\n{done.stdout}\n{done.stderr}"
        return done

    @property
    def programs(self) -> Path:
        """What a release needs of this machine; there is no Docker in it."""
        return self.root.parent / "programs"

    def git(self, *words: str) -> str:
        return self.run("git", *words).stdout.strip()

    def release(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-P", "-m", "tools.release", *words, check=check)

    def shown(self, commit: str, path: str) -> str:
        return self.run("git", "show", f"{commit}:{path}").stdout

    def version_at(self, commit: str) -> set[str]:
        """The versions in all places of a commit."""
        found = self.root.parent / f"places-{commit}"
        for place in places.PLACES:
            file = found / place.path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self.shown(commit, place.path))
        documents = ("openapi/evergreen.v1.yaml", "asyncapi/evergreen.v1.yaml")
        texts = [yaml.safe_load(self.shown(commit, document)) for document in documents]
        return {places.current(found), *(text["info"]["version"] for text in texts)}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """One that is ready for a release."""
    base = tmp_path_factory.mktemp("release")
    root = base / "clone"
    subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(root)], check=True)
    (root / "node_modules").symlink_to(ROOT / "node_modules")
    (root / ".git" / "info" / "exclude").write_text("node_modules\n")
    major, minor, patch = places.parts(VERSION)
    version = f"{major}.{minor}.{patch + places.is_release(VERSION)}"
    made = Clone(root, version, f"{major}.{minor + 7}.0.dev0")
    made.programs.mkdir()
    for program in ("bash", "env", "git", "gzip", "node", "npx", "sh", "sha256sum"):
        found = shutil.which(program)
        assert found, f"{program} is not installed"
        (made.programs / program).symlink_to(found)
    text = (root / "CHANGELOG.md").read_text()
    if changelog.UNRELEASED not in text:
        text = changelog.begun(text)
    head, _, rest = text.partition(f"{changelog.UNRELEASED}\n")
    (root / "CHANGELOG.md").write_text(f"{head}{changelog.UNRELEASED}\n\n- A test.\n{rest}")
    with (root / "docs/upgrade.md").open("a") as notes:
        notes.write(f"\n## To {version} of a test\n")
    made.git("commit", "--all", "--message", "Ready")
    yield made
    if in_memory():
        shutil.rmtree(base)


@pytest.fixture(scope="module")
def released(clone: Clone) -> Clone:
    """One in which the release is made."""
    clone.release(clone.version, "--no-artifacts", "--date", DAY, "--next", clone.following)
    return clone


@pytest.mark.parametrize(
    ("path", "change", "reason"),
    [
        ("CHANGELOG.md", lambda text: "", "has no section '## Unreleased'"),
        (
            "CHANGELOG.md",
            lambda text: f"# Changelog\n\n{changelog.UNRELEASED}\n\n## 0.0.1\n\n- First.\n",
            "nothing is unreleased",
        ),
        ("docs/upgrade.md", lambda text: "# Upgrade\n", "write what an administrator has to know"),
        ("Dockerfile", lambda text: text.replace("ARG VERSION=", "ARG VERSION=9"), "Dockerfile"),
    ],
    ids=["no section", "nothing new", "no notes", "places disagree"],
)
def test_what_is_not_ready_is_refused(clone: Clone, path: str, change: Any, reason: str) -> None:
    """With the reason; nothing is committed, and nothing changed."""
    before = clone.git("rev-parse", "HEAD")
    file = clone.root / path
    file.write_text(change(file.read_text()))
    clone.git("commit", "--all", "--message", "Not ready")
    try:
        refused = clone.release(clone.version, "--no-artifacts", check=False)
        assert refused.returncode == 1
        assert reason in refused.stderr
        assert clone.git("status", "--porcelain") == ""
        assert clone.git("rev-parse", "HEAD~") == before
    finally:
        clone.git("reset", "--hard", before)


def test_a_version_that_does_not_follow_is_refused(clone: Clone) -> None:
    """The one of the last release, one before, and words that are none."""
    last = releases()[-1].version
    for version in (last, "0.0.1", "next", f"{clone.version}.dev0"):
        refused = clone.release(version, "--no-artifacts", check=False)
        assert refused.returncode == 1, version
        assert version in refused.stderr
    refused = clone.release(clone.version, "--no-artifacts", "--next", last, check=False)
    assert "does not follow" in refused.stderr
    (clone.root / "README.md").write_text("changed")
    refused = clone.release(clone.version, "--no-artifacts", check=False)
    assert "commit what was changed first" in refused.stderr
    clone.git("checkout", "README.md")


def test_a_release_is_two_commits(released: Clone) -> None:
    """The first is the release, the second records it and begins what follows."""
    clone = released
    assert clone.git("status", "--porcelain") == ""
    subjects = clone.git("log", "-3", "--format=%s").splitlines()
    assert subjects == [
        f"{clone.following} begins; {clone.version} is recorded",
        f"Release {clone.version}",
        "Ready",
    ]
    assert clone.version_at("HEAD~") == {clone.version}
    assert clone.version_at("HEAD") == {clone.following}
    then, now = (clone.shown(commit, "CHANGELOG.md") for commit in ("HEAD~", "HEAD"))
    assert changelog.UNRELEASED not in then
    assert changelog.section(then, f"## {clone.version}").startswith("- A test.")
    assert f"## {clone.version} - {DAY}\n" in then
    assert changelog.section(now, changelog.UNRELEASED) == ""
    assert now.replace(f"{changelog.UNRELEASED}\n\n", "") == then
    assert clone.git("tag", "--points-at", "HEAD~") == ""


def test_the_release_is_the_last_one_from_then_on(released: Clone) -> None:
    """Its commit, its migrations and its protos are what the next tree is held against."""
    clone = released
    before, after = (json.loads(clone.shown(commit, RECORD)) for commit in ("HEAD~", "HEAD"))
    assert after[:-1] == before
    last = after[-1]
    assert (last["version"], last["date"]) == (clone.version, DAY)
    assert last["commit"] == clone.git("rev-parse", "HEAD~")
    assert set(last["migrations"]) >= set(before[-1]["migrations"])
    events = clone.shown("HEAD", f"tests/contract/recorded/released_{clone.version}.jsonl")
    assert {json.loads(line)["type"] for line in events.splitlines()} >= {
        json.loads(line)["type"]
        for line in (ROOT / "tests/contract/recorded/sent.jsonl").read_text().splitlines()
    }
    clone.run("npx", "--no-install", "buf", "breaking", "--against", "protos/released.binpb")
    # A change of a migration that was released is all that is wrong then.
    file = next((clone.root / "services/policy/migrations").glob("*.sql"))
    file.write_text(file.read_text() + "-- changed\n")
    held = clone.run(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not traffic"),
        *("tests/upgrade/test_migrations.py", "tests/upgrade/test_history.py"),
        "tests/contract/test_events.py",
        check=False,
    )
    assert (
        "FAILED tests/upgrade/test_migrations.py::test_what_was_released_is_not_chang"
        in held.stdout
    )
    assert "\n1 failed, " in held.stdout
    clone.git("checkout", "services")
    refused = clone.release(clone.version, "--no-artifacts", check=False)
    assert "does not follow" in refused.stderr


def test_what_is_published(released: Clone, tmp_path: Path) -> None:
    """Of the release's commit, whatever is checked out; every file's digest is told twice."""
    clone, out = released, tmp_path / "dist"
    said = clone.release(clone.version, "--artifacts-only", "--output", str(out)).stdout
    assert "the image is left out" in said
    stem = f"evergreen-backend-{clone.version}"
    wheel = f"evergreen_backend-{clone.version}-py3-none-any.whl"
    chart = f"evergreen-{clone.version}.tgz"
    files = {f"{stem}.tar.gz", f"{stem}.cdx.json", wheel, chart, "provenance.intoto.json"}
    assert {file.name for file in out.iterdir()} == {*files, "SHA256SUMS"}
    clone.run("sh", "-c", f"cd '{out}' && sha256sum --check --strict --quiet SHA256SUMS")
    sums = dict(
        reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines()
    )
    assert sums.keys() == files

    commit = clone.git("rev-parse", "HEAD~")
    statement = json.loads((out / "provenance.intoto.json").read_text())
    subjects = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    assert subjects == {name: sums[name] for name in files - {"provenance.intoto.json"}}
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    built = statement["predicate"]["buildDefinition"]
    assert built["externalParameters"]["version"] == clone.version
    assert built["resolvedDependencies"][0]["digest"] == {"gitCommit": commit}
    assert statement["predicate"]["runDetails"]["builder"]["id"]

    with zipfile.ZipFile(out / wheel) as found:
        (licence,) = (name for name in found.namelist() if name.endswith("/LICENSE"))
        assert found.read(licence) == (ROOT / "LICENSE").read_bytes()
        (metadata,) = (name for name in found.namelist() if name.endswith("/METADATA"))
        assert f"\nVersion: {clone.version}\n" in found.read(metadata).decode()
    with tarfile.open(out / chart) as found_chart:
        file = found_chart.extractfile("evergreen/Chart.yaml")
        assert file is not None
        told = yaml.safe_load(file.read())
    assert (told["version"], told["appVersion"]) == (clone.version, clone.version)
    assert told["annotations"]["org.opencontainers.image.revision"] == commit
    assert told["annotations"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    with tarfile.open(out / f"{stem}.tar.gz") as source:
        assert f"{stem}/Makefile" in source.getnames()
        assert not any("/.git/" in name for name in source.getnames())
    bill = json.loads((out / f"{stem}.cdx.json").read_text())
    assert bill["metadata"]["component"]["version"] == clone.version
    # The same commit makes the same file: the time of day is not in its head.
    assert (out / f"{stem}.tar.gz").read_bytes()[4:8] == bytes(4)


def test_a_release_that_is_not_recorded_is_not_built(clone: Clone, tmp_path: Path) -> None:
    refused = clone.release("9.9.9", "--artifacts-only", "--output", str(tmp_path), check=False)
    assert f"{RECORD} has no release 9.9.9" in refused.stderr
