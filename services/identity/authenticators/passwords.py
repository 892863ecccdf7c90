"""Passwords: hashed and verified off the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from servicekit.errors import exhausted, invalid_field
from servicekit.observability import logs
from servicekit.security.passwords import (
    PasswordError,
    PasswordHashes,
    UnknownSuiteError,
    decoys,
    hash_new,
    is_up_to_date,
    prepare,
    renewed,
    suite,
    verify,
    verify_password,
)
from services.identity.authenticators.breached import BreachedPasswords
from services.identity.authenticators.password_rules import (
    BREACHED,
    LEAST_ALONE,
    SAME,
    Person,
    fault_of,
)

log = logs.get(__name__)

Result = TypeVar("Result")

_THREADS: Final = 2
_MAX_WAITING: Final = 512
"""In each of the two lines; more than attempts to log in may be under way."""


class Passwords:
    """Hashes and verifies off the event loop, a bounded number at a time.

    There are two lines: of strangers, and of those whose origin is known, who go first.

    Args:
        least_alone: the characters of a new password that nothing else protects.
        breached: passwords that nobody may set.
    """

    def __init__(
        self, least_alone: int = LEAST_ALONE, breached: BreachedPasswords | None = None
    ) -> None:
        self._least_alone = least_alone
        self._breached = breached
        # Threads of its own: a caller who goes away does not stop the work that has begun, and
        # the next caller must wait for it.
        self._threads = ThreadPoolExecutor(_THREADS, "passwords")
        self._free = _THREADS
        self._known: deque[asyncio.Future[None]] = deque()
        self._strangers: deque[asyncio.Future[None]] = deque()
        self._decoys = decoys()

    async def hash(
        self,
        password: str,
        person: Person | None,
        name: str = "password",
        *,
        before: str | None = None,
    ) -> PasswordHashes:
        """Hashes a new password.

        Args:
            person: whose it is to be; `None` for the first Owner's, which the operator chose.
            name: of the field that has it, for the error.
            before: the password until now, as somebody typed it.

        Raises:
            DomainError: INVALID_ARGUMENT.
        """
        try:
            prepared = prepare(password)
        except PasswordError as error:
            raise invalid_field(name, str(error)) from error
        if person is not None:
            if (fault := fault_of(prepared, person, self._least_alone)) is not None:
                raise invalid_field(name, fault)
            if before is not None and prepared == _form(before):
                raise invalid_field(name, SAME)
            if self._breached is not None and await self._work(
                self._is_breached, password, prepared
            ):
                raise invalid_field(name, BREACHED)
        return await self._work(hash_new, password)

    def _is_breached(self, *forms: str) -> bool:
        assert self._breached is not None
        try:
            return self._breached.has(*forms)
        except OSError as error:
            # The list is one rule of several; without it people still have to get in.
            log.error("list of breached passwords not readable", error=str(error))
            return False

    async def renewed(self, stored: PasswordHashes, password: str) -> PasswordHashes:
        """What to store of a password that was just verified; the same when nothing is to do."""
        if is_up_to_date(stored):
            return stored
        return await self._work(renewed, stored, password)

    async def verify(
        self, stored: PasswordHashes | None, password: str, *, stranger: bool = False
    ) -> bool:
        """Verifies a password; `None` for a user who does not exist or has none."""
        return await self._work(self._verify, stored, password, stranger=stranger)

    def _verify(self, stored: PasswordHashes | None, password: str) -> bool:
        """Does the same work whatever is stored, so that the time tells nothing."""
        right, done = False, ""
        if stored is not None:
            try:
                right = verify(stored, password)
                done = suite(stored.typed if stored.prepared is None else stored.prepared)
            except UnknownSuiteError as unknown:
                log.error("password hash not readable", error=str(unknown))
        for name, decoy in self._decoys.items():
            if name != done:
                verify_password(decoy, password)
        return right

    async def _work(
        self, work: Callable[..., Result], *arguments: object, stranger: bool = False
    ) -> Result:
        await self._enter(self._strangers if stranger else self._known)
        loop = asyncio.get_running_loop()
        done = self._threads.submit(work, *arguments)
        # When the thread is done, not when its caller goes away.
        done.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave))
        return await asyncio.wrap_future(done)

    async def _enter(self, line: deque[asyncio.Future[None]]) -> None:
        if self._free:
            self._free -= 1
            return
        if len(line) >= _MAX_WAITING:
            raise exhausted("TOO_MANY_LOGINS", "too many logins at once; try again")
        turn = asyncio.get_running_loop().create_future()
        line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()
            elif turn in line:
                line.remove(turn)
            raise

    def _leave(self) -> None:
        """Gives a thread to the next in line."""
        for line in (self._known, self._strangers):
            while line:
                turn = line.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return
        self._free += 1


def _form(password: str) -> str:
    """The one form of a password, or what was typed where it has none."""
    try:
        return prepare(password)
    except PasswordError:
        return password
