"""The agent's queues: on disk, in order, and emptied only by a success."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Queue:
    """Entries that wait to be sent. With a path they survive a restart of the agent."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._entries: list[dict[str, Any]] = []
        if path is not None and path.exists():
            self._entries = [json.loads(line) for line in path.read_text().splitlines()]

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> list[dict[str, Any]]:
        """All that waits, oldest first."""
        return list(self._entries)

    def add(self, entry: dict[str, Any]) -> None:
        """Puts an entry at the end."""
        self._entries.append(entry)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(entry) + "\n")

    def sent(self, count: int) -> None:
        """Forgets the oldest entries, after they were acknowledged."""
        del self._entries[:count]
        if self._path is not None:
            text = "".join(json.dumps(entry) + "\n" for entry in self._entries)
            self._path.write_text(text)
