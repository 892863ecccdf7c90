"""`evergreen serve <service>`: it starts that service, and says what keeps it from starting."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cli import entry
from contract.contexts import CONTEXTS
from tests.support.paths import ROOT

_HALF = {
    "EVERGREEN_GRPC_LISTEN": "unix:/nowhere/gw",
    "EVERGREEN_INTERNAL_LISTEN": "unix:/nowhere/int",
    "EVERGREEN_DATABASE_POOL_SIZE": "a-secret-by-mistake",
}
"""Settings with which no service starts: one is missing, one is no number."""


def _evergreen(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("EVERGREEN_", "OTEL_"))}
    return subprocess.run(
        [sys.executable, "-m", "cli.entry", *words],
        cwd=ROOT,
        env={**clean, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("words", [["serve"], []], ids=["serve", "the words of 0.1.0"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_a_service_is_started_by_its_name(
    context: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the words of today, and by those of 0.1.0 where a service's settings are set."""
    started: list[str] = []
    monkeypatch.setattr("cli.entry.run_service", started.append)
    monkeypatch.setattr(sys, "argv", ["evergreen", *words, context])
    monkeypatch.setenv("EVERGREEN_GRPC_LISTEN", "unix:/nowhere/gw")
    entry.main()
    assert started == [context]


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_service_names_the_settings_it_lacks(context: str) -> None:
    """By their variables, each on a line, and without a value, which may be a secret."""
    done = _evergreen("serve", context, **_HALF)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines() == [
        f"evergreen serve {context}: EVERGREEN_DATABASE_URL: is not set",
        f"evergreen serve {context}: EVERGREEN_DATABASE_POOL_SIZE: Input should be a valid integer,"
        " unable to parse string as an integer",
    ]


def test_an_unknown_service_is_refused_with_the_names_of_all() -> None:
    done = _evergreen("serve", "polices")
    assert done.returncode == 2
    assert "unknown service 'polices'" in done.stderr
    for context in CONTEXTS:
        assert context in done.stderr


def test_the_help_shows_serve_and_not_the_words_it_replaces() -> None:
    """`audit` is there, for it is the group of commands about the audit log."""
    shown = _evergreen("--help").stdout
    commands = {line.split()[1] for line in shown.splitlines() if line.startswith("│ ")}
    assert {"serve", "health", "audit"} <= commands
    assert not commands & (set(CONTEXTS) - {"audit"})
    explained = _evergreen("serve", "--help").stdout.lower()
    assert all(context in explained for context in CONTEXTS)


def test_the_commands_about_the_audit_log_are_no_service() -> None:
    """In the operator's container, too, where a service's settings may be set."""
    assert "checkpoint" in _evergreen("audit", "--help", **_HALF).stdout
