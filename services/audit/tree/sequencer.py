"""Has the tree take in what was committed to the chains. One process does it at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias
from uuid import UUID

from prometheus_client import Gauge

from servicekit.build import VERSION
from servicekit.call import begin_background_call
from servicekit.data.postgres import Connection, Database
from servicekit.ids import Clock
from servicekit.messaging.outbox import write
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from services.audit.tree import store
from services.audit.tree.restores import Restore
from services.audit.tree.store import Log

log = logs.get(__name__)

_SIZE: Final = Gauge("evergreen_audit_tree_size", "Leaves of the tree over all entries.")
_LOOK_SECONDS: Final = 5.0
"""So long another process may have recorded something before this one looks."""
_LINGER_SECONDS: Final = 1.0
"""So long what was recorded waits: more may come, and all is taken in at once;"""
_HURRY_SECONDS: Final = 0.05
"""and so long, when somebody waits for it."""
_FULL_LOOK_SECONDS: Final = 60.0
_NO_BACKUP: Final = UUID(int=0)

First: TypeAlias = Callable[[Connection], Awaitable[bool]]


class Sequencer:
    """Grows the tree soon after something was recorded, and at once when it is asked to.

    Args:
        database: the service's.
        host: what the origin of a first log begins with.
        clock: the time.
        recorded: answers what changes with everything that is recorded; `None` for not known.
    """

    def __init__(
        self,
        database: Database,
        host: str,
        clock: Clock,
        recorded: Callable[[Connection], Awaitable[object]],
    ) -> None:
        self._database = database
        self._host = host
        self._clock = clock
        self._recorded = recorded
        self._wake = asyncio.Event()
        self._seen: object = None
        self._look_at = 0.0
        self._hurry = False

    def recorded(self) -> None:
        """This process has recorded something."""
        self._wake.set()

    def wake(self) -> None:
        """Somebody waits for an entry to be in the tree."""
        self._look_at = 0.0
        self._hurry = True
        self._wake.set()

    async def run(self) -> None:
        """Grows it, for as long as the service lives."""
        outage = Repeated(log, "tree of the audit log not grown")
        while True:
            self._wake.clear()
            self._hurry = False
            begin_background_call()
            try:
                await self._look()
                outage.worked()
            except Exception as error:
                self._seen = None
                outage.failed(error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _LOOK_SECONDS)
            await asyncio.sleep(_HURRY_SECONDS if self._hurry else _LINGER_SECONDS)

    async def _look(self) -> None:
        """Grows the tree until it has everything, unless nothing was recorded since."""
        now = asyncio.get_running_loop().time()
        async with self._database.system_transaction("the tree has no tenant") as connection:
            seen = await self._recorded(connection)
        if seen is not None and seen == self._seen and now < self._look_at:
            return
        while await self.grow():
            pass
        self._seen, self._look_at = seen, now + _FULL_LOOK_SECONDS

    async def grow(self) -> bool:
        """Takes in some entries; answers whether there may be more."""
        async with self._database.system_transaction("the tree has no tenant") as connection:
            log = await store.newest(connection, lock=True)
            if log is None:
                if await store.newest(connection) is not None:
                    # Another process grows it.
                    return False
                await store.begin(connection, 1, self._host, "", self._clock())
                return True
            grown = await store.grow(connection, log)
        _SIZE.set(grown.size)
        return grown.size > log.size

    async def begin(self) -> None:
        """Begins the first log, if there is none."""
        async with self._database.system_transaction("the tree has no tenant") as connection:
            if await store.newest(connection) is None:
                await store.begin(connection, 1, self._host, "", self._clock())

    async def begin_again(self, first: First | None = None) -> Log | None:
        """Begins another log, and tells each chain: the database went back to an earlier state.

        Args:
            first: answers within the transaction whether no other process has done it.
        """
        begin_background_call()
        async with self._database.system_transaction("the tree has no tenant") as connection:
            ended = await store.hold(connection)
            if ended is None or (first is not None and not await first(connection)):
                return None
            at = self._clock()
            begun = await store.begin_behind(connection, ended, at)
            restore = Restore(
                _NO_BACKUP, VERSION, ended.origin, begun.origin, actor="evergreen audit"
            )
            ends = await store.ends(connection, at)
            await write(connection, "audit", *map(restore.event, ends))
        log.warning("audit log restored; its tree begins anew", before=ended.origin)
        self.wake()
        return begun
