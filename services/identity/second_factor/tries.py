"""Codes of authenticator apps are guessed slowly: six digits do not stand many tries.

Only somebody who knows the password comes this far. From each browser of the account, and from each
network that the account was logged in from, ten codes an hour may be wrong; from all other places
together, ten, and thirty a day, which the log then tells of. Who guesses elsewhere takes none of
them from the account's owner. Recovery codes cannot be guessed, and are not counted: they open the
account from anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from servicekit.data.postgres import Connection, Database
from servicekit.errors import Code, DomainError
from servicekit.ids import Clock
from servicekit.security.sealing import Sealer
from services.identity.authenticators import guess_store
from services.identity.authenticators.guesses import Attempt, Standing
from services.identity.second_factor.domain import is_app_code
from services.identity.users.domain import User

MOST: Final = 10
MOST_OF_DAY: Final = 30
"""From all places together that the account was not logged in from."""
_WINDOW: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class CodeTry:
    """A code that was counted as wrong, until it turns out to be right."""

    key: bytes = b""
    day: bytes = b""
    """What counts those of the day; empty for a place that the account was logged in from."""


class CodeTries:
    """Counts in the database, for all replicas, by keys that tell nothing."""

    def __init__(self, database: Database, sealer: Sealer, clock: Clock) -> None:
        self._database = database
        self._sealer = sealer
        self._clock = clock

    async def begin(self, user: User, attempt: Attempt, code: str) -> CodeTry:
        """Counts a code before it is looked at, so that codes side by side count each other.

        Args:
            attempt: where it comes from.

        Raises:
            DomainError: RESOURCE_EXHAUSTED when enough were wrong.
        """
        if not is_app_code(code):
            return CodeTry()
        at = self._clock()
        strange = attempt.standing is Standing.STRANGE
        place = "" if strange else attempt.own.hex()
        key = self._sealer.mark("\0".join(("code", str(user.id), place)))
        counters = [guess_store.Counter(key, at + _WINDOW, sliding=False, kept=True)]
        day = self._sealer.mark(f"codes\0{user.id}") if strange else b""
        if day:
            counters.append(guess_store.Counter(day, at + _DAY, sliding=False, kept=True))
        async with self._database.system_transaction("counters have no tenant") as connection:
            before = await guess_store.count(connection, counters, at)
            for one, most in ((day, MOST_OF_DAY), (key, MOST)):
                if one and before[one] >= most:
                    until = await guess_store.counted_until(connection, one)
                    raise _enough((until - at).total_seconds() if until is not None else 0.0)
        return CodeTry(key, day)

    @staticmethod
    async def attacked(connection: Connection, tried: CodeTry) -> tuple[int, datetime] | None:
        """After a wrong code, once a day: how many there were, and until when they are counted."""
        return await guess_store.tell(connection, tried.day, MOST_OF_DAY) if tried.day else None

    @staticmethod
    async def succeeded(connection: Connection, tried: CodeTry) -> None:
        """After a right code: wrong ones before it count no more."""
        if tried.key:
            await guess_store.forgive(connection, tried.key, [tried.day] if tried.day else [])


def _enough(seconds: float) -> DomainError:
    minutes = max(1, round(seconds / 60 + 0.5))
    return DomainError(
        Code.RESOURCE_EXHAUSTED,
        "TOO_MANY_CODES",
        f"too many codes were wrong; try again in {minutes} minutes, or use a recovery code",
        retry_after=max(1.0, seconds),
    )
