"""What the unit of `evergreen service` says; `tests/external` has systemd read it and run it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli import service
from contract.contexts import CONTEXTS
from deploy.launcher import backups, gateway, nats
from deploy.launcher.home import Home
from deploy.launcher.up import LONGEST_STOP_SECONDS
from deploy.systemd import Unit


def unit(**changes: Any) -> str:
    given: dict[str, Any] = {
        "command": ("/opt/ever green/bin/evergreen", "up"),
        "home": Path("/var/lib/evergreen"),
        "user": "evergreen",
        "group": "evergreen",
        "environment_file": Path("/etc/evergreen/evergreen.env"),
        "port": 8443,
        "stop_seconds": LONGEST_STOP_SECONDS,
    }
    return Unit(**given | changes).render()


def test_it_may_write_to_its_home_alone() -> None:
    """And to what its settings name; names with blanks, quotes and % are themselves."""
    lines = unit().splitlines()
    assert 'ExecStart="/opt/ever green/bin/evergreen" up' in lines
    assert "ReadWritePaths=-/var/lib/evergreen" in lines
    assert "CapabilityBoundingSet=" in lines
    assert "PrivateTmp=yes" in lines
    lines = unit(writable=(Path("/mnt/50 %"),), logs=Path("/var/log/evergreen")).splitlines()
    (paths,) = [line for line in lines if line.startswith("ReadWritePaths=")]
    assert paths == 'ReadWritePaths=-/var/lib/evergreen -/var/log/evergreen "-/mnt/50 %%"'
    assert "Environment=EVERGREEN_LOG_DIR=/var/log/evergreen" in lines


def test_a_low_port_is_the_one_privilege() -> None:
    lines = unit(port=443).splitlines()
    assert "CapabilityBoundingSet=CAP_NET_BIND_SERVICE" in lines
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE" in lines


def test_what_may_not_run_is_not_started_again() -> None:
    assert "RestartPreventExitStatus=78" in unit().splitlines()


def test_sockets_elsewhere_are_seen_by_commands() -> None:
    """A home whose path is too long for sockets has them in /tmp."""
    lines = unit(own_tmp=False).splitlines()
    assert "PrivateTmp=no" in lines
    assert any(line.startswith("ReadWritePaths=") and " /tmp" in line for line in lines)


def test_systemd_waits_for_the_slowest_stop(tmp_path: Path) -> None:
    """Group after group, each process with its grace and what follows it."""
    home = Home(tmp_path)
    home.prepare()
    ports = dict.fromkeys(("nats", "nats_monitor", *CONTEXTS), 1)
    after = 5.0
    groups = (
        max(backups.process(home).grace, gateway.GRACE_SECONDS + gateway.DRAIN_SECONDS),
        15.0,
        nats.process(home, CONTEXTS, ports).grace,
        20.0,
    )
    assert sum(groups) + after * len(groups) <= LONGEST_STOP_SECONDS


def test_an_installation_leaves_the_home_to_its_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home that is there and was never started has nothing of root's afterwards."""
    home, units, asked = tmp_path / "home", tmp_path / "units", list[str]()
    home.mkdir()
    units.mkdir()
    monkeypatch.setattr(service, "_UNITS", units)
    monkeypatch.setattr(service, "_require_systemd", lambda: None)
    monkeypatch.setattr(service, "_systemctl", lambda *words: asked.append(words[0]))
    words = ["install", "--home", str(home), "--env-file", str(tmp_path / "env")]
    done = CliRunner().invoke(service.app, words)
    assert done.exit_code == 0, done.output
    assert asked == ["daemon-reload", "enable", "restart"]
    assert (units / "evergreen.service").exists()
    assert list(home.iterdir()) == []
