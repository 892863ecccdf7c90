"""`evergreen service` on a real systemd: at boot, after a crash, and at the end."""

from __future__ import annotations

import json
import os
import pwd
import shlex
import shutil
import ssl
import subprocess
import sys
import sysconfig
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.external import systemd
from tests.external.systemd import Machine
from tests.support import debian
from tests.support.documented import Commands
from tests.support.paths import ROOT
from tests.support.stack import PATIENCE, free_port, until

COMMAND = Path(sys.executable).with_name("evergreen")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with systemd.machine(tmp_path_factory.mktemp("systemd")) as found:
        yield found


@pytest.fixture
def state() -> Iterator[Path]:
    """A directory that is neither a temporary nor a private one to a unit."""
    directory = Path(tempfile.mkdtemp(prefix="evergreen-test-", dir="/var/lib"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def program_of(user: str, state: Path) -> Path:
    """The command, where a user can run it: the interpreter of the tests may be root's own."""
    if user == "root":
        return COMMAND
    python = Path("/usr/bin/python3")
    asked = [python, "-c", "import sys; print(sys.version_info[:2])"]
    version = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    if version != str(sys.version_info[:2]):
        pytest.skip(f"{python} is not of the version that the packages are for")
    venv = state / "venv"
    subprocess.run([python, "-m", "venv", "--without-pip", venv], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    here = sysconfig.get_path("purelib")
    (packages / "evergreen.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    (venv / "bin" / "nats-server").symlink_to(COMMAND.with_name("nats-server"))
    script = venv / "bin" / "evergreen"
    script.write_text(f"#!{venv}/bin/python\nfrom cli.entry import main\nmain()\n")
    script.chmod(0o755)
    done = subprocess.run([script, "--help"], user=user, cwd="/", capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"{user} cannot read {ROOT}")
    return script


def shown(machine: Machine, unit: str) -> dict[str, str]:
    done = machine.run("systemctl", "show", unit)
    return dict(line.partition("=")[::2] for line in done.stdout.splitlines())


def ready(home: Path, port: int) -> bool:
    try:
        context = ssl.create_default_context(cafile=home / "tls/ca.crt")
        url = f"https://localhost:{port}/readyz"
        with urllib.request.urlopen(url, context=context, timeout=10) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def processes(home: Path) -> list[int]:
    """Processes of a home: they have it in their environment or as their words."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            text = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(home) in text:
            found.append(int(path.name))
    return found


@pytest.mark.timeout(500)
@pytest.mark.parametrize("user", ["daemon", "root"])
def test_a_service_runs_and_comes_back(machine: Machine, state: Path, user: str) -> None:
    """Confined, told ready when it is, in the journal by level, started again, stopped in order."""
    command = program_of(user, state)
    home, settings, port = state / "home", state / "evergreen.env", free_port()
    settings.write_text(f"EVERGREEN_PORT={port}\nEVERGREEN_LOG_FILES=2\n")
    # As the documentation says it; the files of this machine stay as they are.
    (block,) = Commands("docs/install.md", "servers").take("Start it with the machine")
    documented = block.filled(
        {
            "/var/lib/evergreen": str(home),
            "sudo .venv/bin/evergreen": str(command),
            "--user evergreen": f"--user {user} --env-file {settings} --log-dir {state}/logs",
        }
    ).text.splitlines()
    name, install = "evergreen", shlex.split(documented[0])
    done = machine.run(*install)
    assert done.returncode == 0, done.stderr + machine.run("journalctl", "-n", "60").stdout
    # `systemctl restart` waits for READY=1.
    assert ready(home, port)
    assert home.stat().st_uid == pwd.getpwnam(user).pw_uid
    facts = shown(machine, name)
    assert (facts["ActiveState"], facts["UnitFileState"]) == ("active", "enabled")
    assert facts["StatusText"].startswith("Ready after")
    assert facts["NoNewPrivileges"] == "yes"
    status = machine.run(*shlex.split(documented[1]))
    assert status.returncode == 0
    assert "starts with the machine" in status.stdout
    lines = machine.run(*shlex.split(documented[2]), "-o", "json").stdout.splitlines()
    entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
    told = {str(entry["MESSAGE"]): entry["PRIORITY"] for entry in entries}
    message = next(text for text in told if text.startswith("evergreen: ready"))
    assert told[message] == "6"
    assert (state / "logs" / "evergreen.log").exists()
    assert not (home / "logs" / "evergreen.log").exists()

    main = facts["MainPID"]
    machine.run("kill", "-KILL", main)
    until(lambda: shown(machine, name)["NRestarts"] == "1", PATIENCE, "it is not started again")
    until(lambda: shown(machine, name)["ActiveState"] == "active", 2 * PATIENCE, "it is not active")
    assert shown(machine, name)["MainPID"] != main
    assert ready(home, port)

    again = machine.run(*install, "--no-start")
    assert again.returncode == 0, again.stderr
    since = machine.run("date", "+%s").stdout.strip()
    done = machine.run(*shlex.split(documented[3]))
    assert done.returncode == 0, done.stderr
    said = machine.run("journalctl", "-u", name, "-o", "cat", "--since", f"@{since}").stdout
    assert "evergreen: Stopped after" in said
    assert "Killing process" not in said
    assert processes(home) == []
    assert machine.run(command, "service", "status").returncode == 4
    assert (home / "bootstrap.json").exists()


def test_a_home_that_runs_already_is_not_taken(machine: Machine, state: Path) -> None:
    """Two launchers cannot have it, and systemd would try again and again."""
    home = state / "home"
    home.mkdir()
    held = "from deploy.launcher.home import Home; from pathlib import Path; import time\n"
    held += f"with Home(Path({str(home)!r})).locked(): print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen(
        [sys.executable, "-c", held], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        words = ("--name", "taken", "--home", home, "--env-file", state / "env")
        done = machine.run(COMMAND, "service", "install", *words)
        assert done.returncode == 1
        assert "already runs" in done.stderr
        assert machine.run(COMMAND, "service", "status", "--name", "taken").returncode == 4
    finally:
        holder.kill()
        holder.wait()


def test_the_unit_is_one_that_systemd_understands(tmp_path: Path) -> None:
    """With names that need quotes, below port 1024; and it is confined."""
    debian.require("systemd-analyze")
    home, settings = tmp_path / 'a "home" 100%', tmp_path / "env"
    home.mkdir()
    settings.write_text("EVERGREEN_PORT=443\nEVERGREEN_BACKUP_TARGET=/mnt/backup disk\n")
    for user in ("root", "daemon"):
        words = ["--home", home, "--user", user, "--env-file", settings, "--print"]
        done = subprocess.run(
            [COMMAND, "service", "install", *words], capture_output=True, text=True, check=True
        )
        unit = tmp_path / "evergreen.service"
        unit.write_text(done.stdout)
        checked = subprocess.run(
            ["systemd-analyze", "verify", "--recursive-errors=no", unit],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (checked.returncode, checked.stderr) == (0, "")
        rated = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--threshold=35", unit],
            capture_output=True,
            text=True,
            check=False,
        )
        assert rated.returncode == 0, rated.stdout[-400:]
        assert "CAP_NET_BIND_SERVICE" in done.stdout
        assert ("CAP_SETUID" in done.stdout) is (user == "root")
