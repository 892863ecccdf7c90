"""Sources that failed again and again: for a while nobody waits for them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final
from uuid import UUID

FAILURES: Final = 3
"""Failures in a row after which nobody waits for a source,"""
PAUSE_SECONDS: Final = 30.0
"""for so long."""


@dataclass(slots=True)
class _Failures:
    """How a source has failed lately."""

    count: int = 0
    until: float = 0.0
    """Until when nobody asks it, by the event loop's clock."""


class Breaker:
    """Counts failures in a row, of each source."""

    def __init__(self) -> None:
        self._failures: dict[UUID, _Failures] = {}

    def left(self, source_id: UUID) -> float:
        """For how many seconds a source is not asked; 0 when it is."""
        known = self._failures.get(source_id)
        if known is None:
            return 0.0
        return max(0.0, known.until - asyncio.get_running_loop().time())

    def worked(self, source_id: UUID) -> None:
        """Notes that a source has answered."""
        self._failures.pop(source_id, None)

    def failed(self, source_id: UUID) -> None:
        """Notes that it has not."""
        known = self._failures.setdefault(source_id, _Failures())
        known.count += 1
        if known.count >= FAILURES:
            known.until = asyncio.get_running_loop().time() + PAUSE_SECONDS
