"""Coalescing: calls in flight at the same moment share one database statement.

A batch is whatever has gathered since the batch before began, which is at least a moment ago; a
lone call is written at once. Under load tenants take turns: one that floods fills its own share of
the queue and waits behind itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from servicekit.admission.fair import FairQueue, Shares
from servicekit.errors import DomainError, exhausted, internal
from servicekit.observability import logs
from servicekit.observability.tracing import RunningSpan, current_span

log = logs.get(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

PATIENCE_SECONDS: Final = 10.0
BEAT_SECONDS: Final = 0.01
"""So far apart batches begin at least, if they are not full: a statement and its commit cost more
than the rows of a small batch."""
_SHORTEST_DELAY: Final = 2.0
_LONGEST_DELAY: Final = 60.0
_SMOOTHING: Final = 0.2


@dataclass(slots=True)
class _Waiting(Generic[Item, Result]):
    """One call's item, and where its result goes."""

    item: Item
    tenant: str
    since: float
    future: asyncio.Future[Result]
    span: RunningSpan | None
    """Where its call is recorded."""


class Batcher(Generic[Item, Result]):
    """Gathers items and hands them to `write`, which answers one result per item, in order.

    Args:
        name: what log lines call it.
        write: writes a batch in one transaction; what it raises, every call of the batch gets.
        max_batch: the most weight in one batch.
        max_waiting: the most weight that waits; further items are refused with a delay. No
            tenant gets all of it (`Shares`).
        weigh: the weight of an item, 1 when not given.
        tenant: whose item it is; all are one tenant's when not given.
        beat: seconds between the beginnings of two batches, unless the second one is full.
        patience: seconds after which an item that still waits is refused: its caller is about to
            give up, and who came later can still be served in time.
        clock: seconds, for `patience`.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        max_batch: int,
        max_waiting: int,
        weigh: Callable[[Item], int] = lambda item: 1,
        tenant: Callable[[Item], str] = lambda item: "",
        beat: float = 0.0,
        patience: float = PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._write = write
        self._max_batch = max_batch
        self._weigh = weigh
        self._tenant = tenant
        self._beat = beat
        self._patience = patience
        self._clock = clock
        self._queue: FairQueue[_Waiting[Item, Result]] = FairQueue()
        self._shares = Shares(max_waiting)
        self._seconds_per_weight = 0.0
        self._wake = asyncio.Event()
        self._full_batch = asyncio.Event()
        self._closing = False

    def require_room(self, tenant: str) -> None:
        """Refuses, before anything is done for it, an item that would find no room.

        Raises:
            DomainError: RESOURCE_EXHAUSTED when too much of the tenant's, or of all, waits.
        """
        if self._closing or not self._shares.has_room(tenant):
            raise self._full()

    async def submit(self, item: Item, *, goes_on: bool = False) -> Result:
        """Waits until the item is written and answers its result.

        Args:
            item: what to write.
            goes_on: the item belongs to work of which a part is written, and which something else
                bounds: it is not refused because the queue is full, for that would waste the work.

        Raises:
            DomainError: RESOURCE_EXHAUSTED when too much waits, or the item waited too long; what
                `write` raised.
        """
        weight, tenant = self._weigh(item), self._tenant(item)
        if goes_on and not self._closing:
            self._shares.take_anyway(tenant, weight)
        elif self._closing or not self._shares.take(tenant, weight):
            raise self._full()
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        caller = current_span.get()
        span = None if caller is None else caller.child(f"batch of {self._name}")
        self._queue.push(tenant, weight, _Waiting(item, tenant, self._clock(), future, span))
        self._wake.set()
        if self._shares.taken >= self._max_batch:
            self._full_batch.set()
        if span is None:
            return await future
        with span.ended():
            return await future

    async def run(self) -> None:
        """Writes batches until `close`; run it as a supervised task."""
        while True:
            self._wake.clear()
            while self._queue:
                batch, weight = self._take()
                if batch:
                    started = self._clock()
                    await self._write_batch(batch)
                    self._note_pace((self._clock() - started) / weight)
                    await self._gather(started + self._beat)
            if self._closing:
                return
            await self._wake.wait()

    async def _gather(self, until: float) -> None:
        """Lets further items join the next one, until then or until a batch is full."""
        left = until - self._clock()
        if left > 0 and self._shares.taken < self._max_batch and not self._closing:
            self._full_batch.clear()
            timer = asyncio.get_running_loop().call_later(left, self._full_batch.set)
            await self._full_batch.wait()
            timer.cancel()

    def close(self) -> None:
        """Refuses new items; `run` returns when all that wait are written."""
        self._closing = True
        self._wake.set()
        self._full_batch.set()

    def _full(self) -> DomainError:
        # Twice the time that all that waits takes, so that those refused find the queue short.
        delay = 2 * self._shares.taken * self._seconds_per_weight
        return exhausted(
            "QUEUE_FULL",
            "too many reports at once; send it again later",
            retry_after=min(max(delay, _SHORTEST_DELAY), _LONGEST_DELAY),
        )

    def _note_pace(self, seconds_per_weight: float) -> None:
        self._seconds_per_weight += _SMOOTHING * (seconds_per_weight - self._seconds_per_weight)

    def _take(self) -> tuple[list[_Waiting[Item, Result]], int]:
        """The next batch and its weight; empty when all that waited had waited in vain."""
        batch: list[_Waiting[Item, Result]] = []
        total = 0
        oldest = self._clock() - self._patience
        while self._queue and (not batch or total + self._queue.next_weight <= self._max_batch):
            weight, entry = self._queue.pop()
            self._shares.give_back(entry.tenant, weight)
            # A caller that has gone away needs no write; a retry of its device brings it back.
            if entry.future.done():
                continue
            if entry.since < oldest:
                entry.future.set_exception(self._full())
                continue
            if entry.span is not None:
                entry.span.event("taken to be written")
            batch.append(entry)
            total += weight
        return batch, total

    async def _write_batch(self, batch: list[_Waiting[Item, Result]]) -> None:
        try:
            await self._write_part(batch)
        finally:
            # A caller that has no answer by now, because the service stops, is not to wait for one.
            self._fail(batch, internal())

    async def _write_part(self, batch: list[_Waiting[Item, Result]]) -> None:
        # Also when a part is written again, some callers have gone meanwhile.
        batch = [entry for entry in batch if not entry.future.done()]
        if not batch:
            return
        try:
            results = await self._write([entry.item for entry in batch])
        except DomainError as error:
            self._fail(batch, error)
        except Exception:
            if len(batch) > 1:
                # One item that cannot be written must not take the others with it. By halves,
                # so that finding it among many costs few writes.
                middle = len(batch) // 2
                await self._write_part(batch[:middle])
                await self._write_part(batch[middle:])
            else:
                log.exception("item not written", batch=self._name)
                self._fail(batch, internal())
        else:
            for entry, result in zip(batch, results, strict=True):
                if not entry.future.done():
                    entry.future.set_result(result)

    @staticmethod
    def _fail(batch: list[_Waiting[Item, Result]], error: DomainError) -> None:
        for entry in batch:
            if not entry.future.done():
                entry.future.set_exception(error)
