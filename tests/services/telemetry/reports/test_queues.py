"""Places for devices that empty their queues."""

from __future__ import annotations

import asyncio

import pytest

from services.telemetry.reports.queues import Queues, Turns

QUICK = 0.06


def queues_of(places: int, most: int | None = None) -> Queues:
    return Queues(places, most or places, kept=5.0, quick=QUICK)


def test_a_kept_place_is_free_for_its_holder_alone() -> None:
    """Until it has not come back for too long; then others find room again."""
    queues = queues_of(30)
    assert sum(queues.enter("a", n, 0.0) for n in range(100)) == 20
    for n in range(20):
        queues.pause("a", n, 1.0, QUICK)
    assert not queues.may_enter("a", "newcomer", 2.0)
    assert not queues.enter("a", "newcomer", 2.0)
    assert queues.may_enter("a", 7, 2.0)
    assert queues.enter("a", 7, 2.0)
    queues.pause("a", 7, 2.0, QUICK)
    # Theirs ended at 6; the one that came back keeps its own until 7.
    assert sum(queues.enter("a", 100 + n, 6.5) for n in range(100)) == 19
    assert queues.enter("a", 7, 6.6)
    queues.leave("a")
    assert queues.may_enter("a", "newcomer", 6.7)
    assert queues.enter("a", "newcomer", 6.7)
    assert not queues.enter("a", 7, 6.8)


def test_a_queue_that_ends_leaves_its_place_at_once() -> None:
    """To end what was never begun changes nothing."""
    queues = queues_of(1)
    assert queues.enter("a", "x", 0.0)
    queues.pause("a", "x", 0.0, QUICK)
    queues.end("y")
    assert not queues.enter("a", "y", 1.0)
    queues.end("x")
    queues.end("x")
    assert queues.enter("a", "y", 1.0)
    assert not queues.enter("a", "x", 1.0)


def test_who_stays_away_has_no_place_kept() -> None:
    """For an hour: a device with a wrong clock always looks as if it had more to send."""
    queues = queues_of(3)

    def kept(at: float) -> bool:
        assert queues.enter("a", "x", at)
        queues.pause("a", "x", at, QUICK)
        others = sum(queues.enter("a", n, at) for n in range(9))
        for _ in range(others):
            queues.leave("a")
        return others == 1

    assert kept(0.0)
    # It came back in time, and may go on.
    assert kept(4.0)
    assert not kept(10.0)
    assert not kept(3000.0)
    assert kept(3611.0)


def test_two_calls_of_one_holder_keep_one_place() -> None:
    """Whatever it does at once, no place is lost and none is made."""
    queues = queues_of(3)
    assert queues.enter("a", "x", 0.0)
    assert queues.enter("a", "x", 0.0)
    assert not queues.enter("a", "x", 0.0)
    queues.pause("a", "x", 1.0, QUICK)
    queues.pause("a", "x", 1.0, QUICK)
    assert queues.enter("a", "y", 1.0)
    assert not queues.enter("a", "z", 1.0)
    queues.leave("a")
    assert queues.enter("a", "x", 2.0)
    queues.leave("a")
    assert [queues.enter("a", n, 2.0) for n in range(3)] == [True, True, False]


def places(queues: Queues, at: float = 0.0) -> int:
    entered = 0
    while queues.enter("a", ("counted", entered), at):
        entered += 1
    for _ in range(entered):
        queues.leave("a")
    return entered


def calls(queues: Queues, count: int, took: float, at: float = 0.0) -> None:
    for _ in range(count):
        assert queues.enter("b", "x", at)
        queues.pause("b", "x", at, took)
    queues.end("x")


def test_there_are_as_many_places_as_leave_the_service_quick() -> None:
    """Quick calls make room for more of them, slow ones for fewer, within the two bounds."""
    queues = queues_of(30, 90)
    assert places(queues) == 20
    calls(queues, 1, QUICK / 10)
    calls(queues, 30, QUICK)
    assert places(queues) == 21
    calls(queues, 10_000, QUICK)
    assert places(queues) == 60
    calls(queues, 30, 2 * QUICK)
    assert places(queues) == 50
    calls(queues, 1_000, 2 * QUICK)
    assert places(queues) == 20


def test_a_disk_that_takes_its_time_is_no_reason_for_fewer_places() -> None:
    """Slow is what takes much longer than the quickest calls of the latest minutes."""
    queues = queues_of(30, 90)
    calls(queues, 10_000, 2 * QUICK)
    calls(queues, 10_000, 6 * QUICK)
    assert places(queues) == 60
    calls(queues, 1_000, 7 * QUICK)
    assert places(queues) == 20
    # For ten minutes all take so long; then that is what is usual.
    calls(queues, 1_000, 7 * QUICK, 310.0)
    assert places(queues, 310.0) == 20
    calls(queues, 10_000, 7 * QUICK, 620.0)
    assert places(queues, 620.0) == 60
    calls(queues, 1, QUICK / 10, 620.0)
    calls(queues, 1_000, 2 * QUICK, 620.0)
    assert places(queues, 620.0) == 20


def full(*, waiting: int, patience: float = 600.0) -> Queues:
    """Of one place, which is kept for x until 5."""
    queues = Queues(1, 1, kept=5.0, quick=QUICK, waiting=waiting, patience=patience)
    assert queues.enter("a", "x", 0.0)
    queues.pause("a", "x", 0.0, QUICK)
    assert not queues.enter("a", "y", 1.0)
    return queues


