"""Starting, stopping and starting again, as somebody does who has one machine."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests import stack as test_stack
from tests.e2e.world import Org, make_org
from tests.stack import PATIENCE, Stack, until

BOOTSTRAP = {
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


def processes_of(home: Path) -> list[str]:
    """Every process that was started for a home, found by its command line or environment."""
    found = []
    needle = os.fsencode(home)
    for entry in Path("/proc").glob("[0-9]*"):
        if entry.name == str(os.getpid()):
            continue
        try:
            command, environment = (
                (entry / "cmdline").read_bytes(),
                (entry / "environ").read_bytes(),
            )
            place = os.fsencode((entry / "cwd").readlink())
        except OSError:
            continue
        if needle in command or needle in environment or needle in place:
            found.append(f"{entry.name} {command!r}")
    return found


def test_a_second_start_goes_on_where_the_first_one_stopped(tmp_path: Path) -> None:
    """The same devices, keys and credentials; and Ctrl-C leaves no process behind."""
    home = tmp_path / "home"
    with test_stack.running(home) as first:
        assert set(first.bootstrap) == BOOTSTRAP
        assert first.pre_shared_key == (
            f"{first.bootstrap['tenant_code']}:{first.bootstrap['enrollment_secret']}"
        )
        for key in ("ca_file", "policy_public_key_file"):
            assert Path(first.bootstrap[key]).is_absolute()
        root = first.client(first.login()["token"])
        org = make_org(first, root)
        org.publish()
        agent = org.device()
        agent.report_state()
        key = Path(first.bootstrap["policy_public_key_file"]).read_bytes()
        ca = Path(first.ca_file).read_bytes()
        assert processes_of(home)
    assert processes_of(home) == []
    with test_stack.running(home, EVERGREEN_PORT=str(first.port)) as second:
        assert second.bootstrap == first.bootstrap
        assert Path(second.bootstrap["policy_public_key_file"]).read_bytes() == key
        assert Path(second.ca_file).read_bytes() == ca
        assert agent.pull() is False
        agent.report_state()
        assert second.login()["role"] == "Owner"
        late = Org(second, org.id, org.code, second.client(second.login()["token"]))
        assert late.device().version == "1"
    assert processes_of(home) == []


def test_secrets_are_for_the_owner_of_the_home_alone(stack: Stack) -> None:
    """Credentials and keys have mode 0600, the directories 0700."""
    for path in (stack.home, stack.home / "secrets", stack.home / "tls"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    private = [
        stack.home / "bootstrap.json",
        stack.home / "nats" / "nats.conf",
        *(stack.home / "secrets").iterdir(),
        *(stack.home / "tls").glob("*.key"),
    ]
    assert len(private) > 10
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_no_secret_is_in_a_log(stack: Stack) -> None:
    """Not in what the processes wrote, and not in what was shown."""
    text = stack.home.with_name(f"{stack.home.name}.out").read_text(errors="replace")
    text += "".join(p.read_text(errors="replace") for p in (stack.home / "logs").iterdir())
    secrets = [p.read_text().strip() for p in (stack.home / "secrets").iterdir()]
    for secret in [*secrets, stack.password, stack.pre_shared_key]:
        assert secret
        assert secret not in text


def test_everything_but_the_gateway_is_on_loopback(stack: Stack) -> None:
    """Only the gateway's port can be reached from other machines."""
    pids = {stack.process.pid, *test_stack.children(stack.process.pid)}
    sockets = set()
    for pid in pids:
        try:
            links = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        sockets |= {link.removeprefix("socket:[").rstrip("]") for link in links}
    open_ports = set()
    for table, loopback in (("tcp", {"0100007F"}), ("tcp6", {"0" * 24 + "01000000"})):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            local, state, inode = line.split()[1], line.split()[3], line.split()[9]
            address, _, port = local.partition(":")
            if state == "0A" and inode in sockets and address not in loopback:
                open_ports.add(int(port, 16))
    assert open_ports == {stack.port}


def test_two_copies_run_side_by_side(stack: Stack, tmp_path: Path) -> None:
    """Another home and another port are another installation."""
    with test_stack.running(tmp_path / "second") as other:
        assert other.port != stack.port
        assert other.tenant_id != stack.tenant_id
        token = stack.login()["token"]
        with other.client(token) as client:
            assert client.get("/api/tenants").status_code == 401
        assert stack.ready()
        assert other.ready()


@pytest.mark.parametrize("what", ["home", "port"])
def test_what_is_taken_is_said_plainly(stack: Stack, tmp_path: Path, what: str) -> None:
    """A second start on the same home, or on a port in use, ends with a sentence and a way out."""
    home = stack.home if what == "home" else tmp_path / "other"
    port = stack.port if what == "port" else test_stack.free_port()
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "up"],
        env={**os.environ, "EVERGREEN_HOME": str(home), "EVERGREEN_PORT": str(port)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in said
    assert (str(home) if what == "home" else str(port)) in said
    assert stack.ready()


def test_a_launcher_that_is_killed_leaves_nothing_and_starts_again(tmp_path: Path) -> None:
    """kill -9 of the launcher itself ends all its processes; the next start recovers."""
    home = tmp_path / "home"
    with test_stack.running(home) as first:
        org = make_org(first, first.client(first.login()["token"]))
        agent = org.device()
        agent.report_state()
        first.process.send_signal(signal.SIGKILL)
        first.process.wait(10)
        until(lambda: processes_of(home) == [], PATIENCE, "processes outlived the launcher")
    with test_stack.running(home, EVERGREEN_PORT=str(first.port)) as second:
        agent.report_state()
        assert json.loads((home / "bootstrap.json").read_text()) == second.bootstrap
