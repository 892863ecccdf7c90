"""How often a directory sees wrong passwords of one person: so that guessing here locks nobody
there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from servicekit.data.postgres import Database
from servicekit.errors import Code, DomainError
from servicekit.ids import Clock
from servicekit.security.sealing import Sealer
from services.identity.authenticators import guess_store
from services.identity.authenticators.guesses import Standing

SHARES: Final = {Standing.STRANGE: 1, Standing.FAMILIAR: 2, Standing.OWN: 3}
"""Wrong passwords of a person that a directory sees within the window, by where they come from:
nobody uses up what is left to those who are better known."""
WINDOW: Final = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Try:
    """A try that was counted, until it turns out to be none."""

    key: bytes
    shares: tuple[bytes, ...]
    """The counters of the person, that of the try among them."""


class Tries:
    """Counts in the database, for all replicas, by keys that tell nothing."""

    def __init__(self, database: Database, sealer: Sealer, clock: Clock) -> None:
        self._database = database
        self._sealer = sealer
        self._clock = clock

    async def begin(
        self, directory_id: UUID, who: str, standing: Standing, *, known: bool = False
    ) -> Try:
        """Counts a try before it is made, so that tries side by side count each other.

        Args:
            who: the person, as typed or by the directory's own id.
            known: whether the directory has the person: anybody can type addresses.

        Raises:
            DomainError: RESOURCE_EXHAUSTED when there were enough wrong ones.
        """
        at = self._clock()
        shares = {
            one: self._sealer.mark("\0".join(("directory", str(directory_id), who, one.value)))
            for one in SHARES
        }
        key, most = shares[standing], SHARES[standing]
        counter = guess_store.Counter(key, at + WINDOW, sliding=False, kept=known)
        async with self._database.system_transaction("counters have no tenant") as connection:
            before = (await guess_store.count(connection, [counter], at))[key]
            if before >= most:
                # This one was not made.
                await guess_store.forgive(connection, b"", [key])
                until = await guess_store.counted_until(connection, key)
                raise _enough((until - at).total_seconds() if until is not None else 0.0)
        return Try(key, tuple(shares.values()))

    async def succeeded(self, *tries: Try) -> None:
        """After a right password: wrong ones before it count no more."""
        async with self._database.system_transaction("counters have no tenant") as connection:
            for key in sorted(key for one in tries for key in one.shares):
                await guess_store.forgive(connection, key, [])

    async def not_made(self, *tries: Try) -> None:
        """After a try that came to no answer: it counts no more."""
        async with self._database.system_transaction("counters have no tenant") as connection:
            for one in sorted(tries, key=lambda one: one.key):
                await guess_store.forgive(connection, b"", [one.key])


def _enough(seconds: float) -> DomainError:
    minutes = max(1, round(seconds / 60 + 0.5))
    return DomainError(
        Code.RESOURCE_EXHAUSTED,
        "TOO_MANY_DIRECTORY_TRIES",
        f"the password was wrong; try again in {minutes} minutes, for more wrong ones would lock"
        " the account in your organisation's directory",
        retry_after=max(1.0, seconds),
    )
