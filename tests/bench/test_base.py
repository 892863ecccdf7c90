"""`make bench BASE=…` on installations whose cost is known: its answer, and what it leaves."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.cpu import processes
from tests.support.paths import ROOT
from tests.support.stack import PATIENCE, until

pytestmark = pytest.mark.long


class Repository:
    """A repository whose `make run` starts a stand-in."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "repository"
        self.cache = directory / "cache"
        self.results = directory / "bench-results"
        self._mark = f"--mark={directory}"
        script = self.directory / "deploy" / "launcher" / "install.sh"
        script.parent.mkdir(parents=True)
        script.write_text("#!/bin/sh\nset -eu\necho $$ >> .installations\n")
        script.chmod(0o755)
        self._git("init", "-q")

    def write(self, *words: str) -> None:
        """Makes the working tree one that starts a stand-in with arguments."""
        module = "tests.support.fake_installation"
        command = [sys.executable, "-m", module, *words, self._mark]
        (self.directory / "Makefile").write_text(
            f"run:\n\t@cd {shlex.quote(str(ROOT))} && exec {shlex.join(command)}\n"
        )

    def commit(self) -> None:
        self._git("add", "-A")
        self._git("-c", "user.name=a", "-c", "user.email=a@b.example", "commit", "-qm", "x")

    def bench(self, *words: str) -> subprocess.Popen[str]:
        """Starts the bench."""
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "bench.against", "quick"),
                *("--tree", str(self.directory), "--results", str(self.results)),
                *("--seconds", "1", "--settle", "0.2", *words),
            ],
            cwd=ROOT,
            env={**os.environ, "XDG_CACHE_HOME": str(self.cache)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def left(self) -> list[str]:
        """What still runs of the stand-ins."""
        return [p.command for p in processes() if self._mark in p.command]

    def installations(self) -> int:
        """How often a commit's files were installed."""
        files = self.cache.glob("evergreen-bench/*/.installations")
        return sum(len(file.read_text().splitlines()) for file in files)

    def found(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.results / f"latest-{name}.json").read_text())
        return found

    def _git(self, *words: str) -> None:
        subprocess.run(["git", "-C", str(self.directory), *words], check=True)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path)
    made.write("2")
    made.commit()
    return made


_SMALL = ("--base", "HEAD", "--sections", "poll@100", "--rounds", "4")


def test_a_tree_that_is_half_as_dear_again_is_found(repository: Repository) -> None:
    """The processor time of a child's child counts, and the base's files are installed once."""
    repository.write("3")
    bench = repository.bench(*_SMALL)
    said, _ = bench.communicate(timeout=PATIENCE * 4)
    assert bench.returncode == 1, said
    finding = repository.found("base")["findings"]["poll@100"]
    low, high = finding["interval"]
    assert 1.1 < low < high < 1.6, said
    assert finding["verdict"] == "NO"
    assert not repository.left()
    repository.write("2")
    bench = repository.bench(*_SMALL, "--rounds", "2", "--limit", "30")
    said, _ = bench.communicate(timeout=PATIENCE * 4)
    assert bench.returncode == 0, said
    assert repository.installations() == 1


def test_calls_that_fail_are_no_result(repository: Repository) -> None:
    repository.write("0", "503")
    bench = repository.bench(*_SMALL)
    said, _ = bench.communicate(timeout=PATIENCE * 4)
    assert bench.returncode == 2, said
    assert "poll: 503" in said
    assert not repository.left()


def test_ctrl_c_leaves_nothing_running(repository: Repository) -> None:
    """Also of an installation that does not want to stop, when it is pressed twice."""
    repository.write("1", "--stubborn")
    bench = repository.bench("--base", "HEAD", "--sections", "poll@50")
    until(lambda: len(repository.left()) == 2, PATIENCE, "no stand-ins")
    time.sleep(1)
    bench.send_signal(signal.SIGINT)
    time.sleep(1)
    bench.send_signal(signal.SIGINT)
    said, _ = bench.communicate(timeout=PATIENCE)
    assert bench.returncode == 130, said
    until(lambda: not repository.left(), PATIENCE, f"something is left: {repository.left()}")


def test_a_commit_that_is_none_is_named(repository: Repository) -> None:
    bench = repository.bench("--base", "nonsense")
    said, _ = bench.communicate(timeout=PATIENCE)
    assert bench.returncode == 2
    assert "BASE=nonsense: git knows no such commit" in said


@pytest.mark.parametrize(("answer", "codes"), [("304", (0, 1)), ("503", (2,))])
def test_a_disturbance_finds_the_installation_and_ends_with_its_round(
    repository: Repository, answer: str, codes: tuple[int, ...]
) -> None:
    """What comes of two short rounds is chance; polls that fail are no result."""
    repository.write("0", answer)
    told = repository.directory / "told"
    command = f'cp "$BOOTSTRAP" {shlex.quote(str(told))}; exec sleep 1000'
    bench = repository.bench("--disturbance", command, "--rounds", "2")
    said, _ = bench.communicate(timeout=PATIENCE * 2)
    assert bench.returncode in codes, said
    assert not repository.left()
    assert not [p.command for p in processes() if str(told) in p.command]
    if answer == "304":
        assert json.loads(told.read_text())["email"] == "owner@localhost"
        found = repository.found("disturbance")["disturbance"]
        assert len(found["p99_ms_with"]) == len(found["p99_ms_without"]) == 2
        assert found["p99_stays"] is (bench.returncode == 0)
        assert found["failures"] == 0
