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

from deploy.launcher.home import Home
from servicekit.security import mode
from tests.e2e.world import Org, make_org
from tests.fakes.agent import Agent
from tests.support import stack as test_stack
from tests.support.paths import ROOT
from tests.support.stack import PATIENCE, Stack, until

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


def nothing_runs_of(home: Path) -> None:
    until(lambda: processes_of(home) == [], PATIENCE, "processes outlived the launcher")


def test_a_home_from_its_first_start_to_its_last(stack: Stack, tmp_path: Path) -> None:
    """Beside the running copy: Ctrl-C, kill -9 and SIGTERM, and each next start goes on.

    The same devices, keys and credentials; and no process is left behind. One test, for each
    start takes seconds.
    """
    home = tmp_path / "home"
    with test_stack.running(home) as first:
        assert set(first.bootstrap) == BOOTSTRAP
        steps_alone_are_told(tmp_path / "home.out")
        assert first.pre_shared_key == (
            f"{first.bootstrap['tenant_code']}:{first.bootstrap['enrollment_secret']}"
        )
        for key in ("ca_file", "policy_public_key_file"):
            assert Path(first.bootstrap[key]).is_absolute()
        is_an_installation_of_its_own(first, stack)
        root = first.client(first.login()["token"])
        org = make_org(first, root)
        org.publish()
        agent = org.device()
        agent.report_state()
        files = [Path(first.bootstrap["policy_public_key_file"]), Path(first.ca_file)]
        kept = [file.read_bytes() for file in files]
        assert processes_of(home)
    assert processes_of(home) == []
    assert stack.ready()

    with test_stack.running(home, EVERGREEN_PORT=str(first.port)) as second:
        goes_on(second, first, org, agent)
        second.process.send_signal(signal.SIGKILL)
        second.process.wait(PATIENCE)
        nothing_runs_of(home)

    with test_stack.running(home, EVERGREEN_PORT=str(first.port)) as third:
        goes_on(third, first, org, agent)
        assert [file.read_bytes() for file in files] == kept
        third.process.send_signal(signal.SIGTERM)
        assert third.process.wait(PATIENCE) == 0
    assert processes_of(home) == []
    assert not list(Home(home).run_directory().glob("*.pid"))
    _, _, end = (tmp_path / "home.out").read_text().partition("\nStopping ...\n")
    # On a slow machine a service may still tell of another one that has stopped.
    *others, said = end.splitlines()
    assert said.startswith("Stopped after")
    assert not [line for line in others if "did not stop" in line]


def steps_alone_are_told(output: Path) -> None:
    """Services wait for each other at a start: that is nothing that a person has to read."""
    start, _, _ = output.read_text().partition("Evergreen is ready")
    told = [line for line in start.splitlines() if line and not line.startswith("  ok ")]
    if mode.is_required():
        # Which module it is; and, true and to be read, that the Envoy of the wheel has no validated
        # one (docs/fips.md).
        more = ("FIPS mode, ", "FIPS conformance policy")
        told = [line for line in told if not any(words in line for words in more)]
    assert len(told) == 1, told
    assert told[0].startswith("Evergreen Selfhost Backend")


def is_an_installation_of_its_own(other: Stack, stack: Stack) -> None:
    """Another home and another port are another installation."""
    assert other.port != stack.port
    assert other.tenant_id != stack.tenant_id
    with other.client(stack.login()["token"]) as client:
        assert client.get("/api/tenants").status_code == 401
    assert stack.ready()
    assert other.ready()


def goes_on(later: Stack, first: Stack, org: Org, agent: Agent) -> None:
    """A later start has what the first one made, and works."""
    assert later.bootstrap == first.bootstrap
    assert json.loads((later.home / "bootstrap.json").read_text()) == first.bootstrap
    assert agent.pull() is False
    agent.report_state()
    session = later.login()
    assert session["role"] == "Owner"
    late = Org(later, org.id, org.code, later.client(session["token"]))
    assert late.device().version == "1"


def test_the_commands_that_a_start_prints_work(stack: Stack) -> None:
    """What a person does first: copy them into a shell."""
    printed = (stack.home.parent / f"{stack.home.name}.out").read_text()
    _, _, commands = printed.partition("Log in as the owner:\n")
    login, _, rest = commands.partition("Enroll a device:\n")
    enroll, _, _ = rest.partition("Ctrl-C stops everything")
    for script, member in ((login, "token"), (enroll, "device_token")):
        done = subprocess.run(
            ["/bin/sh", "-euc", script], capture_output=True, text=True, check=False, timeout=60
        )
        assert json.loads(done.stdout).get(member), (done.stdout, done.stderr)


def test_secrets_are_for_the_owner_of_the_home_alone(stack: Stack) -> None:
    """Credentials and keys have mode 0600, the directories 0700."""
    directories = [stack.home, stack.home / "secrets", stack.home / "tls"]
    for path in (*directories, Home(stack.home).run_directory()):
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


@pytest.mark.parametrize("what", ["home", "port"])
def test_what_is_taken_is_said_plainly(stack: Stack, tmp_path: Path, what: str) -> None:
    """A second start on the same home, or on a port in use, ends with a sentence and a way out."""
    home = stack.home if what == "home" else tmp_path / "other"
    port = stack.port if what == "port" else test_stack.free_port()
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "up"],
        env={**os.environ, "EVERGREEN_HOME": str(home), "EVERGREEN_PORT": str(port)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in said
    assert {
        "home": f"Evergreen already runs on {home} (process {stack.process.pid})",
        "port": f"EVERGREEN_PORT={port + 1} make run",
    }[what] in said
    assert what == "home" or f"Port {port} is taken" in said
    assert stack.ready()
