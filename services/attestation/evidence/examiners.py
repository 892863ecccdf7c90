"""Evidence is examined off the event loop, a bounded number of pieces at a time.

Organisations take turns: a device's longest event log takes a tenth of a second, and one that
sends many must not keep the others' evidence waiting.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, TypeVar

from servicekit.admission.fair import FairQueue, Shares
from servicekit.call import Caller
from servicekit.errors import DomainError, exhausted

Result = TypeVar("Result")

LARGE_BODY: Final = 64 << 10
"""Bytes of a body for which there may be no room: one with an event log."""
BODY_BYTES: Final = 32 << 20
"""Of large bodies that are worked on at the same time."""
_THREADS: Final = 2
_NICENESS: Final = 10
"""Of the threads: where one machine carries everything, devices that ask for their policy come
first."""
_RETRY_AFTER: Final = 20.0
"""A device attests once a boot: it can wait longer than others."""


class Examiners:
    """Threads that parse and verify, and the places of those that wait for them.

    Args:
        most: the most attestations at once, which organisations share (`Shares`).
    """

    def __init__(self, most: int) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, "evidence", initializer=_give_way)
        self._places = Shares(most)
        self._bytes = Shares(BODY_BYTES)
        self._free = _THREADS
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()

    @contextmanager
    def room_for_body(self, caller: Caller, size: int) -> Iterator[None]:
        """Holds the memory that a large body needs while it is worked on.

        Raises:
            DomainError: RESOURCE_EXHAUSTED when too much is being worked on.
        """
        if not self._bytes.take(caller.tenant_id, size):
            raise _too_many()
        try:
            yield
        finally:
            self._bytes.give_back(caller.tenant_id, size)

    @contextmanager
    def place(self, tenant_id: str) -> Iterator[None]:
        """Holds a place for an attestation from its beginning to its end.

        Raises:
            DomainError: RESOURCE_EXHAUSTED when there is none.
        """
        if not self._places.take(tenant_id):
            raise _too_many()
        try:
            yield
        finally:
            self._places.give_back(tenant_id)

    async def run(self, tenant_id: str, work: Callable[[], Result]) -> Result:
        """Does some work in a thread, when it is its tenant's turn; given up with its call."""
        if self._free:
            self._free -= 1
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.push(tenant_id, 1, turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._pass_on()
                raise
        try:
            done = self._threads.submit(work)
        except BaseException:
            self._pass_on()
            raise
        loop = asyncio.get_running_loop()

        def free(_: Future[Result]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._pass_on)

        # The thread is free when its work ends, whoever waits for that.
        done.add_done_callback(free)
        return await asyncio.wrap_future(done)

    def _pass_on(self) -> None:
        """Gives a free thread to whose turn it is."""
        while self._waiting:
            _, turn = self._waiting.pop()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


def _too_many() -> DomainError:
    return exhausted(
        "TOO_MANY_ATTESTATIONS",
        "too many attestations at once; try again",
        retry_after=_RETRY_AFTER,
    )


def _give_way() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
