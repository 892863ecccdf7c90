"""Log files that never fill the disk: rotated by size, a few old ones kept."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of a process's output is kept."""

    largest: int = 16 * 1024 * 1024
    """Bytes of a file before it is rotated."""
    kept: int = 4
    """Rotated files that are kept beside the current one."""


DEFAULT: Final = Bounds()


class LogFile:
    """The file that a process's output goes to, as it was printed."""

    def __init__(
        self, path: Path, *, largest: int = DEFAULT.largest, kept: int = DEFAULT.kept
    ) -> None:
        self.path = path
        self._largest = largest
        self._kept = kept
        self._file: BinaryIO | None = None
        self._size = 0

    def write(self, data: bytes) -> None:
        """Appends whole lines. A disk that refuses them does not stop the processes."""
        try:
            if self._file is None:
                self._open()
            elif self._size + len(data) > self._largest:
                self._rotate()
            if self._file is not None:
                self._size += self._file.write(data)
        except OSError:
            self.close()

    def close(self) -> None:
        """Closes the file; the next write opens it again."""
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                file.close()

    def _open(self) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._file = os.fdopen(descriptor, "ab", buffering=0)
        self._size = os.fstat(descriptor).st_size

    def _rotate(self) -> None:
        self.close()
        for number in range(self._kept - 1, 0, -1):
            old = self.path.with_name(f"{self.path.name}.{number}")
            if old.exists():
                old.replace(self.path.with_name(f"{self.path.name}.{number + 1}"))
        if self._kept:
            self.path.replace(self.path.with_name(f"{self.path.name}.1"))
        self._open()
