"""The slow-down of guessing, with a clock that the tests hold."""

from __future__ import annotations

import asyncio
import threading

import pytest

from servicekit.errors import Code, DomainError
from services.identity.passwords import (
    GuessThrottle,
    Passwords,
    hash_password,
    verify_password,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def monotonic(self) -> float:
        return self.now


async def _fail(throttle: GuessThrottle, account: str, address: str, times: int) -> None:
    for _ in range(times):
        async with throttle.attempt(account, address):
            throttle.failed(account, address)


def test_hashes_have_the_parameters_of_owasp() -> None:
    """argon2id, 19 MiB, two iterations, one lane; salted."""
    first, second = hash_password("correct horse"), hash_password("correct horse")
    assert first.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert first != second
    assert verify_password(first, "correct horse")
    assert not verify_password(first, "correct horse ")


async def test_answers_come_slower_after_some_failures() -> None:
    """The first failures are free, then the wait doubles up to a bound."""
    clock = Clock()
    throttle = GuessThrottle(clock.sleep, clock.monotonic)
    await _fail(throttle, "a@x", "1.2.3.4", 12)
    assert clock.slept == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


async def test_nobody_else_is_slowed_down() -> None:
    """Neither the same account from elsewhere nor another account from the same address."""
    clock = Clock()
    throttle = GuessThrottle(clock.sleep, clock.monotonic)
    await _fail(throttle, "a@x", "1.2.3.4", 8)
    clock.slept.clear()
    await _fail(throttle, "a@x", "5.6.7.8", 1)
    await _fail(throttle, "b@x", "1.2.3.4", 1)
    assert clock.slept == []


async def test_success_and_time_forgive() -> None:
    """After the right password, and after a quarter of an hour, answers come at once again."""
    clock = Clock()
    throttle = GuessThrottle(clock.sleep, clock.monotonic)
    await _fail(throttle, "a@x", "1.2.3.4", 8)
    async with throttle.attempt("a@x", "1.2.3.4"):
        throttle.succeeded("a@x", "1.2.3.4")
    clock.slept.clear()
    await _fail(throttle, "a@x", "1.2.3.4", 8)
    clock.now += 1000
    clock.slept.clear()
    await _fail(throttle, "a@x", "1.2.3.4", 1)
    assert clock.slept == []


async def test_attempts_that_wait_are_bounded() -> None:
    """A flood of attempts is refused with a delay instead of waiting in memory."""
    throttle = GuessThrottle(sleep=lambda _: asyncio.Event().wait())  # type: ignore[arg-type, return-value]  # waits for ever
    for _ in range(5):
        throttle.failed("a@x", "1.2.3.4")

    async def attempt() -> None:
        async with throttle.attempt("a@x", "1.2.3.4"):
            pass

    waiting = [asyncio.create_task(attempt()) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(DomainError) as refused:
        await attempt()
    assert refused.value.code is Code.RESOURCE_EXHAUSTED
    assert refused.value.retry_after is not None
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_an_ipv6_client_is_its_network() -> None:
    """A /64 is one client's, so another address of it starts no new count."""
    clock = Clock()
    throttle = GuessThrottle(clock.sleep, clock.monotonic)
    for host in range(8):
        await _fail(throttle, "a@x", f"2001:db8:0:1::{host:x}", 1)
    assert clock.slept == [0.5, 1.0, 2.0]
    clock.slept.clear()
    await _fail(throttle, "a@x", "2001:db8:0:2::1", 1)
    await _fail(throttle, "b@x", "::ffff:192.0.2.1", 8)
    clock.slept.clear()
    await _fail(throttle, "b@x", "::ffff:192.0.2.2", 1)
    await _fail(throttle, "b@x", "192.0.2.2", 1)
    assert clock.slept == []


async def test_a_caller_who_goes_away_does_not_free_a_thread() -> None:
    """However many callers leave, no more passwords are hashed at the same time."""
    passwords = Passwords()
    running = most = 0
    done = threading.Event()
    lock = threading.Lock()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        done.wait(5)
        with lock:
            running -= 1

    for _ in range(6):
        task = asyncio.create_task(passwords._work(work))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0.05)
    done.set()
    assert most == 2
