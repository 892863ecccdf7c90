"""Passwords: their hashes, and who is served first."""

from __future__ import annotations

import asyncio
import threading

from servicekit.security.passwords import hash_password, verify_password
from services.identity.authenticators.passwords import Passwords


def test_hashes_have_the_parameters_of_owasp() -> None:
    """argon2id, 19 MiB, two iterations, one lane; salted."""
    first, second = hash_password("correct horse"), hash_password("correct horse")
    assert first.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert first != second
    assert verify_password(first, "correct horse")
    assert not verify_password(first, "correct horse ")


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
        done.wait(60)
        with lock:
            running -= 1

    for number in range(6):
        task = asyncio.create_task(passwords._work(work))
        await asyncio.sleep(0.01)
        while running < min(number + 1, 2):
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0.05)
    done.set()
    assert most == 2


async def test_whoever_is_known_goes_before_strangers() -> None:
    """A crowd of strangers that waits for the threads is passed by the owner of an account."""
    passwords = Passwords()
    go_on = threading.Event()
    done: list[str] = []
    busy = [asyncio.create_task(passwords._work(go_on.wait, stranger=True)) for _ in range(2)]
    await asyncio.sleep(0.05)
    crowd = [
        asyncio.create_task(passwords._work(done.append, f"stranger {n}", stranger=True))
        for n in range(5)
    ]
    await asyncio.sleep(0)
    gone = asyncio.create_task(passwords._work(done.append, "gone"))
    await asyncio.sleep(0)
    gone.cancel()
    owner = asyncio.create_task(passwords._work(done.append, "owner"))
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(*busy, *crowd, owner)
    assert done.index("owner") <= 1
    assert "gone" not in done
    assert len(done) == 6
