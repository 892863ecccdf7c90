"""What `evergreen doctor` finds on the machine: disk, port, clock, time zone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from cli.doctor import machine
from cli.doctor.finding import Finding, Severity
from tests.support.doctor import codes
from tests.support.stack import free_port


def test_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    class Usage(NamedTuple):
        total: int
        free: int

    def check(total: int, free: int) -> list[Finding]:
        return list(machine.disk(tmp_path, lambda _: Usage(total << 30, free << 30)))

    (full,) = check(100, 3)
    assert (full.code, full.severity) == ("DISK_FULL", Severity.ERROR)
    (nearly,) = check(100, 12)
    assert (nearly.code, nearly.severity) == ("DISK_NEARLY_FULL", Severity.WARNING)
    assert check(100, 40) == []
    # A twentieth of a large disk is still much.
    assert codes(check(2000, 160)) == []
    assert codes(machine.disk(tmp_path / "missing")) == ["DISK_UNREADABLE"]


def test_a_port_that_another_program_has() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        (found,) = machine.port(taken.getsockname()[1])
        assert found.code == "PORT_IN_USE"
        assert f"process {os.getpid()}" in found.what
    assert list(machine.port(free_port())) == []


def test_a_clock_that_nothing_keeps_right() -> None:
    (found,) = machine.clock(lambda: 5).findings
    assert (found.code, found.severity) == ("CLOCK_NOT_SYNCHRONISED", Severity.WARNING)
    assert machine.clock(lambda: 0).status == "ok"
    assert machine.clock(lambda: None).status == "skipped"


def test_a_process_in_another_time_zone() -> None:
    """As it is told by the processes themselves."""
    # Without a word a process may not have its environment yet.
    command = [sys.executable, "-c", "import time; print('runs', flush=True); time.sleep(600)"]
    west = subprocess.Popen(command, env={"TZ": "America/Bogota"}, stdout=subprocess.PIPE)
    utc = subprocess.Popen(command, env={"TZ": "UTC"}, stdout=subprocess.PIPE)
    try:
        for process in (west, utc):
            assert process.stdout is not None
            assert process.stdout.readline() == b"runs\n"
        zones = list(machine.zones_of([("telemetry", west.pid), ("policy", utc.pid)]))
        (found,) = machine.time_zone(zones).findings
        assert found.code == "TIME_ZONE"
        assert "telemetry (America/Bogota)" in found.what
        assert "policy" not in found.what
        assert machine.time_zone(zones[1:]).status == "ok"
        assert machine.time_zone([]).status == "skipped"
    finally:
        for process in (west, utc):
            process.kill()
            process.communicate()
