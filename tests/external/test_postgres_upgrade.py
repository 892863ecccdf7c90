"""`evergreen postgres upgrade` of a home that an older PostgreSQL has served: Debian's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.test_audit_cli import evergreen
from tests.e2e.test_backup import changed, checkpoint, patiently, rows
from tests.e2e.world import make_org, ok
from tests.fakes.agent.agent import Agent, CallError
from tests.support import debian
from tests.support import stack as test_stack
from tests.support.debian import OLDER_POSTGRES
from tests.support.documented import Commands
from tests.support.paths import ROOT
from tests.support.stack import PATIENCE, Stack, until

OLDER = """
import deploy.launcher.postgres as server
from pathlib import Path
server._INSTALLATION = Path("{directory}")
server.major = lambda: {major}
"""
RUNS = "from cli.entry import main; main()"


@pytest.fixture(scope="module")
def major() -> int:
    """An older PostgreSQL that is installed, or can be."""
    there = [n for n in (17, 16, 15, 14) if (OLDER_POSTGRES / f"{n}/bin/postgres").exists()]
    if not there:
        debian.require(f"{OLDER_POSTGRES}/15/bin/postgres")
        there = [15]
    return there[0]


def older(major: int) -> str:
    return OLDER.format(directory=OLDER_POSTGRES / str(major), major=major)


def upgrade(home: Path, cut: str = "", *words: str) -> subprocess.CompletedProcess[str]:
    """The command, which dies where a cut says."""
    die = "import os, signal\ndef die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EVERGREEN_")}
    return subprocess.run(
        [sys.executable, "-c", f"{die}{cut}\n{RUNS}", "postgres", "upgrade", *words],
        env=kept | {"EVERGREEN_HOME": str(home)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


CUTS = {
    "while data are copied": "from deploy.launcher.postgres_upgrade import PostgresUpgrade as m;"
    " m._keep_logs = die",
    "before they are renamed": "from deploy.launcher.postgres_upgrade import PostgresUpgrade as m;"
    " m._rename = die",
    "between the two": "from pathlib import Path; old = Path.rename;"
    " Path.rename = lambda a, b: die() if a.name == 'postgres.new' else old(a, b)",
}


@pytest.mark.timeout(900)
def test_an_older_servers_data_go_on(major: int, tmp_path: Path) -> None:
    """Devices, policies, the log and what feeds remember of transactions; whatever is cut short."""
    home = tmp_path / "home"
    with test_stack.running(home, program=("-c", older(major) + RUNS)) as before:
        assert rows(before, "SHOW server_version_num")[0][0].startswith(str(major))
        root = before.client(before.login()["token"])
        org = make_org(before, root)
        policy = org.publish()
        stays, leaves = org.device(), org.device()
        for device in (stays, leaves):
            patiently(device.pull)
        checkpoint(before, tmp_path / "checkpoint.txt")
        counted = counts(before)
        port = before.port

    # Nothing starts on them, backs them up as if empty, or makes new ones.
    refused = evergreen("up", EVERGREEN_HOME=str(home), EVERGREEN_PORT=str(port))
    assert refused.returncode == 1
    assert f"are of PostgreSQL {major}" in refused.stdout
    assert "evergreen postgres upgrade" in refused.stdout
    with Commands("docs/upgrade.md", "servers") as commands:
        (block,) = commands.take("A newer PostgreSQL")
    status, upgraded, removed = [line.split()[1:] for line in block.text.splitlines()]
    state = evergreen(*status, "--home", home)
    assert (state.returncode, f"PostgreSQL {major};" in state.stdout) == (1, True)
    assert evergreen(*removed, "--yes", "--home", home).returncode == 1

    # Without the old programs, it is said where they come from.
    missing = upgrade(
        home, "from deploy.launcher import postgres_upgrade as m; m._PLACES = ('/nowhere/{}',)"
    )
    assert missing.returncode == 1
    assert f"apt install postgresql-{major}" in missing.stderr
    wrong = upgrade(home, "", "--old-binaries", str(Path(sys.prefix) / "bin"))
    assert wrong.returncode == 1
    assert "lacks postgres" in wrong.stderr
    full = upgrade(
        home, "from deploy.launcher import postgres_upgrade as m; m._RESERVE_BYTES = 1 << 60"
    )
    assert full.returncode == 1
    assert "Make room" in full.stderr
    assert not (home / "postgres.new").exists()

    for name, cut in CUTS.items():
        assert upgrade(home, cut).returncode == -signal.SIGKILL, name
        assert "cut short" in evergreen("up", EVERGREEN_HOME=str(home)).stdout, name
    assert upgraded == ["postgres", "upgrade"]
    done = upgrade(home)
    assert done.returncode == 0, done.stderr
    (kept,) = home.glob(f"postgres-{major}-*")
    assert (kept / "PG_VERSION").read_text().strip() == str(major)
    assert not (home / "postgres.new").exists()
    assert "already" in upgrade(home).stdout

    with test_stack.running(home, EVERGREEN_PORT=str(port)) as after:
        assert int(rows(after, "SHOW server_version_num")[0][0]) // 10_000 > major
        root = after.client(after.login()["token"])
        assert {name: count for name, count in counts(after).items() if count < counted[name]} == {}
        go_on(root, stays, leaves, policy)
        sound = evergreen(
            "audit", "verify", "--checkpoint", tmp_path / "checkpoint.txt", "--home", home
        )
        assert sound.returncode == 0, sound.stdout
        assert [row[0] for row in rows(after, "SHOW data_checksums")] == ["on"]
    gone = evergreen(*removed, "--yes", "--home", home)
    assert gone.returncode == 0, gone.stderr
    assert not kept.exists()


def counts(stack: Stack) -> dict[str, int]:
    tables = rows(
        stack,
        "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname IN"
        " ('identity', 'enrollment', 'policy', 'audit', 'evergreen')",
    )
    names = [row[0] for row in tables]
    return {
        name: rows(stack, f"SELECT count(*) FROM {name}")[0][0]
        for name in names
        if not name.endswith(("outbox", "cursor", "guess"))
    }


def go_on(root: httpx.Client, stays: Agent, leaves: Agent, policy: dict[str, Any]) -> None:
    """A new policy arrives, and a device that is retired is locked out: by the feeds."""
    version = int(stays.version)
    ok(root.patch(f"/api/policies/{policy['id']}", json={"bundle": changed(policy)}))
    ok(root.post(f"/api/policies/{policy['id']}/publish", json={}))
    until(lambda: patiently(stays.pull), PATIENCE, "the new policy does not arrive", pause=0.5)
    assert int(stays.version) > version
    ok(root.post(f"/api/devices/{leaves.device_id}/decommission", json={}))

    def locked_out() -> bool:
        try:
            patiently(leaves.pull)
        except CallError as error:
            return error.status == 401
        return False

    until(locked_out, PATIENCE, "who is retired still gets in", pause=0.5)


def test_a_server_that_was_not_stopped_in_order(major: int, tmp_path: Path) -> None:
    """After a loss of power: the old programs recover the data first. And pg_upgrade's refusal."""
    home = tmp_path / "home"
    with test_stack.running(home, program=("-c", older(major) + RUNS)) as before:
        shutil.copytree(home / "postgres", tmp_path / "crashed", symlinks=True)
        owner = (home / "postgres").stat()
        code = before.bootstrap["tenant_code"]
    shutil.rmtree(home / "postgres")
    (tmp_path / "crashed").rename(home / "postgres")
    for path in (home / "postgres", *(home / "postgres").rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)
    done = upgrade(home)
    assert done.returncode == 0, done.stderr
    assert "recovering" in done.stdout
    with test_stack.running(home) as after:
        assert after.bootstrap["tenant_code"] == code
        assert after.login()["token"]
