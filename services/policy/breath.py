"""Lets others be answered while something long is computed."""

from __future__ import annotations

import asyncio
from typing import Final

_SECONDS: Final = 0.002


class Breath:
    """Taken between pieces of work, each of which is short."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()

    async def take(self) -> None:
        """Lets others be answered where it was worked for two milliseconds."""
        if self._loop.time() - self._since >= _SECONDS:
            await asyncio.sleep(0)
            self._since = self._loop.time()