def _wait(queues: Queues, tenant: str, at: float = 1.0) -> asyncio.Task[bool]:
    return asyncio.create_task(queues.wait(tenant, at))


async def test_who_waits_gets_the_place_that_becomes_free() -> None:
    """In the order in which they came, before anybody who comes later."""
    queues = full(waiting=30)
    first, second = _wait(queues, "a"), _wait(queues, "a")
    await asyncio.sleep(0)
    assert not first.done()
    queues.end("x")
    assert not queues.enter("a", "newcomer", 2.0)
    assert await first
    assert not second.done()
    queues.pause("a", "y", 2.0, QUICK)
    queues.end("y")
    assert await second
    queues.leave("a")
    assert queues.enter("a", "newcomer", 2.0)


async def test_so_many_wait_and_no_more() -> None:
    """Whoever finds no room is told so at once; room is free again when one has given up."""
    queues = full(waiting=1)
    waiting = _wait(queues, "a")
    await asyncio.sleep(0)
    assert not queues.may_wait("a")
    assert not await queues.wait("a", 1.0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert queues.may_wait("a")
    assert not full(waiting=0).may_wait("a")
    assert not await full(waiting=0).wait("a", 1.0)


async def test_those_who_wait_give_up_at_different_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within their patience and not before half of it: or they would all come back at once."""
    loop = asyncio.get_running_loop()
    delays: list[float] = []

    def call_later(delay: float, *_: object) -> asyncio.Handle:
        delays.append(delay)
        return loop.call_soon(lambda: None)

    queues = full(waiting=300, patience=8.0)
    monkeypatch.setattr(loop, "call_later", call_later)
    tasks = [_wait(queues, "a") for _ in range(200)]
    await asyncio.sleep(0)
    assert all(4.0 <= delay <= 8.0 for delay in delays)
    assert len(set(delays)) == 200
    assert min(delays) < 5.0
    assert max(delays) > 7.0
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_one_more_place_is_for_who_waits() -> None:
    """A quick call makes room for another one while its own place is kept."""
    queues = Queues(1, 2, kept=5.0, quick=QUICK, waiting=9, patience=600.0)
    assert queues.enter("a", "x", 0.0)
    waiting = _wait(queues, "a")
    await asyncio.sleep(0)
    queues.pause("a", "x", 1.0, QUICK)
    assert await waiting
    assert queues.enter("a", "x", 1.0)


async def test_who_has_its_share_lets_others_pass() -> None:
    """A tenant whose turn it is, and who has enough, does not hold up the line."""
    queues = Queues(3, 3, kept=5.0, quick=QUICK, waiting=30, patience=600.0)
    assert [queues.enter("a", n, 0.0) for n in range(3)] == [True, True, False]
    assert queues.enter("b", "x", 0.0)
    first, second = _wait(queues, "a"), _wait(queues, "b")
    await asyncio.sleep(0)
    queues.leave("b")
    assert await second
    assert not first.done()
    queues.leave("b")
    queues.leave("a")
    assert await first


async def test_patience_ends() -> None:
    """Then there is no place; but one that was kept for too long meanwhile is."""
    assert not await full(waiting=9, patience=0.0).wait("a", 4.0)
    assert await full(waiting=9, patience=0.0).wait("a", 5.0)


async def test_a_place_for_one_who_has_gone_is_the_next_ones() -> None:
    """Gone while it waited, or in the very moment in which it was given the place."""
    queues = full(waiting=30)
    gone, given, last = [_wait(queues, "a") for _ in range(3)]
    await asyncio.sleep(0)
    gone.cancel()
    queues.end("x")
    given.cancel()
    assert await last
    assert gone.cancelled()
    assert given.cancelled()
    queues.leave("a")
    assert queues.enter("a", "newcomer", 2.0)


async def test_tenants_that_wait_take_turns() -> None:
    """However many of one tenant's wait, and however long they do."""
    queues = full(waiting=30)
    order: list[str] = []

    async def use(tenant: str) -> None:
        assert await queues.wait(tenant, 1.0)
        order.append(tenant)
        queues.leave(tenant)

    tasks = [asyncio.create_task(use(tenant)) for tenant in ("a", "a", "a", "b", "c")]
    await asyncio.sleep(0)
    queues.end("x")
    await asyncio.gather(*tasks)
    assert order == ["a", "b", "c", "a", "a"]


async def test_long_work_takes_turns_slice_by_slice() -> None:
    """Another tenant's slices come between those of a flood; one given up holds up nobody."""
    turns = Turns()
    done: list[str] = []

    async def work(tenant: str, slices: int) -> None:
        for _ in range(slices):
            await turns.wait(tenant)
            done.append(tenant)

    flood = [asyncio.create_task(work("flood", 10)) for _ in range(10)]
    await asyncio.sleep(0)
    other = asyncio.create_task(work("other", 3))
    flood[5].cancel()
    await other
    assert done.count("flood") <= 6
    await asyncio.gather(*flood, return_exceptions=True)
    assert done.count("flood") == 90
    await work("flood", 1)
    assert done.count("flood") == 91
