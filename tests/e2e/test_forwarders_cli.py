"""`evergreen forwarders` against the running product."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.e2e.test_audit_cli import evergreen
from tests.support.stack import Stack


def test_a_forwarders_life(stack: Stack, tmp_path: Path) -> None:
    """Made, shown, tested, replayed, rotated, disabled, enabled, deleted; secrets are in files."""
    name = f"SIEM {uuid4().hex[:8]}"
    token, secret, newer = (tmp_path / file for file in ("token", "secret", "newer"))
    token.write_text("Bearer a value of the target\n")

    def run(*arguments: Any, code: int = 0) -> str:
        done = evergreen("forwarders", *arguments, "--home", stack.home)
        assert done.returncode == code, done.stdout + done.stderr
        assert "a value of the target" not in done.stdout + done.stderr
        return done.stdout

    url = "https://siem.school.invalid/hook"
    made = run(
        "create", name, "--webhook", url, "--batch", "20", "--header", f"Authorization={token}",
        "--action", "policy.*", "--secret-file", secret,
    )  # fmt: skip
    assert f"The forwarder {name} is made" in made
    assert secret.read_text().startswith("whsec_")
    assert secret.stat().st_mode & 0o077 == 0
    shown = json.loads(run("show", name))
    assert shown["webhook"]["headers"] == [{"name": "Authorization", "set": True}]
    assert shown["filter"]["actions"] == ["policy.*"]
    assert url in run("list")
    found = [json.loads(line) for line in run("list", "--json").splitlines()]
    assert shown["id"] in [one["id"] for one in found]
    assert "NAME_NOT_FOUND" in run("test", name, code=1)
    assert "sends" in run("replay", name, "--from", "2026-01-01T00:00:00Z")
    assert "Both secrets sign until" in run("rotate-secret", name, "--secret-file", newer)
    assert newer.read_text() != secret.read_text()
    assert "sends nothing" in run("disable", name)
    assert "disabled (BY_USER)" in run("list")
    run("enable", name)
    assert run("quarantine", name).splitlines()[1:] == []
    assert "0 messages" in run("retry", name)
    assert "--yes" in evergreen("forwarders", "delete", name, "--home", stack.home).stderr
    run("delete", shown["id"], "--yes")
    gone = evergreen("forwarders", "show", name, "--home", stack.home)
    assert (gone.returncode, "you see no forwarder" in gone.stderr) == (2, True)


def test_what_cannot_be_made_is_said(stack: Stack) -> None:
    """Neither or both kinds, an address that is not allowed, and a warning for what is."""
    for arguments, said in (
        (("x",), "either --webhook or --syslog"),
        (("x", "--syslog", "host"), "HOST:PORT"),
        (("x", "--webhook", "https://127.0.0.1/"), "webhook.url: is not allowed"),
        (("x", "--syslog", "169.254.169.254:6514"), "syslog.host: is not allowed"),
    ):
        done = evergreen("forwarders", "create", *arguments, "--home", stack.home)
        assert done.returncode == 2
        assert said in done.stderr
    name = uuid4().hex
    made = evergreen(
        "forwarders", "create", name, "--syslog", "10.255.255.1:514", "--transport", "udp",
        "--home", stack.home,
    )  # fmt: skip
    assert "UDP loses messages silently" in made.stderr
    assert evergreen("forwarders", "delete", name, "--yes", "--home", stack.home).returncode == 0
