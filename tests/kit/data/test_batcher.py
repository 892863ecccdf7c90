"""Coalescing of calls in flight."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from servicekit.data.batcher import Batcher
from servicekit.errors import Code, DomainError, unavailable


class Writer:
    """Collects batches; holds each until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Exception | None = None

    async def write(self, items: Sequence[int]) -> Sequence[int]:
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        if 13 in items:
            raise ValueError("cannot be written")
        self.batches.append(list(items))
        return [item * 10 for item in items]


@asynccontextmanager
async def running(batcher: Batcher[int, int]) -> AsyncIterator[None]:
    task = asyncio.create_task(batcher.run())
    try:
        yield
    finally:
        batcher.close()
        await asyncio.wait_for(task, 60)


async def test_what_gathers_while_a_batch_is_written_goes_together() -> None:
    """The first call goes alone; those that came meanwhile share the next statement."""
    writer = Writer()
    batcher = Batcher("test", writer.write, max_batch=100, max_waiting=100)
    async with running(batcher):
        writer.gate.clear()
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        rest = [asyncio.create_task(batcher.submit(n)) for n in range(2, 10)]
        await asyncio.sleep(0)
        writer.gate.set()
        assert await first == 10
        assert await asyncio.gather(*rest) == [n * 10 for n in range(2, 10)]
    assert writer.batches == [[1], [2, 3, 4, 5, 6, 7, 8, 9]]


async def test_batches_are_bounded_by_weight() -> None:
    """A heavy item goes alone, however much more waits."""
    writer = Writer()
    batcher = Batcher("t", writer.write, max_batch=10, max_waiting=1000, weigh=lambda n: n)
    tasks = [asyncio.create_task(batcher.submit(n)) for n in (4, 6, 50, 1)]
    await asyncio.sleep(0)
    async with running(batcher):
        await asyncio.gather(*tasks)
    assert writer.batches == [[4, 6], [50], [1]]


async def test_a_full_queue_refuses_with_a_delay() -> None:
    """What is refused was not taken; what was taken is written."""
    writer = Writer()
    batcher = Batcher("t", writer.write, max_batch=10, max_waiting=4)
    taken = [asyncio.create_task(batcher.submit(n)) for n in range(3)]
    await asyncio.sleep(0)
    for refuse in (lambda: batcher.submit(99), lambda: _soon(batcher.require_room)):
        with pytest.raises(DomainError) as refused:
            await refuse()
        assert refused.value.code is Code.RESOURCE_EXHAUSTED
        assert refused.value.retry_after is not None
    async with running(batcher):
        await asyncio.gather(*taken)
    assert writer.batches == [[0, 1, 2]]


async def _soon(require_room: Callable[[str], None]) -> None:
    require_room("")


async def test_a_flood_waits_behind_itself() -> None:
    """Tenants take turns: another one's items go with the next batch, in their order."""
    writer = Writer()
    batcher = Batcher("t", writer.write, max_batch=4, max_waiting=1000, tenant=_tens)
    flood = [asyncio.create_task(batcher.submit(n)) for n in range(100, 110)]
    others = [asyncio.create_task(batcher.submit(n)) for n in (20, 21, 30)]
    await asyncio.sleep(0)
    async with running(batcher):
        await asyncio.gather(*flood, *others)
    assert sorted(writer.batches[0]) == [20, 30, 100, 101]
    assert sorted(writer.batches[1]) == [21, 102, 103, 104]
    assert [n for batch in writer.batches for n in batch if n >= 100] == [*range(100, 110)]


def _tens(item: int) -> str:
    return str(item // 10 if item < 100 else "flood")


async def test_a_flood_leaves_room_for_others() -> None:
    """A tenant is refused when its share of the queue is full, and no other is."""
    writer = Writer()
    batcher = Batcher("t", writer.write, max_batch=100, max_waiting=30, tenant=_tens)
    flood = [asyncio.create_task(batcher.submit(n)) for n in range(100, 130)]
    await asyncio.sleep(0)
    others = [asyncio.create_task(batcher.submit(n)) for n in (20, 30, 40)]
    await asyncio.sleep(0)
    with pytest.raises(DomainError):
        batcher.require_room("flood")
    batcher.require_room("2")
    async with running(batcher):
        assert await asyncio.gather(*others) == [200, 300, 400]
        outcomes = await asyncio.gather(*flood, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, DomainError)]
    assert len(refused) == 10
    assert len(outcomes) - len(refused) == 20


async def test_work_that_has_begun_is_not_refused_for_lack_of_room() -> None:
    """It takes its room beyond its share, and others see that it is taken."""
    writer = Writer()
    batcher = Batcher("t", writer.write, max_batch=10, max_waiting=9)
    waiting = [asyncio.create_task(batcher.submit(n, goes_on=n > 5)) for n in range(12)]
    await asyncio.sleep(0)
    with pytest.raises(DomainError):
        batcher.require_room("another")
    async with running(batcher):
        assert await asyncio.gather(*waiting) == [n * 10 for n in range(12)]
        batcher.require_room("another")


async def test_what_waited_too_long_is_refused_unwritten() -> None:
    """After the database hung, those who still listen are served; the others are told."""
    writer = Writer()
    now = [0.0]
    batcher = Batcher(
        "t", writer.write, max_batch=10, max_waiting=100, patience=10, clock=lambda: now[0]
    )
    late = asyncio.create_task(batcher.submit(1))
    await asyncio.sleep(0)
    now[0] = 10.5
    fresh = asyncio.create_task(batcher.submit(2))
    await asyncio.sleep(0)
    async with running(batcher):
        assert await fresh == 20
        with pytest.raises(DomainError) as refused:
            await late
    assert refused.value.code is Code.RESOURCE_EXHAUSTED
    assert writer.batches == [[2]]


