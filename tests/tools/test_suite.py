"""What `make test` repeats of a suite of its own, and what it exits with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

# Each line of `runs` is a process that ran the test.
ONCE = """
import os, pathlib, signal
import pytest

def nth():
    runs = pathlib.Path(__file__).parent / "runs"
    with runs.open("a") as file:
        file.write("run\\n")
    return len(runs.read_text().splitlines())

def test_of_which_another_is_not_repeated():
    with pathlib.Path(__file__).with_name("others").open("a") as file:
        file.write("run\\n")
"""
FLAKY = "@pytest.mark.parametrize('a', ['b c::d[é]'])\ndef test_flaky(a):\n    assert nth() > 1\n"
BROKEN = "def test_broken():\n    nth()\n    assert False\n"
FIXTURE = "@pytest.fixture\ndef part():\n    yield\n    assert nth() > 1\n"


def _start(folder: Path, source: str, *options: str) -> subprocess.Popen[str]:
    (folder / "test_some.py").write_text(ONCE + source, "utf-8")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:doctest\n", "utf-8")
    # Not what the run around it was told, and of all plugins one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tools.suite",
            "-pxdist",
            "-pno:cacheprovider",
            *options,
            "test_some.py",
        ],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A run in the background ignores Ctrl-C, and its children would do so, too.
        preexec_fn=lambda: signal.signal(  # noqa: PLW1509 - nothing has threads here
            signal.SIGINT, signal.SIG_DFL
        ),
    )


def _run(folder: Path, source: str, *options: str) -> tuple[int, str, int]:
    """Its exit code, its output, and how often its tests ran."""
    with _start(folder, source, *options) as process:
        output, _ = process.communicate(timeout=120)
    runs = folder / "runs"
    return process.returncode, output, len(runs.read_text().splitlines()) if runs.exists() else 0


def test_a_test_that_passes_alone_is_named_and_passes(tmp_path: Path) -> None:
    """Only the failed test is repeated, also one with a strange name; the run succeeds."""
    code, output, runs = _run(tmp_path, FLAKY, "-n2", "--dist=loadfile")
    assert (code, runs) == (0, 2), output
    assert output.splitlines()[-1].startswith("flaky: test_some.py::test_flaky[b c::d[")
    assert output.splitlines()[-1].endswith("] failed first and passed alone")
    assert (tmp_path / "others").read_text() == "run\n"


def test_a_test_whose_fixture_fails_is_repeated(tmp_path: Path) -> None:
    """A failure while a test is cleaned up counts as one of the test."""
    code, output, runs = _run(tmp_path, FIXTURE + "def test_it(part):\n    pass\n")
    assert (code, runs) == (0, 2), output
    assert output.splitlines()[-1] == "flaky: test_some.py::test_it failed first and passed alone"


@pytest.mark.parametrize(
    ("source", "code", "runs"),
    [
        (FLAKY + BROKEN, 1, 4),
        (FLAKY + "\n".join(f"def test_{n}():\n    assert False\n" for n in range(3)), 1, 1),
        ("def test_skips():\n    if nth() > 1:\n        pytest.skip()\n    assert False\n", 1, 2),
        (FLAKY + "import nothing_of_this_name\n", 2, 0),
        ("def test_it():\n    nth()\n    raise KeyboardInterrupt\n", 2, 1),
        ("def test_it():\n    nth()\n    pytest.exit('no more', returncode=1)\n", 1, 1),
    ],
    ids=["broken", "four", "skipped-then", "collection", "interrupted", "exit"],
)
def test_what_does_not_pass_fails(tmp_path: Path, source: str, code: int, runs: int) -> None:
    """Tests that fail twice, too many, tests that do not run, and errors outside of tests."""
    found, output, ran = _run(tmp_path, source, "-n0")
    assert (found, ran) == (code, runs), output
    assert "flaky: " not in output


@pytest.mark.parametrize(
    ("source", "failed"),
    [
        ("def test_it():\n    nth()\n    os.kill(os.getpid(), signal.SIGKILL)\n", {1}),
        (FLAKY + "import nothing_of_this_name\n", {1, 2}),
    ],
    ids=["died", "collection"],
)
def test_workers_in_trouble_are_not_repeated(tmp_path: Path, source: str, failed: set[int]) -> None:
    """A worker that dies, or cannot read the tests, is no test that failed."""
    code, output, ran = _run(tmp_path, source, "-n2", "--dist=loadfile", "--max-worker-restart=0")
    assert code in failed, output
    assert ran <= 1
    assert "repeated once" not in output


def test_an_internal_error_is_not_repeated(tmp_path: Path) -> None:
    """A plugin that raises beside a test that fails ends the run with pytest's own code."""
    (tmp_path / "conftest.py").write_text(
        "def pytest_runtest_logfinish(nodeid, location):\n    raise OSError('broken plugin')\n"
    )
    code, output, ran = _run(tmp_path, BROKEN, "-n0")
    assert (code, ran) == (3, 0), output


def test_ctrl_c_ends_what_is_repeated(tmp_path: Path) -> None:
    """The repeated tests clean up, and the run fails."""
    source = (
        "import time\n"
        "def test_it():\n"
        "    assert nth() > 1\n"
        "    os.kill(os.getppid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
    )
    with _start(tmp_path, source, "-n0") as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, output
    assert "KeyboardInterrupt" in output
