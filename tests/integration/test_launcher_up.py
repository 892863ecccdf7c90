"""`evergreen up` as a whole: second copies, kill -9 of the launcher, a second start, Ctrl-C."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.launcher.process import start_time
from tests.stack import Stack, free_port, running, until

PARTS = (
    "postgres",
    "nats",
    "gateway",
    "identity",
    "enrollment",
    "policy",
    "telemetry",
    "attestation",
    "audit",
)


def up(home: Path, port: int) -> subprocess.CompletedProcess[str]:
    """A start that is expected to be refused."""
    return subprocess.run(
        [sys.executable, "-m", "cli.main", "up"],
        env={**os.environ, "EVERGREEN_HOME": str(home), "EVERGREEN_PORT": str(port)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def processes(stack: Stack) -> list[int]:
    """Every process of a copy; each part has exactly one."""
    found = [stack.pids(part) for part in PARTS]
    assert [len(pids) for pids in found] == [1] * len(PARTS)
    return [pid for pids in found for pid in pids]


def none_is_left(pids: list[int]) -> bool:
    return not any(start_time(pid) for pid in pids)


@contextmanager
def killed_at_the_end(home: Path) -> Iterator[Stack]:
    """A copy whose launcher ends by kill -9."""
    with running(home) as stack:
        yield stack
        stack.process.kill()
        stack.process.wait()


def test_a_copy_from_its_first_start_to_its_last(stack: Stack, tmp_path: Path) -> None:
    """Beside the running copy: refusals, a crash, and a second start that goes on.

    One test, for each start of a copy takes seconds.
    """
    home = tmp_path / "second"
    with killed_at_the_end(home) as second:
        assert stack.ready() and second.ready()
        assert second.bootstrap["pre_shared_key"] != stack.bootstrap["pre_shared_key"]
        assert set(second.bootstrap) == {
            "url",
            "ca_file",
            "email",
            "password",
            "tenant_id",
            "tenant_code",
            "enrollment_secret",
            "pre_shared_key",
            "policy_public_key_file",
        }
        assert stat.S_IMODE((home / "bootstrap.json").stat().st_mode) == 0o600
        key = Path(second.bootstrap["policy_public_key_file"]).read_bytes()

        refused = up(home, free_port())
        assert refused.returncode == 1
        assert f"Evergreen already runs on {home} (process {second.process.pid})" in refused.stdout

        refused = up(tmp_path / "third", second.port)
        assert refused.returncode == 1
        assert f"Port {second.port} is taken" in refused.stdout
        assert f"EVERGREEN_PORT={second.port + 1} make run" in refused.stdout

        pids = processes(second)
    until(lambda: none_is_left(pids), 10, "processes outlived their launcher")
    assert stack.ready()

    with running(home, EVERGREEN_PORT=str(second.port)) as again:
        assert again.bootstrap == second.bootstrap
        assert Path(again.bootstrap["policy_public_key_file"]).read_bytes() == key
        assert again.login()["role"] == "Owner"
        pids = processes(again)
        again.process.send_signal(signal.SIGTERM)
        assert again.process.wait(60) == 0
        assert none_is_left(pids)
    assert not list((home / "run").glob("*.pid"))
    assert "Stopped after" in (tmp_path / "second.out").read_text()


def test_no_port_but_the_gateway_s_is_open_to_the_network(stack: Stack) -> None:
    """Everything else listens on loopback or on sockets in a private directory."""
    launcher = stack.process.pid
    inodes = {}
    for pid in (launcher, *processes(stack)):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = str(link.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes[target[8:-1]] = pid
    public = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, state, inode = (line.split()[n] for n in (1, 3, 9))
            address, port = local.split(":")
            if state == "0A" and inode in inodes and not address.startswith("0100007F"):
                public.add(int(port, 16))
    assert public == {stack.port}
    assert stat.S_IMODE((stack.home / "run").stat().st_mode) == 0o700


def test_every_part_comes_back_after_kill_9(stack: Stack) -> None:
    """Each process is killed; all are back, and the product is ready again."""
    before = dict(zip(PARTS, processes(stack), strict=True))
    for part in PARTS:
        stack.signal(part, signal.SIGKILL)
    until(
        lambda: all(stack.pids(part) not in ([], [before[part]]) for part in PARTS),
        30,
        "a process did not come back",
    )
    stack.until_ready()
