"""Which keys for policies devices may still be let in with."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from servicekit.ids import Clock
from services.enrollment.registry.peers import Peers

KNOWN_FOR: Final = timedelta(seconds=10)
_MOST: Final = 1000


class PinnedKeys:
    """What policy said of keys a moment ago.

    A device is refused by it before it is registered. It is no more than that: policy signs for a
    device that is let in, or does not.
    """

    def __init__(self, peers: Peers, clock: Clock) -> None:
        self._peers = peers
        self._clock = clock
        self._said: dict[str, tuple[datetime, bool]] = {}

    async def retired(self, asked: Mapping[str, UUID]) -> frozenset[str]:
        """Those of some keys with which no device is let in.

        Args:
            asked: ids of keys, empty for the first one, and an organisation whose devices pin it.
        """
        at = self._clock()
        unknown = [key_id for key_id in asked if self._is_old(key_id, at)]
        if len(self._said) + len(unknown) > _MOST:
            self._said.clear()
            unknown = list(asked)
        answers = await asyncio.gather(
            *(self._peers.admits(asked[key_id], key_id) for key_id in unknown)
        )
        for key_id, admits in zip(unknown, answers, strict=True):
            self._said[key_id] = at, admits
        return frozenset(key_id for key_id in asked if not self._said[key_id][1])

    def _is_old(self, key_id: str, at: datetime) -> bool:
        said_at, _ = self._said.get(key_id, (None, True))
        return said_at is None or not said_at <= at < said_at + KNOWN_FOR
