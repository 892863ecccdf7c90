"""Fresh views before deliveries, where what is asked may hang."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from servicekit.observability import logs
from servicekit.observability.logs import brief

log = logs.get(__name__)

WAIT_SECONDS: Final = 5.0
"""So long a device waits for a fresh view; then it gets what is known."""
AWAY_SECONDS: Final = 5.0
"""So long nobody waits for what did not answer. Then one device at a time does: a herd that waits
takes the places of devices that have everything."""


class Freshness:
    """Asks somebody for what has changed.

    Args:
        what: who it is, for log lines.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._away_until = 0.0
        self._is_away = False
        self._asking = 0

    async def ask(self, read: Callable[[], Awaitable[object]]) -> bool:
        """Reads what has changed; answers whether that was possible."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._away_until or (self._is_away and self._asking):
            return False
        self._asking += 1
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await read()
        except Exception as error:
            # Whatever is wrong with it, devices get what is known.
            self._is_away = True
            self._away_until = loop.time() + AWAY_SECONDS
            log.info("delivery goes on with what is known", away=self._what, error=brief(error))
            return False
        finally:
            self._asking -= 1
        self._is_away = False
        return True
