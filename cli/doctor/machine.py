"""The machine: room on the disk, and the gateway's port."""

from __future__ import annotations

import errno
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from cli.doctor.finding import Finding, warning

_FULL: Final = 0.05
_NEARLY_FULL: Final = 0.15
_FULL_BYTES: Final = 1 << 30
_NEARLY_FULL_BYTES: Final = 5 << 30
_ROOM: Final = "Make room, or give it a larger disk. Old events can be kept for a shorter time."


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
