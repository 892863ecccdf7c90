"""Entries on standard output, one line of JSON each, for what collects the logs of containers.

Their collector is not waited for: what does not fit into the queue is dropped, and counted.
A process that dies has maybe not written its last entries, and nobody writes them again.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Sequence
from typing import Final, TextIO

from prometheus_client import Counter

from auditlog.entries import Entry
from services.audit.forward.formats import LONGEST, Item, UnreadableError, compact

_DROPPED: Final = Counter(
    "evergreen_audit_stdout_dropped_total",
    "Entries that were not written to standard output, because nobody read it.",
)
_MOST_WAITING: Final = 10_000
_AT_ONCE: Final = 200


class Stdout:
    """Writes entries that were recorded."""

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file
        self._waiting: deque[Entry] = deque()
        self._wake = asyncio.Event()

    def recorded(self, entries: Sequence[Entry]) -> None:
        """Takes what was recorded."""
        room = max(_MOST_WAITING - len(self._waiting), 0)
        self._waiting.extend(entries[:room])
        _DROPPED.inc(len(entries[room:]))
        self._wake.set()

    async def run(self) -> None:
        """Writes, for as long as the service lives."""
        while True:
            self._wake.clear()
            while self._waiting:
                count = min(len(self._waiting), _AT_ONCE)
                lines = [line(self._waiting.popleft()) for _ in range(count)]
                # In a thread: a pipe that is full must not hold the service up.
                await asyncio.to_thread(self._write, "".join(lines))
            await self._wake.wait()

    def _write(self, text: str) -> None:
        file = self._file or sys.stdout
        file.write(text)
        file.flush()


def line(entry: Entry) -> str:
    """The line of an entry; empty for one that is damaged."""
    try:
        return f'{{"audit":{compact(Item.of(entry).within(LONGEST)).decode()}}}\n'
    except UnreadableError:
        return ""
