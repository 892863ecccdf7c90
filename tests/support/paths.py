"""Where tests run: the source tree, the machine, and how much of it they may take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
"""The project's folder."""

LONG: Final = bool(os.environ.get("EVERGREEN_TEST_LONG"))
"""Whether this is `make test-long`: what is tried at random is tried thousands of times."""

_MEMORY: Final = Path("/dev/shm")
_ROOM: Final = 6 << 30
"""Bytes; all tests write a third of it."""


def in_memory() -> Path | None:
    """A folder in memory with room for what the tests write, if the machine has one.

    Programs must run from it as well: tests put stand-ins of programs beside their files.
    """
    try:
        found = os.statvfs(_MEMORY)
    except OSError:
        return None
    usable = os.access(_MEMORY, os.W_OK) and not found.f_flag & (os.ST_NOEXEC | os.ST_RDONLY)
    return _MEMORY if usable and min(found.f_bavail * found.f_frsize, _free()) >= _ROOM else None


def _free() -> int:
    """The bytes of memory that programs can have."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0
