"""Conversations with directories, off the event loop: few at a time, and each within its budget.

Threads of their own, so that a directory that hangs takes nothing from passwords or the database;
few of them a directory, so that it takes nothing from other directories. One that is slow goes on
in places apart, and begins there the next time, so that the others find theirs free. After failures
in a row nobody waits for it for a while.
"""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar
from uuid import UUID

from servicekit.errors import Code, DomainError, exhausted
from servicekit.observability import logs
from services.identity.directories.asking import (
    AwayError,
    Budget,
    Job,
    Settings,
    WrongPasswordError,
)
from services.identity.sources.breaker import Breaker

if TYPE_CHECKING:
    from services.identity.directories.ldap import Conversation

log = logs.get(__name__)

T = TypeVar("T")

_SIDE_BY_SIDE: Final = 2
"""Conversations with one directory."""
_WAITING: Final = 16
"""Those that wait for one directory."""
_ALL_WAITING: Final = 64
_WAIT_SECONDS: Final = 5.0
"""How long a conversation waits for its turn."""
_SLOW_SECONDS: Final = 2.0
"""After so long a conversation is a slow one."""
_WATCH_SECONDS: Final = 0.25


def away(retry_after: float) -> DomainError:
    """A directory does not answer; who logs in is told so, and when to come back."""
    return DomainError(
        Code.UNAVAILABLE,
        "DIRECTORY_AWAY",
        "your organisation's directory does not answer; try again later",
        retry_after=retry_after,
    )


def _busy() -> DomainError:
    return exhausted("DIRECTORY_BUSY", "too many wait for a directory; try again")


class _Places:
    """How many conversations may be under way, and how many wait to be."""

    def __init__(self, count: int) -> None:
        self._free = asyncio.Semaphore(count)
        self.waiting = 0

    async def take(self) -> None:
        """Waits for a place."""
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1

    async def take_now(self) -> bool:
        """Takes a place, if one is free."""
        if self._free.locked():
            return False
        await self._free.acquire()
        return True

    def leave(self) -> None:
        """Gives a place back."""
        self._free.release()


