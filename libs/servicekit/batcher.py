"""Coalescing: calls in flight at the same moment share one database statement.

A batch is whatever has gathered while the batch before was written; nothing waits for company,
so the latency of a lone call does not grow.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from servicekit import logs
from servicekit.errors import DomainError, exhausted, internal

log = logs.get(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Gathers items and hands them to `write`, which answers one result per item, in order.

    Args:
        name: what log lines call it.
        write: writes a batch in one transaction; what it raises, every call of the batch gets.
        max_batch: the most weight in one batch.
        max_waiting: the most weight that waits; further items are refused with a delay.
        weigh: the weight of an item, 1 when not given.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        max_batch: int,
        max_waiting: int,
        weigh: Callable[[Item], int] = lambda item: 1,
    ) -> None:
        self._name = name
        self._write = write
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._weigh = weigh
        self._queue: deque[tuple[Item, int, asyncio.Future[Result]]] = deque()
        self._weight = 0
        self._wake = asyncio.Event()
        self._closing = False

    async def submit(self, item: Item) -> Result:
        """Waits until the item is written and answers its result.

        Raises:
            DomainError: RESOURCE_EXHAUSTED when too much waits; what `write` raised.
        """
        weight = self._weigh(item)
        # An item alone may be heavier than the whole bound; an empty queue takes it.
        if self._closing or (self._weight and self._weight + weight > self._max_waiting):
            raise exhausted("QUEUE_FULL", "too many reports at once; send it again later")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.append((item, weight, future))
        self._weight += weight
        self._wake.set()
        return await future

    async def run(self) -> None:
        """Writes batches until `close`; run it as a supervised task."""
        while True:
            self._wake.clear()
            while self._queue:
                await self._write_batch(self._take())
            if self._closing:
                return
            await self._wake.wait()

    def close(self) -> None:
        """Refuses new items; `run` returns when all that wait are written."""
        self._closing = True
        self._wake.set()

    def _take(self) -> list[tuple[Item, int, asyncio.Future[Result]]]:
        batch = [self._queue.popleft()]
        total = batch[0][1]
        while self._queue and total + self._queue[0][1] <= self._max_batch:
            batch.append(self._queue.popleft())
            total += batch[-1][1]
        self._weight -= total
        return batch

    async def _write_batch(self, batch: list[tuple[Item, int, asyncio.Future[Result]]]) -> None:
        try:
            await self._write_part(batch)
        finally:
            # Whoever has no answer by now, because the service stops, is not to wait for one.
            self._fail(batch, internal())

    async def _write_part(self, batch: list[tuple[Item, int, asyncio.Future[Result]]]) -> None:
        # A caller that has gone away needs no write; a retry of its device brings it back.
        batch = [entry for entry in batch if not entry[2].done()]
        if not batch:
            return
        try:
            results = await self._write([item for item, _, _ in batch])
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
                log.exception("an item could not be written", batch=self._name)
                self._fail(batch, internal())
        else:
            for (_, _, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)

    @staticmethod
    def _fail(batch: list[tuple[Item, int, asyncio.Future[Result]]], error: DomainError) -> None:
        for _, _, future in batch:
            if not future.done():
                future.set_exception(error)
