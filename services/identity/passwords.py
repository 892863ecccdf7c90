"""Passwords: argon2id with OWASP's parameters, and a slow-down of guessing.

OWASP Password Storage Cheat Sheet: argon2id, 19 MiB of memory, 2 iterations, 1 lane.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Network, ip_address
from typing import Final, TypeVar

import nacl.exceptions
from nacl.pwhash import argon2id

from servicekit.errors import exhausted

Result = TypeVar("Result")

_OPERATIONS: Final = 2
_MEMORY: Final = 19 * 1024 * 1024
_THREADS: Final = 2
_MAX_WAITING: Final = 64
_FREE_FAILURES: Final = 5
_FIRST_DELAY: Final = 0.5
_MAX_DELAY: Final = 8.0
_FORGET_SECONDS: Final = 900.0
_MAX_KEYS: Final = 100_000
_MAX_SLOTS: Final = 4


def hash_password(password: str) -> str:
    """The hash to store, in the PHC string format. Takes some 25 ms of CPU."""
    return argon2id.str(password.encode(), _OPERATIONS, _MEMORY).decode()


def verify_password(stored: str, password: str) -> bool:
    """Whether the password is the one that was hashed."""
    try:
        return argon2id.verify(stored.encode(), password.encode())
    except nacl.exceptions.InvalidkeyError:
        return False


class Passwords:
    """Hashes and verifies off the event loop, a bounded number at a time."""

    def __init__(self) -> None:
        # Threads of its own: a caller who goes away does not stop the work that has begun, and
        # whoever is next must wait for it.
        self._threads = ThreadPoolExecutor(_THREADS, "passwords")
        self._waiting = 0
        # Verified when there is no such user, so that the time tells nothing.
        self._nobody = hash_password("nobody has this password")

    async def hash(self, password: str) -> str:
        """Hashes a new password."""
        return await self._work(hash_password, password)

    async def verify(self, stored: str | None, password: str) -> bool:
        """Verifies a password; `None` for a user who does not exist or has none."""
        return await self._work(verify_password, stored or self._nobody, password) and (
            stored is not None
        )

    async def _work(self, work: Callable[..., Result], *arguments: str) -> Result:
        if self._waiting >= _MAX_WAITING:
            raise exhausted("TOO_MANY_LOGINS", "too many logins at once; try again")
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, work, *arguments)
        finally:
            self._waiting -= 1


def _network(address: str) -> str:
    """Who an address stands for: itself, or the /64 of an IPv6 address."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(IPv6Network((parsed, 64), strict=False))


@dataclass(slots=True)
class _Guesses:
    failures: int = 0
    last: float = 0.0
    slots: int = 0


class GuessThrottle:
    """Slows down repeated failures for one account from one address.

    After some failures every further answer waits, longer each time, also the answer to the
    right password; so nobody is locked out: not from another address, and not for long from
    the same one. How many attempts may wait at the same time is bounded too, which bounds the
    rate of guesses.

    Args:
        sleep, monotonic: the clock; tests inject their own.
    """

    def __init__(
        self,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sleep = sleep
        self._monotonic = monotonic
        self._guesses: OrderedDict[tuple[str, str], _Guesses] = OrderedDict()

    @asynccontextmanager
    async def attempt(self, account: str, address: str) -> AsyncIterator[None]:
        """Waits as long as earlier failures demand; call `failed` or `succeeded` inside.

        An IPv6 address stands for its /64, of which one client has all.

        Raises:
            DomainError: RESOURCE_EXHAUSTED when several attempts wait already.
        """
        guesses = self._get(account, address)
        delay = self._delay(guesses)
        if delay and guesses.slots >= _MAX_SLOTS:
            raise exhausted(
                "TOO_MANY_ATTEMPTS",
                "too many failed attempts for this account from your address; try again later",
                retry_after=delay,
            )
        guesses.slots += 1
        try:
            if delay:
                await self._sleep(delay)
            yield
        finally:
            guesses.slots -= 1

    def failed(self, account: str, address: str) -> None:
        """Counts a failure."""
        guesses = self._get(account, address)
        guesses.failures += 1
        guesses.last = self._monotonic()

    def succeeded(self, account: str, address: str) -> None:
        """Forgets the failures."""
        guesses = self._get(account, address)
        guesses.failures = 0

    def _get(self, account: str, address: str) -> _Guesses:
        key = (account, _network(address))
        guesses = self._guesses.get(key)
        if guesses is None:
            guesses = self._guesses[key] = _Guesses()
            if len(self._guesses) > _MAX_KEYS:
                self._guesses.popitem(last=False)
        elif self._monotonic() - guesses.last > _FORGET_SECONDS:
            guesses.failures = 0
        self._guesses.move_to_end(key)
        return guesses

    @staticmethod
    def _delay(guesses: _Guesses) -> float:
        excess = guesses.failures - _FREE_FAILURES
        if excess < 0:
            return 0.0
        return min(_MAX_DELAY, _FIRST_DELAY * 2.0 ** min(excess, 16))