async def test_the_delay_grows_with_what_waits() -> None:
    """Those refused are told to come when the queue will be short again."""
    now = [0.0]

    async def write(items: Sequence[int]) -> Sequence[int]:
        now[0] += 1.0 * len(items)
        return items

    batcher = Batcher("t", write, max_batch=1, max_waiting=30, clock=lambda: now[0], patience=999)
    async with running(batcher):
        for _ in range(50):
            await batcher.submit(1)
        waiting = [asyncio.create_task(batcher.submit(n)) for n in range(21)]
        await asyncio.sleep(0)
        with pytest.raises(DomainError) as refused:
            batcher.require_room("")
        results = await asyncio.gather(*waiting, return_exceptions=True)
    assert refused.value.retry_after is not None
    # Twenty seconds of work, twice that to be sure, with the jitter's half taken or added.
    assert 18 <= refused.value.retry_after <= 60
    assert sum(isinstance(result, DomainError) for result in results) == 1


async def test_a_caller_that_went_away_does_not_stop_the_others() -> None:
    """A cancelled call neither kills the flusher nor is written when it had only waited."""
    writer = Writer()
    batcher = Batcher("t", writer.write, max_batch=10, max_waiting=10)
    tasks = [asyncio.create_task(batcher.submit(n)) for n in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    async with running(batcher):
        assert await tasks[0] == 0
        assert await tasks[2] == 20
        assert await batcher.submit(5) == 50
    assert writer.batches[0] == [0, 2]


async def test_an_item_that_cannot_be_written_fails_alone() -> None:
    """The other items of its batch are written one by one."""
    writer = Writer()
    batcher = Batcher("t", writer.write, max_batch=10, max_waiting=10)
    tasks = [asyncio.create_task(batcher.submit(n)) for n in (1, 13, 2)]
    await asyncio.sleep(0)
    async with running(batcher):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[0] == 10
    assert results[2] == 20
    assert isinstance(results[1], DomainError)
    assert results[1].code is Code.INTERNAL


async def test_when_the_database_is_away_every_call_is_told() -> None:
    """No call of the batch is acknowledged, and the flusher lives on."""
    writer = Writer()
    writer.failure = unavailable("away")
    batcher = Batcher("t", writer.write, max_batch=10, max_waiting=10)
    async with running(batcher):
        results = await asyncio.gather(
            *(batcher.submit(n) for n in range(3)), return_exceptions=True
        )
        assert all(isinstance(r, DomainError) and r.code is Code.UNAVAILABLE for r in results)
        writer.failure = None
        assert await batcher.submit(4) == 40


async def test_one_bad_item_among_many_costs_few_writes() -> None:
    """It is looked for by halves, not by a write for each of the others."""
    writer = Writer()
    batcher = Batcher("t", writer.write, max_batch=100, max_waiting=100)
    tasks = [asyncio.create_task(batcher.submit(n)) for n in range(64)]
    await asyncio.sleep(0)
    async with running(batcher):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [n for n, result in enumerate(results) if isinstance(result, Exception)] == [13]
    assert sorted(n for batch in writer.batches for n in batch) == [*range(13), *range(14, 64)]
    assert len(writer.batches) <= 6


async def test_a_write_that_is_cancelled_leaves_nobody_waiting() -> None:
    """Also not those whose turn had not come while a bad item was looked for."""
    parts: list[list[int]] = []

    async def write(items: Sequence[int]) -> Sequence[int]:
        parts.append(list(items))
        if len(items) == 4:
            raise ValueError("cannot be written")
        await asyncio.Event().wait()
        return []

    batcher = Batcher("t", write, max_batch=10, max_waiting=10)
    tasks = [asyncio.create_task(batcher.submit(n)) for n in range(4)]
    await asyncio.sleep(0)
    run = asyncio.create_task(batcher.run())
    async with asyncio.timeout(60):
        while len(parts) < 2:
            await asyncio.sleep(0)
    assert parts == [[0, 1, 2, 3], [0, 1]]
    run.cancel()
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
    assert all(isinstance(result, DomainError) for result in results)


async def test_what_waits_is_written_after_a_restart() -> None:
    """A flusher that ended badly is started again and goes on with what had gathered."""
    writer = Writer()
    batcher = Batcher("t", writer.write, max_batch=10, max_waiting=10)
    first = asyncio.create_task(batcher.run())
    await asyncio.sleep(0)
    task = asyncio.create_task(batcher.submit(1))
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    async with running(batcher):
        assert await asyncio.wait_for(task, 60) == 10


async def test_batches_begin_a_beat_apart_unless_they_are_full() -> None:
    """A lone call is written at once; company that comes soon after it shares one statement."""
    writer = Writer()
    batcher = Batcher("test", writer.write, max_batch=3, max_waiting=100, beat=3600)
    async with running(batcher):
        assert await batcher.submit(1) == 10
        calls = []
        for number in (2, 3, 4, 5):
            calls.append(asyncio.create_task(batcher.submit(number)))
            for _ in range(5):
                await asyncio.sleep(0)
        # The batch was full, and did not wait for its time; who came after it does.
        assert await asyncio.gather(*calls[:3]) == [20, 30, 40]
        assert not calls[3].done()
    # Nobody waits for a batcher that closes.
    assert await calls[3] == 50
    assert writer.batches == [[1], [2, 3, 4], [5]]
