"""Old states: who may tell a queue of them, and whose turn it is."""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Hashable
from math import inf
from typing import Final, TypeAlias

from servicekit.admission.fair import FairQueue, Shares

_REMEMBERED_SECONDS: Final = 3600.0
_MOST_REMEMBERED: Final = 100_000
_QUICKEST_SECONDS: Final = 300.0
_TIMES_QUICKEST: Final = 3
"""One that came just after a batch had begun waits for it and then for its own."""


_Waiter: TypeAlias = asyncio.Future[bool]
"""A call in the line; its result is whether it has got a place."""


class Queues:
    """Who may empty a queue at the moment: each call by call, in places that tenants share.

    A device that comes back with a queue sends all of it again when one call is refused. So a
    whole queue is let in or none of it (session-based admission: Cherkasova and Phaal, IEEE
    Transactions on Computers 51, 2002): a place is kept for its holder between two calls.

    What waits in queues is old, and can wait for what is of the moment. So there are as many
    places as leave the service quick: one more after every round of quick calls, half a one less
    after every slow call (additive increase as in TCP, but in small steps, for a queue that was
    let in is not put out again). It sees so how much of the machine others use, too. What is slow
    is measured by the quickest calls, as in LEDBAT (RFC 6817): where even those take long, the
    disk does, and fewer places would not change that.

    For a holder that left a kept place unused none is kept for some time: such as a device whose
    clock is wrong, so that all it tells looks old.

    Callers that were refused in the same moment come back in the same moment, as their back-off
    has no jitter: some would be let in each time, and nobody in between. So a bounded number
    `wait` for a place that becomes free, and give up after times that differ.

    Args:
        least: how many places there are at any time, altogether.
        most: how many there are when all goes quickly.
        kept: seconds for which a place is kept for its holder's next call.
        quick: seconds within which nearly all calls are to be done; or within three times as many
            as the quickest of the latest minutes took, when that is longer.
        waiting: how many may wait for a place; tenants share this, too.
        patience: seconds for which they do at most, and half of which they do at least.
    """

    def __init__(
        self,
        least: int,
        most: int,
        *,
        kept: float,
        quick: float,
        waiting: int = 0,
        patience: float = 0.0,
    ) -> None:
        self._least = min(least, most)
        self._most = most
        self._places = float(self._least)
        self._shares = Shares(self._least)
        self._seconds = kept
        self._quick = quick
        self._quickest = [inf, inf]
        """Of this span of time and the one before."""
        self._span_ends = 0.0
        self._kept: OrderedDict[Hashable, tuple[float, str]] = OrderedDict()
        """Until when, and of whose share; by the holder, in the order of their ends."""
        self._stayed_away: OrderedDict[Hashable, float] = OrderedDict()
        """Since when; in that order."""
        self._waiting = Shares(waiting)
        self._patience = patience
        self._lines: dict[str, dict[_Waiter, None]] = {}
        """Who waits, each tenant's in their order; the tenants in the order of their turns."""

    def may_enter(self, tenant: str, holder: Hashable, at: float) -> bool:
        """Whether `enter` would succeed."""
        self._forget(at)
        return holder in self._kept or self._shares.has_room(tenant)

    def may_wait(self, tenant: str) -> bool:
        """Whether there is room to `wait`."""
        return self._waiting.total > 0 and self._waiting.has_room(tenant)

    async def wait(self, tenant: str, at: float) -> bool:
        """Waits for a place when `enter` has found none.

        Args:
            tenant: of whose share, of the places and of the room to wait.
            at: now, as in `enter`.

        Returns:
            whether the call has a place now, which it must `pause` or `leave`.
        """
        if not self.may_wait(tenant):
            return False
        self._waiting.take_anyway(tenant)
        loop = asyncio.get_running_loop()
        waiter: _Waiter = loop.create_future()
        self._lines.setdefault(tenant, {})[waiter] = None
        seconds = self._patience * (0.5 + random.random() / 2)  # noqa: S311 - no secret
        timer = loop.call_later(seconds, self._end_wait, waiter, at + seconds)
        try:
            return await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled() and waiter.result():
                self.leave(tenant)
            raise
        finally:
            timer.cancel()
            self._waiting.give_back(tenant)
            self._leave_line(tenant, waiter)

    def enter(self, tenant: str, holder: Hashable, at: float) -> bool:
        """Gives a call a place, which it must `pause` or `leave`; or answers that there is none.

        Args:
            tenant: of whose share.
            holder: the caller that may have kept a place.
            at: now, in seconds that never go back.
        """
        self._forget(at)
        if self._kept.pop(holder, None) is not None:
            return True
        return self._shares.take(tenant)

    def leave(self, tenant: str) -> None:
        """Ends a call after which nothing is kept."""
        self._shares.give_back(tenant)
        self._call_up()

    def end(self, holder: Hashable) -> None:
        """Ends a queue: what is kept for its holder, if anything is, becomes free."""
        if (kept := self._kept.pop(holder, None)) is not None:
            self._shares.give_back(kept[1])
            self._call_up()

    def pause(self, tenant: str, holder: Hashable, at: float, took: float) -> None:
        """Ends a call whose caller goes on at once: the place is kept for it for a while.

        Args:
            took: seconds from its beginning to its end.
        """
        if holder in self._kept or holder in self._stayed_away:
            self._shares.give_back(tenant)
        else:
            self._kept[holder] = (at + self._seconds, tenant)
        if at >= self._span_ends:
            self._quickest = [inf, self._quickest[0]]
            self._span_ends = at + _QUICKEST_SECONDS
        self._quickest[0] = min(self._quickest[0], took)
        is_quick = took <= max(self._quick, _TIMES_QUICKEST * min(self._quickest))
        places = self._places + (1 / self._places if is_quick else -0.5)
        self._places = min(max(places, self._least), self._most)
        self._shares.total = int(self._places)
        self._call_up()

    def _call_up(self) -> None:
        """Gives free places to those who wait, tenant by tenant."""
        if not self._lines:
            return
        tenants = list(self._lines)
        while tenants and self._shares.taken < self._shares.total:
            tenants = [tenant for tenant in tenants if self._call_up_one(tenant)]

    def _call_up_one(self, tenant: str) -> bool:
        line = self._lines.get(tenant, {})
        waiter = next((waiter for waiter in line if not waiter.done()), None)
        if waiter is None or not self._shares.take(tenant):
            return False
        waiter.set_result(True)
        # The caller that had a turn is the last to have the next one.
        self._lines[tenant] = self._lines.pop(tenant)
        self._leave_line(tenant, waiter)
        return True

    def _leave_line(self, tenant: str, waiter: _Waiter) -> None:
        line = self._lines.get(tenant)
        if line is None:
            return
        line.pop(waiter, None)
        if not line:
            del self._lines[tenant]

    def _end_wait(self, waiter: _Waiter, at: float) -> None:
        self._forget(at)
        if not waiter.done():
            waiter.set_result(False)

    def _forget(self, at: float) -> None:
        """Ends what was kept for too long."""
        gone = False
        while self._kept:
            holder, (end, tenant) = next(iter(self._kept.items()))
            if end > at:
                break
            del self._kept[holder]
            self._shares.give_back(tenant)
            self._stayed_away[holder] = at
            gone = True
        if gone:
            self._call_up()
        while self._stayed_away:
            since = next(iter(self._stayed_away.values()))
            if len(self._stayed_away) <= _MOST_REMEMBERED and since > at - _REMEMBERED_SECONDS:
                break
            self._stayed_away.popitem(last=False)


class Turns:
    """Long work in slices: one slice goes on at a time, and tenants take turns.

    Between two slices everything else that is ready runs, so that short calls do not wait for
    more than one slice, however many callers have long work.
    """

    def __init__(self) -> None:
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue()
        self._scheduled = False

    async def wait(self, tenant: str) -> None:
        """Returns when the next slice of the caller's work may be done."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._queue.push(tenant, 1, turn)
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._next)
        await turn

    def _next(self) -> None:
        while self._queue:
            _, turn = self._queue.pop()
            # One who was given up meanwhile does not use the turn.
            if not turn.done():
                turn.set_result(None)
                asyncio.get_running_loop().call_soon(self._next)
                return
        self._scheduled = False
