"""What an installation publishes of its log, where it wants to: to anyone, without a token.

Checkpoints, and the hashes of leaves and above them. From these nobody learns what an entry says,
not even by a guess, for the hash of an entry is made with that of the entry before it. Those are
what bundles of entries hold, which stay with users: entries of format v1 have no salt.
"""

from __future__ import annotations

import asyncio
from typing import Final

from auditlog.notes import TreeCheckpoint
from servicekit.errors import not_found
from services.audit.tree.service import Tree

_SECONDS: Final = 10.0


class Published:
    """The log as anyone sees it.

    Args:
        tree: of the log.
        is_open: whether it is published.
    """

    def __init__(self, tree: Tree, *, is_open: bool) -> None:
        self._tree = tree
        self._is_open = is_open
        self._newest: TreeCheckpoint | None = None
        self._until = 0.0
        self._lock = asyncio.Lock()

    async def checkpoint(self) -> TreeCheckpoint:
        """The newest checkpoint, at most ten seconds old; with witnesses, one that they signed.

        Raises:
            DomainError: NOT_FOUND when the log is not published, UNAVAILABLE before there is one.
        """
        if not self._is_open:
            raise not_found("published piece of the tree", "checkpoint")
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if self._newest is None or now >= self._until:
                asks = self._tree.asks_witnesses
                self._newest = await (self._tree.witnessed() if asks else self._tree.checkpoint())
                self._until = now + _SECONDS
            return self._newest

    async def tile(self, path: str) -> bytes:
        """Hashes of the published tree.

        Raises:
            DomainError: NOT_FOUND when the log is not published, or has no such hashes;
                INVALID_ARGUMENT for no such path.
        """
        if not self._is_open or path.startswith("entries"):
            raise not_found("published piece of the tree", path)
        return await self._tree.tile(path)
