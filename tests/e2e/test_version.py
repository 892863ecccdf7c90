"""Which release runs: told to users, to Prometheus, in the logs and at the command line."""

from __future__ import annotations

import json
import re
import subprocess

import httpx

from contract.contexts import CONTEXTS
from servicekit.build import PRODUCT, VERSION
from servicekit.security import fips
from tests.e2e.test_audit_cli import evergreen
from tests.e2e.world import Org
from tests.support.paths import ROOT
from tests.support.stack import Stack


def _commit() -> str:
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_only_users_learn_the_version(stack: Stack, org: Org) -> None:
    """Anybody gets the product's name; a device's token is no login. Owners and Admins also learn
    which algorithms are used, those of this program here."""
    with stack.client() as anybody:
        answer = anybody.get("/api/version")
    assert answer.json() == {"product": PRODUCT}
    assert answer.headers["cache-control"] == "no-store"
    whole = {"product": PRODUCT, "version": VERSION, "commit": _commit(), "build": "checkout"}
    algorithms = {"cryptography": fips.described()}
    for role, more in (("Owner", algorithms), ("Admin", algorithms), ("Auditor", {})):
        with org.user(role) as user:
            assert user.get("/api/version").json() == whole | more, role
    with stack.client(org.device().device_token) as device:
        assert device.get("/api/version").status_code == 401


def test_metrics_and_logs_have_it(stack: Stack) -> None:
    """Every service says its build once it serves."""
    ports = json.loads((stack.home / "launcher.json").read_text())["ports"]
    for context in CONTEXTS:
        text = httpx.get(f"http://127.0.0.1:{ports[context]}/metrics").text
        (build,) = re.findall(r"^evergreen_build_info{(.*)} 1.0$", text, re.M)
        assert f'commit="{_commit()}"' in build
        assert f'version="{VERSION}"' in build
        lines = (stack.home / "logs" / f"{context}.log").read_text().splitlines()
        served = [line for line in lines if '"serving"' in line]
        assert served
        assert all(VERSION in line and _commit() in line for line in served)


def test_the_command_shows_both_sides(stack: Stack) -> None:
    """Its own release, and on request what the installation runs."""
    done = evergreen("version", "--json", "--server", "--home", stack.home)
    found = json.loads(done.stdout)
    assert found["version"] == found["server"]["version"] == VERSION
    assert found["server"]["commit"] == _commit()
    assert evergreen("--version").stdout == f"{PRODUCT} {VERSION}\n"
    assert evergreen("version").stdout.splitlines()[0] == f"{PRODUCT} {VERSION}"
