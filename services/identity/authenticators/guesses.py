"""Guessing is slowed down, and nobody is locked out by it.

Failures are counted by account and network together, by network, and by account. An attempt waits
the longer the more failures there were; a success of the same account from the same browser or the
same network in the last 30 days takes its owner out of the crowd:

- an attempt from a browser of the account (a device cookie) waits for that browser's failures only;
- an attempt from a network that the account was logged in from waits for the failures of the two
  together, for at most `_PAIR_MOST` seconds;
- any other one also waits for the failures of the account from anywhere, and of its network for
  many accounts; after `ATTACK` failures for the account in a day for `_STRANGE_SECONDS`.

The attempts of each of these wait in places of their own, and apart from them strangers whose
account or network is guessed at, for they wait for long: a few networks could fill the places of
all strangers with them. Each attempt is counted when it begins, so that guesses side by side count
each other.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter as Tally
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from ipaddress import IPv4Address, IPv6Network, ip_address
from typing import Final
from uuid import UUID

from prometheus_client import REGISTRY

from servicekit.data.postgres import Connection, Database
from servicekit.errors import exhausted
from servicekit.ids import Clock
from servicekit.observability.metrics import Outcomes
from servicekit.security.sealing import Sealer
from servicekit.security.tokens import new_secret, secret_hash
from services.identity.authenticators import guess_store
from services.identity.authenticators.domain import DEVICE_LIFE

ATTACK: Final = 100
"""Failures for an account within a day that are an attack."""
_DAY: Final = timedelta(days=1)
_HOUR: Final = timedelta(hours=1)
_QUIET: Final = timedelta(minutes=15)
_FRESH: Final = timedelta(days=1)
_FIRST_SECONDS: Final = 0.5
_OWN_FREE: Final = 5
_OWN_MOST: Final = 8.0
_PAIR_FREE: Final = 5
_PAIR_MOST: Final = 2.0
_ACCOUNT_FREE: Final = 10
_ACCOUNT_MOST: Final = 4.0
_NETWORK_FREE: Final = 100
_NETWORK_MOST: Final = 8.0
_STRANGE_SECONDS: Final = 30.0

# Attempts under way at the same time, waiting or being checked.
_OWN_PLACES: Final = 4
_PAIR_PLACES: Final = 16
_STRANGE_PAIR_PLACES: Final = 4
"""Of an account and a network together, once the account is under attack."""
_ACCOUNT_PLACES: Final = 32
_NETWORK_PLACES: Final = 64
_PLACES: Final = 256
"""Of all browsers of accounts, of all familiar networks, and of strangers, who wait long or not."""

_MOST_COUNTERS: Final = 200_000
_NOBODY: Final = UUID(int=0)
_ATTEMPTS: Final = Outcomes(
    REGISTRY, "evergreen_login_attempts", "Attempts to log in: at_once, slowed or refused."
)


class Standing(Enum):
    """How well the origin of an attempt is known."""

    OWN = "own"
    """The account's own browser or session."""
    FAMILIAR = "familiar"
    """A network that the account was logged in from."""
    STRANGE = "strange"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt: what it counts for, and how well its origin is known."""

    standing: Standing
    spared: bool
    """Whether the failures of the account from elsewhere do not slow it down."""
    own: bytes
    """The counter that a success forgives: the browser's, or that of account and network."""
    account: bytes = b""
    """The counter of the account; empty when failures do not count for it."""
    network: bytes = b""
    """The counter of the network; likewise."""
    kept: bool = False
    """Whether there is such an account: its counters stay, however many others are made."""
    under_attack: bool = False
    crowded: bool = False
    """Whether its network has failed for many accounts."""

    @property
    def slow(self) -> bool:
        """Whether it waits for what others did, and so for long."""
        return self.standing is Standing.STRANGE and (self.crowded or self.under_attack)


@dataclass(frozen=True, slots=True)
class Counted:
    """What an attempt was counted by."""

    forgiven: bytes
    """The counter that a success sets to nothing."""
    others: Sequence[bytes]
    """The counters that a success takes it off again, in the order in which they were raised."""


