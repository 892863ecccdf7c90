"""Runs pytest, and repeats what failed once: `python -m tools.suite --option=value tests/…`.

At most three failed tests are repeated, alone and in a new process. They are named as flaky if all
of them pass then. Nothing else is repeated: no error of collection, no internal error, no worker
that died, nothing that was interrupted.
"""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

MOST = 3
"""How many tests may fail and be repeated: more are no accident."""
_ALONE = "--alone"


class _Outcome:
    """A plugin of pytest: what became of the tests."""

    def __init__(self) -> None:
        self.failed: dict[str, None] = {}
        self.skipped = False
        self.repeatable = True
        """Whether all that went wrong are failures of tests."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed[report.nodeid] = None
            # A worker that died is told as a test of no phase.
            self.repeatable &= report.when in ("setup", "call", "teardown")
        self.skipped |= report.skipped

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.repeatable &= not report.failed

    def pytest_keyboard_interrupt(self) -> None:
        self.repeatable = False


def _run(arguments: list[str]) -> tuple[int, _Outcome]:
    outcome = _Outcome()
    # A copy: pytest puts the options of pyproject.toml into the list that it is given.
    return int(pytest.main([*arguments], plugins=[outcome])), outcome


def _alone(arguments: list[str]) -> int:
    """Runs failed tests: one that is skipped now has not passed."""
    code, outcome = _run(arguments)
    return code or (pytest.ExitCode.TESTS_FAILED if outcome.skipped else 0)


def main(arguments: list[str]) -> int:
    """Runs pytest with options, each in one word, and paths; returns its exit code."""
    code, outcome = _run(arguments)
    failed = list(outcome.failed)
    accident = outcome.repeatable and 0 < len(failed) <= MOST
    if code != pytest.ExitCode.TESTS_FAILED or not accident:
        return code
    print("\nrepeated once, alone:", *failed, sep="\n  ", flush=True)
    # Ctrl-C ends the child, which cleans up, and then this process with its code.
    signal.signal(signal.SIGINT, lambda *_: None)
    options = [word for word in arguments if word.startswith("-")]
    command = [sys.executable, "-m", "tools.suite", _ALONE, *options, "-n0", *failed]
    code = subprocess.run(command, check=False).returncode
    if code:
        print("not all of them passed alone")
    else:
        print(*(f"flaky: {test} failed first and passed alone" for test in failed), sep="\n")
    return code


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(_alone(words[1:]) if words[:1] == [_ALONE] else main(words))
