"""The machine: room on the disk, its clock, its time zone, and the gateway's port."""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from cli.doctor.finding import Check, Finding, judged, skipped, warning

DISK: Final = "machine.disk"
CLOCK: Final = "machine.clock"
ZONE: Final = "machine.time-zone"
PORT: Final = "machine.port"

_FULL: Final = 0.05
_NEARLY_FULL: Final = 0.15
_FULL_BYTES: Final = 1 << 30
_NEARLY_FULL_BYTES: Final = 5 << 30
_ROOM: Final = "Make room, or give it a larger disk. Old events can be kept for a shorter time."
_UTC: Final = frozenset({"UTC", "UTC0", "Etc/UTC", "Zulu", "Etc/UCT", "UCT"})
# adjtimex(2).
_TIMEX_BYTES: Final = 208
_UNSYNCHRONISED: Final = 5


def disks(paths: Iterable[Path]) -> Check:
    """The disks of some directories."""
    there = list(dict.fromkeys(paths))
    if not there:
        return skipped(DISK, "no directory is known; give one with --disk")
    found = [finding for path in there for finding in disk(path)]
    return judged(DISK, found, ", ".join(_room(path) for path in there) if not found else "")


def _room(path: Path) -> str:
    found = shutil.disk_usage(path)
    return f"{path}: {found.free / (1 << 30):.1f} GiB left ({found.free / found.total:.0%})"


def disk(path: Path, usage: Callable[[Path], Any] = shutil.disk_usage) -> Iterator[Finding]:
    """Whether the disk of a directory is nearly full."""
    try:
        found = usage(path)
    except OSError as error:
        yield Finding(
            "DISK_UNREADABLE", f"{path} cannot be looked at: {error.strerror}", "Is it mounted?"
        )
        return
    free = found.free / found.total
    what = f"the disk of {path} has {found.free / (1 << 30):.1f} GiB left ({free:.0%})"
    if free < _FULL or found.free < _FULL_BYTES:
        yield Finding("DISK_FULL", what, _ROOM)
    elif free < _NEARLY_FULL and found.free < 4 * _NEARLY_FULL_BYTES:
        yield warning("DISK_NEARLY_FULL", what, _ROOM)


def clock_state() -> int | None:
    """What the kernel says of its clock (adjtimex(2)); None where nobody can say."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        # All zero: nothing is set, the state is answered.
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return int(state) if state >= 0 else None


def clock(state: Callable[[], int | None] = clock_state) -> Check:
    """Whether anything keeps this machine's clock right."""
    found = state()
    if found is None:
        return skipped(CLOCK, "this system does not say whether its clock is synchronised")
    if found == _UNSYNCHRONISED:
        return judged(
            CLOCK,
            [
                warning(
                    "CLOCK_NOT_SYNCHRONISED",
                    "the kernel says that nothing keeps this machine's clock right",
                    "Let it follow a time server (timedatectl set-ntp true): tokens and"
                    " certificates count on the time. (Inside a container or a virtual machine"
                    " whose host does it, this can be ignored.)",
                )
            ],
        )
    return judged(CLOCK, [], "synchronised")


def time_zone(zones: Iterable[tuple[str, str]]) -> Check:
    """Whether all processes run in UTC; `zones` are processes with their `TZ`."""
    known = list(zones)
    others = [f"{name} ({zone or 'not set'})" for name, zone in known if zone not in _UTC]
    if not known:
        return skipped(ZONE, "no process of this installation can be looked at from here")
    if not others:
        return judged(ZONE, [], "UTC")
    return judged(
        ZONE,
        [
            warning(
                "TIME_ZONE",
                f"not every process runs in UTC: {', '.join(others)}",
                "Set TZ=UTC for it, as `evergreen up`, docker-compose.yaml and the chart do: logs"
                " and PostgreSQL's own times are else in other zones than the rest.",
            )
        ],
    )


def zones_of(processes: Iterable[tuple[str, int]]) -> Iterator[tuple[str, str]]:
    """The `TZ` of running processes, as far as this user may see it."""
    for name, pid in processes:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        found = [entry[3:] for entry in environment if entry.startswith(b"TZ=")]
        yield name, os.fsdecode(found[0]) if found else ""


def port(number: int) -> Iterator[Finding]:
    """Whether another program has the gateway's port, when the gateway does not run."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", number))  # noqa: S104 - as the gateway does
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                yield Finding(
                    "PORT_IN_USE",
                    f"port {number} is taken by another program{_holder(number)}",
                    "Stop that program, or choose another port (EVERGREEN_PORT, or HTTPS_PORT in"
                    " .env).",
                )
            elif error.errno == errno.EACCES:
                yield Finding(
                    "PORT_FORBIDDEN",
                    f"port {number} may be used by root only",
                    "Choose a port above 1023.",
                )


def _holder(number: int) -> str:
    """Which process listens on the port, as far as this user may see it."""
    try:
        # Comes with what runs without containers.
        from deploy.launcher.ports import listener  # noqa: PLC0415
    except ImportError:
        return ""
    return listener(number)


def is_loopback(host: str) -> bool:
    """Whether a name or an address stands for this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
