"""Conversations with directories, off the event loop: few at a time, and each within its time.

Threads of their own, so that a directory that hangs takes nothing from passwords or the database;
few of them a directory, so that it takes nothing from other directories. After failures in a row
nobody waits for it for a while.
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
from services.identity.directories.asking import AwayError, Job, Settings, WrongPasswordError

if TYPE_CHECKING:
    from services.identity.directories.ldap import Conversation

log = logs.get(__name__)

T = TypeVar("T")

FAILURES: Final = 3
"""Failures in a row after which nobody waits for a directory,"""
PAUSE_SECONDS: Final = 30.0
"""for so long."""
_SIDE_BY_SIDE: Final = 2
"""Conversations with one directory."""
_WAITING: Final = 16
"""Those that wait for one directory."""
_ALL_WAITING: Final = 64
_WATCH_SECONDS: Final = 0.25


def away(retry_after: float) -> DomainError:
    """A directory does not answer; who logs in is told so, and when to come back."""
    return DomainError(
        Code.UNAVAILABLE,
        "DIRECTORY_AWAY",
        "your organisation's directory does not answer; try again later",
        retry_after=retry_after,
    )


@dataclass(slots=True)
class _Failures:
    """How a directory has failed lately."""

    count: int = 0
    until: float = 0.0
    """Until when nobody asks it, by the event loop's clock."""


class DirectoryThreads:
    """Runs conversations.

    Args:
        threads: how many at a time, of all directories.
        seconds: what each may take as a whole, with the time it waits for its turn.
    """

    def __init__(self, threads: int, seconds: float, name: str = "directories") -> None:
        self._threads = ThreadPoolExecutor(threads, name)
        self._places = asyncio.Semaphore(threads)
        self._turns: dict[UUID, asyncio.Semaphore] = {}
        self._waiting: Tally[UUID] = Tally()
        self._failures: dict[UUID, _Failures] = {}
        self.seconds = seconds

    def check(self, directory_id: UUID) -> None:
        """Refuses to ask a directory that has failed again and again.

        Raises:
            DomainError: UNAVAILABLE.
        """
        known = self._failures.get(directory_id)
        left = known.until - asyncio.get_running_loop().time() if known is not None else 0.0
        if left > 0:
            raise away(max(1.0, left))

    def worked(self, directory_id: UUID) -> None:
        """Notes that a directory has answered."""
        self._failures.pop(directory_id, None)

    def failed(self, directory_id: UUID) -> None:
        """Notes that it has not."""
        known = self._failures.setdefault(directory_id, _Failures())
        known.count += 1
        if known.count >= FAILURES:
            known.until = asyncio.get_running_loop().time() + PAUSE_SECONDS

    async def ask(
        self,
        directory_id: UUID,
        settings: Settings,
        work: Callable[[Conversation], T],
        seconds: float | None = None,
    ) -> T:
        """Has a conversation, and notes whether the directory answered.

        Raises:
            AwayError: it did not, or not in time.
            DomainError: UNAVAILABLE, or RESOURCE_EXHAUSTED when too many wait for it.
        """
        self.check(directory_id)
        try:
            answer = await self.run(directory_id, settings, work, seconds)
        except AwayError:
            self.failed(directory_id)
            raise
        self.worked(directory_id)
        return answer

    async def run(
        self,
        directory_id: UUID,
        settings: Settings,
        work: Callable[[Conversation], T],
        seconds: float | None = None,
    ) -> T:
        """Has a conversation.

        Raises:
            AwayError: the directory did not answer, or not in time.
            DomainError: RESOURCE_EXHAUSTED when too many wait for it.
        """
        if (
            self._waiting[directory_id] >= _WAITING + _SIDE_BY_SIDE
            or self._waiting.total() >= _ALL_WAITING
        ):
            raise exhausted(
                "DIRECTORY_BUSY", "too many logins wait for your organisation's directory"
            )
        job = Job(self.seconds if seconds is None else seconds)
        turns = self._turns.setdefault(directory_id, asyncio.Semaphore(_SIDE_BY_SIDE))
        self._waiting[directory_id] += 1
        try:
            try:
                async with asyncio.timeout(max(job.left, 0)):
                    await turns.acquire()
                    try:
                        await self._places.acquire()
                    except BaseException:
                        turns.release()
                        raise
            except TimeoutError:
                raise AwayError("connect", "the directory is busy with others") from None
            return await self._have(job, turns, settings, work)
        finally:
            self._waiting[directory_id] -= 1
            if self._waiting[directory_id] <= 0:
                del self._waiting[directory_id]

    async def _have(
        self,
        job: Job,
        turns: asyncio.Semaphore,
        settings: Settings,
        work: Callable[[Conversation], T],
    ) -> T:
        loop = asyncio.get_running_loop()
        done = self._threads.submit(_converse, settings, job, work)
        answer = asyncio.wrap_future(done)
        # What comes too late is nobody's.
        answer.add_done_callback(lambda late: late.cancelled() or late.exception())

        def leave() -> None:
            turns.release()
            self._places.release()

        # When the thread is done, not when its caller goes away.
        done.add_done_callback(lambda _: loop.call_soon_threadsafe(leave))

        def watch() -> None:
            if done.done():
                return
            if job.left <= 0:
                job.expire()
            loop.call_later(max(job.left, _WATCH_SECONDS), watch)

        loop.call_later(max(job.left, 0), watch)
        try:
            async with asyncio.timeout(max(job.left, 0) + _WATCH_SECONDS):
                return await asyncio.shield(answer)
        except TimeoutError:
            # A name that nobody resolves holds the thread, and not whoever waits.
            raise AwayError("connect", "the directory took too long to answer") from None


def _converse(settings: Settings, job: Job, work: Callable[[Conversation], T]) -> T:
    from services.identity.directories.ldap import Conversation  # noqa: PLC0415 - see `asking`

    job.check()
    conversation = Conversation(settings, job)
    try:
        return work(conversation)
    except (AwayError, WrongPasswordError):
        raise
    except Exception as error:
        # A server may answer anything: what nobody expected is its fault, and in the log.
        log.exception("directory's answer not understood")
        raise AwayError("search", "the directory's answer cannot be read") from error
    finally:
        conversation.close()
        job.connection = None