class DirectoryThreads:
    """Has conversations with directories.

    Args:
        threads: how many at a time, of all directories.
        seconds: what each may take as a whole.
        slow: how many more there may be of directories that are slow or fail; none where all may
            take their time.
        side_by_side: how many of one directory.
    """

    def __init__(
        self,
        threads: int,
        seconds: float,
        name: str = "directories",
        *,
        slow: int = 0,
        side_by_side: int = _SIDE_BY_SIDE,
    ) -> None:
        self._threads = ThreadPoolExecutor(threads + slow, name)
        self._places = _Places(threads)
        self._slow_places = _Places(slow) if slow else None
        self._side_by_side = min(side_by_side, max(1, threads - 1))
        self._turns: dict[UUID, asyncio.Semaphore] = {}
        self._waiting: Tally[UUID] = Tally()
        self._breaker = Breaker()
        self._suspects: set[UUID] = set()
        self._jobs: set[Job] = set()
        self._closed = False
        self.seconds = seconds

    async def run_until_stopped(self) -> None:
        """Waits for the end of the service, and closes then."""
        try:
            await asyncio.Event().wait()
        finally:
            self.close()

    def close(self) -> None:
        """Ends all conversations, with their connections and threads."""
        self._closed = True
        for job in list(self._jobs):
            job.expire()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def check(self, directory_id: UUID) -> None:
        """Refuses to ask a directory that has failed again and again.

        Raises:
            DomainError: UNAVAILABLE.
        """
        if (left := self._breaker.left(directory_id)) > 0:
            raise away(max(1.0, left))

    def worked(self, directory_id: UUID) -> None:
        """Notes that all that a directory was asked has been answered."""
        self._breaker.worked(directory_id)

    def failed(self, directory_id: UUID) -> None:
        """Notes that it has not."""
        self._breaker.failed(directory_id)

    async def run(
        self,
        directory_id: UUID,
        settings: Settings,
        work: Callable[[Conversation], T],
        budget: Budget | None = None,
    ) -> T:
        """Has a conversation.

        Args:
            directory_id: the directory, or what else has turns of its own.
            budget: what it may take; `None` for that of a login.

        Raises:
            AwayError: the directory did not answer, or not in time.
            DomainError: RESOURCE_EXHAUSTED when too many wait for it, which is no fault of it.
        """
        if self._closed or (
            self._waiting[directory_id] >= _WAITING + self._side_by_side
            or self._waiting.total() >= _ALL_WAITING
        ):
            raise _busy()
        turns = self._turns.setdefault(directory_id, asyncio.Semaphore(self._side_by_side))
        self._waiting[directory_id] += 1
        try:
            suspect = directory_id in self._suspects
            places = self._slow_places if suspect and self._slow_places else self._places
            try:
                async with asyncio.timeout(_WAIT_SECONDS):
                    await turns.acquire()
                    try:
                        await places.take()
                    except BaseException:
                        turns.release()
                        raise
            except TimeoutError:
                raise _busy() from None
            loop = asyncio.get_running_loop()
            job = Job(budget or Budget.of_login(self.seconds), loop)
            had = _Had(directory_id, job, turns, places)
            return await self._have(had, settings, work)
        finally:
            self._waiting[directory_id] -= 1
            if self._waiting[directory_id] <= 0:
                del self._waiting[directory_id]

    async def _have(self, had: _Had, settings: Settings, work: Callable[[Conversation], T]) -> T:
        loop = asyncio.get_running_loop()
        job = had.job
        try:
            done = self._threads.submit(_converse, settings, job, work)
        except RuntimeError:  # closed in this moment
            had.leave()
            raise _busy() from None
        self._jobs.add(job)
        answer = asyncio.wrap_future(done)
        # What comes too late is nobody's.
        answer.add_done_callback(lambda late: late.cancelled() or late.exception())
        watching = asyncio.ensure_future(self._watch(had))

        def leave() -> None:
            watching.cancel()
            self._jobs.discard(job)
            failed = done.cancelled() or isinstance(done.exception(), AwayError)
            if failed or had.slow:
                self._suspects.add(had.directory_id)
            else:
                self._suspects.discard(had.directory_id)
            had.leave()

        # When the thread is done, not when its caller goes away.
        done.add_done_callback(lambda _: _soon(loop, leave))
        try:
            async with asyncio.timeout(max(job.left, 0) + _WATCH_SECONDS):
                return await asyncio.shield(answer)
        except TimeoutError:
            # A name that nobody resolves holds the thread, and not its caller.
            raise AwayError("connect", "the directory took too long to answer") from None

    async def _watch(self, had: _Had) -> None:
        """Ends a conversation whose time is over, and moves a slow one apart."""
        job = had.job
        while True:
            await asyncio.sleep(max(min(job.left, _WATCH_SECONDS), 0.01))
            if job.left <= 0:
                job.expire()
                await asyncio.sleep(_WATCH_SECONDS)
            if self._slow_places is None or job.spent < _SLOW_SECONDS:
                continue
            had.slow = True
            self._suspects.add(had.directory_id)
            if had.places is self._slow_places:
                continue
            if await self._slow_places.take_now():
                had.places.leave()
                had.places = self._slow_places
            elif self._places.waiting:
                # Others wait, and there are slow ones enough.
                job.expire()


@dataclass(slots=True)
class _Had:
    """A conversation under way, and what it has taken."""

    directory_id: UUID
    job: Job
    turns: asyncio.Semaphore
    places: _Places
    slow: bool = False

    def leave(self) -> None:
        """Gives back what was taken."""
        self.turns.release()
        self.places.leave()


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call)


def _converse(settings: Settings, job: Job, work: Callable[[Conversation], T]) -> T:
    from services.identity.directories.ldap import Conversation  # noqa: PLC0415 - see `asking`

    conversation = None
    try:
        job.check()
        conversation = Conversation(settings, job)
        return work(conversation)
    except (AwayError, WrongPasswordError):
        raise
    except Exception as error:
        # A server may answer anything: what nobody expected is its fault, and in the log.
        log.exception("directory's answer not understood")
        raise AwayError("search", "the directory's answer cannot be read") from error
    finally:
        if conversation is not None:
            conversation.close()
        job.connection = None
        job.end()