class Guesses:
    """Slows guesses down.

    Args:
        sealer: makes keys of what is counted, so that the table holds no addresses.
        sleep: how to wait; tests inject their own.
    """

    def __init__(
        self,
        database: Database,
        sealer: Sealer,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._database = database
        self._sealer = sealer
        self._clock = clock
        self._sleep = sleep
        self._places: Tally[tuple[str, bytes]] = Tally()

    async def recognise(
        self, connection: Connection, email: str, account_id: UUID | None, source: str, device: str
    ) -> Attempt:
        """What an attempt to log in is counted by.

        Args:
            email: the normalised address, of an account or not.
            account_id: the account's id; `None` when there is none, which makes no difference to
                whoever tries.
            source: the caller's address.
            device: the secret of the browser's device cookie; empty without one.
        """
        at = self._clock()
        network = self._key(guess_store.NETWORK, network_of(source))
        browser = secret_hash(device)
        account = self._key("account", email)
        pair = self._key("pair", email, network_of(source))
        found = await guess_store.recognise(
            connection,
            account_id or _NOBODY,
            network,
            browser,
            account,
            since=at - DEVICE_LIFE,
            at=at,
        )
        if found.device:
            own = self._key(guess_store.DEVICE, email, browser.hex())
            return Attempt(Standing.OWN, True, own, account, kept=True)
        # From a school's network those who log in there are spared. So is half of the addresses
        # that nobody has, always the same ones and in everything, so that neither the time nor a
        # refusal tells who exists.
        decoy = account_id is None and found.anybody and pair[0] % 2 == 0
        familiar = found.network or decoy
        return Attempt(
            Standing.FAMILIAR if familiar else Standing.STRANGE,
            familiar,
            pair,
            account,
            network,
            kept=account_id is not None,
            under_attack=found.failures >= ATTACK,
            crowded=found.crowd >= _NETWORK_FREE,
        )

    def of_session(self, user_id: str) -> Attempt:
        """An attempt of somebody who is logged in, as to change the own password."""
        return Attempt(Standing.OWN, True, self._key("session", user_id), kept=True)

    @asynccontextmanager
    async def attempt(self, attempt: Attempt) -> AsyncIterator[Counted]:
        """Counts an attempt as a failure, and waits as long as earlier ones demand.

        Answers what was counted, for `succeeded`.

        Raises:
            DomainError: RESOURCE_EXHAUSTED when too many of its kind wait already.
        """
        places = self._take(attempt)
        try:
            async with self._database.system_transaction("counters have no tenant") as connection:
                before, counted = await self._count(connection, attempt)
            if delay := _delay(attempt, before):
                _ATTEMPTS.note("slowed")
                await self._sleep(delay)
            else:
                _ATTEMPTS.note("at_once")
            yield counted
        finally:
            self._places.subtract(places)
            for place in places:
                if self._places[place] <= 0:
                    del self._places[place]

    async def succeeded(self, connection: Connection, counted: Counted) -> None:
        """Takes an attempt back that was counted and was none to guess."""
        await guess_store.forgive(connection, counted.forgiven, counted.others)

    async def attacked(
        self, connection: Connection, attempt: Attempt
    ) -> tuple[int, datetime] | None:
        """After a failure, once a day: how many there were, and until when they are counted."""
        if not attempt.account:
            return None
        return await guess_store.tell(connection, attempt.account, ATTACK)

    async def remember(
        self, connection: Connection, account_id: UUID, source: str, device: str | None
    ) -> str:
        """Remembers where an account was logged in from.

        Args:
            device: the secret of the browser's device cookie, empty without one; `None` for a
                program, which keeps no cookies.

        Returns:
            the secret for the device cookie; empty for a program.
        """
        at = self._clock()
        if source:
            network = self._key(guess_store.NETWORK, network_of(source))
            await guess_store.remember(
                connection, account_id, guess_store.NETWORK, network, at, unless_since=at - _FRESH
            )
        if device is None:
            return ""
        # A secret that nobody here gave out is not taken over: somebody else may know it.
        if not await guess_store.known_device(connection, secret_hash(device), at - DEVICE_LIFE):
            device = new_secret()
        await guess_store.remember(
            connection,
            account_id,
            guess_store.DEVICE,
            secret_hash(device),
            at,
            unless_since=at,
        )
        return device

    async def is_familiar(
        self, connection: Connection, account_id: UUID, source: str, device: str | None
    ) -> bool:
        """Whether an account was logged in from this browser lately; for a program, from this
        network.

        Args:
            device: as for `remember`.
        """
        network = self._key(guess_store.NETWORK, network_of(source))
        at = self._clock()
        found = await guess_store.familiar(
            connection, account_id, network, secret_hash(device or ""), since=at - DEVICE_LIFE
        )
        return found.network if device is None else found.device

    async def forget_old(self) -> None:
        """Deletes counters and origins that are too old."""
        at = self._clock()
        async with self._database.system_transaction("counters have no tenant") as connection:
            await guess_store.forget_old(connection, at, at - DEVICE_LIFE, _MOST_COUNTERS)

    def _take(self, attempt: Attempt) -> list[tuple[str, bytes]]:
        """Takes the places of an attempt, in all that it has to have one in."""
        slow = attempt.under_attack and not attempt.spared
        if attempt.standing is Standing.OWN:
            bounds = {("own", attempt.own): _OWN_PLACES, ("all", b"own"): _PLACES}
        elif attempt.standing is Standing.FAMILIAR:
            bounds = {("pair", attempt.own): _PAIR_PLACES, ("all", b"familiar"): _PLACES}
        else:
            bounds = {
                ("pair", attempt.own): _STRANGE_PAIR_PLACES if slow else _PAIR_PLACES,
                ("account", attempt.account): _ACCOUNT_PLACES,
                ("network", attempt.network): _NETWORK_PLACES,
                ("all", b"slow" if attempt.slow else b"strange"): _PLACES,
            }
        if any(self._places[place] >= most for place, most in bounds.items()):
            _ATTEMPTS.note("refused")
            raise exhausted(
                "TOO_MANY_ATTEMPTS",
                "too many failed attempts for this account or from your network; try again later",
                retry_after=_STRANGE_SECONDS if slow else _PAIR_MOST,
            )
        places = list(bounds)
        self._places.update(places)
        return places

    async def _count(
        self, connection: Connection, attempt: Attempt
    ) -> tuple[dict[bytes, int], Counted]:
        """Counts an attempt; answers what its counters were before."""
        at = self._clock()
        # Strangers' places are as many as there are networks.
        own_kept = attempt.kept and attempt.standing is not Standing.STRANGE
        counters = [guess_store.Counter(attempt.own, at + _QUIET, sliding=True, kept=own_kept)]
        if attempt.account:
            counters.append(
                guess_store.Counter(attempt.account, at + _DAY, sliding=False, kept=attempt.kept)
            )
        before = await guess_store.count(connection, counters, at)
        others = [counter.key for counter in counters[1:]]
        if attempt.network and before[attempt.own] < _PAIR_FREE:
            # A network is judged by how many accounts it tries, not by a loop for one of them.
            counter = guess_store.Counter(attempt.network, at + _HOUR, sliding=False)
            before |= await guess_store.count(connection, [counter], at)
            others.append(attempt.network)
        elif attempt.network:
            before[attempt.network] = await guess_store.failures(connection, attempt.network, at)
        return before, Counted(attempt.own, others)

    def _key(self, *parts: str) -> bytes:
        return self._sealer.mark("\0".join(parts))


def _delay(attempt: Attempt, before: dict[bytes, int]) -> float:
    """The seconds that an attempt waits, by the failures before it."""
    if attempt.standing is Standing.OWN:
        return _doubling(before[attempt.own], _OWN_FREE, 1, _OWN_MOST)
    delays = [_doubling(before[attempt.own], _PAIR_FREE, 1, _PAIR_MOST)]
    if attempt.standing is Standing.STRANGE:
        delays.append(_doubling(before[attempt.network], _NETWORK_FREE, 50, _NETWORK_MOST))
    if not attempt.spared:
        account = before[attempt.account]
        delays.append(
            _STRANGE_SECONDS
            if account >= ATTACK
            else _doubling(account, _ACCOUNT_FREE, 10, _ACCOUNT_MOST)
        )
    return max(delays)


def _doubling(failures: int, free: int, step: int, most: float) -> float:
    """Nothing for the first failures; from then on twice as long with each `step` of them."""
    if failures < free:
        return 0.0
    # Not above what a float can hold.
    doublings: float = min((failures - free) / step, 16.0)
    return min(most, _FIRST_SECONDS * math.pow(2.0, doublings))


def network_of(address: str) -> str:
    """What an address stands for: itself, or the /64 of an IPv6 address, which one client has."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(IPv6Network((parsed, 64), strict=False))
