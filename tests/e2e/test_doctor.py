"""`evergreen doctor` on a running product that is well, and on one that does not run."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

from contract.contexts import CONTEXTS
from servicekit.security import mode
from tests.e2e.test_audit_cli import evergreen
from tests.support.doctor import by_status, wrong
from tests.support.stack import Stack, free_port


def test_nothing_is_wrong_with_a_healthy_product(stack: Stack) -> None:
    """From the home, and as an administrator sees it from outside; each says what it looked at."""
    stack.until_ready()
    # Other tests' devices enroll, and some never ask for a policy; and one seals the policies with
    # secrets that there are then.
    known = {"POLICY_KEY_DOUBTFUL", "NAMED_SECRETS_OPEN", "POLICY_SECRETS_OPEN"}
    if mode.is_required():
        known |= {"GATEWAY_MODULE_NOT_VALIDATED", "DATABASE_MODULE_NOT_VALIDATED"}
    inside = evergreen("doctor", "--json", "--home", stack.home)
    outside = evergreen(
        "doctor", "--json", "--ca-file", stack.ca_file, PUBLIC_URL=stack.url, TRUSTED_PROXIES="0"
    )
    for done in (inside, outside):
        assert done.stdout, done.stderr
        found = [one["code"] for one in wrong(json.loads(done.stdout))]
        assert set(found) <= known
    assert outside.returncode == 0
    at_home, from_outside = json.loads(inside.stdout), json.loads(outside.stdout)
    assert by_status(at_home, "skipped") == {}
    assert {
        "files.permissions", "keys.master", "keys.database", "certificates.authority",
        "machine.time-zone", "database.schema", "nats.streams", "services.feeds",
        "public.certificate", "public.http2", *(f"database.role.{c}" for c in CONTEXTS),
    } <= set(by_status(at_home, "ok"))  # fmt: skip
    skipped = by_status(from_outside, "skipped")
    assert "EVERGREEN_NATS_URL" in skipped["nats.login"]["skipped"]
    assert by_status(from_outside, "ok")["public.ready"]["seen"]


def test_a_home_that_is_stopped_is_one_finding(stack: Stack, tmp_path: Path) -> None:
    """What needs no process is looked at all the same; the rest is skipped, with the reason."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    for name in ("bootstrap.json", "launcher.json", "launcher.lock"):
        shutil.copy2(stack.home / name, home / name)
    for name in ("secrets", "tls"):
        shutil.copytree(stack.home / name, home / name)
    facts = json.loads((home / "bootstrap.json").read_text())
    facts["url"] = f"https://localhost:{free_port()}"
    (home / "bootstrap.json").write_text(json.dumps(facts))
    done = evergreen("doctor", "--json", "--home", home)
    said = json.loads(done.stdout)
    assert done.returncode == 1
    assert [found["code"] for found in wrong(said)] == ["NOT_RUNNING"]
    assert str(home) in wrong(said)[0]["fix"]
    assert {"files.permissions", "keys.master", "machine.port"} <= set(by_status(said, "ok"))
    skipped = by_status(said, "skipped")
    assert skipped["database.login"]["skipped"] == "not running"
    assert {"nats.login", "services.ready", "public.certificate"} <= set(skipped)

    # What keeps it from starting is told beside it.
    (home / "secrets" / "master_key").write_text("")
    (home / "tls" / "ca.key").unlink()
    (home / "secrets" / "admin_password").chmod(0o644)
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        facts["url"] = f"https://localhost:{taken.getsockname()[1]}"
        (home / "bootstrap.json").write_text(json.dumps(facts))
        done = evergreen("doctor", "--home", home)
    assert done.returncode == 1
    for code in (
        "NOT_RUNNING", "MASTER_KEY_INVALID", "CA_KEY_MISSING", "SECRETS_READABLE", "PORT_IN_USE"
    ):  # fmt: skip
        assert done.stdout.count(code) == 1, done.stdout
    assert "Traceback" not in done.stderr
    # One line for all that is skipped for one reason.
    (skipped,) = (line for line in done.stdout.splitlines() if "not running: " in line)
    assert "nats (3)" in skipped
