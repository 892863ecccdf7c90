"""Fairness between tenants: who gets what is bounded, and whose turn it is.

All is keyed on the tenant that the gateway vouches for, never on an address: a school is one
address, and a flood may come from many.
"""

from __future__ import annotations

import heapq
from typing import Final, Generic, TypeVar

Entry = TypeVar("Entry")

_GENEROSITY: Final = 2.0
_FORGET_FROM: Final = 64


class Shares:
    """A bounded amount of something (places, weight, bytes) that tenants share.

    A tenant may hold at most twice what is free at the moment (dynamic thresholds: Choudhury and
    Hahne, IEEE/ACM Transactions on Networking 6, 1998). So one that is alone gets two thirds, two
    that flood get two fifths each, and a tenant that holds little finds room however many flood.
    Nothing has to be configured per tenant, and nothing to be noticed before it works.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.taken = 0
        self._held: dict[str, int] = {}

    def has_room(self, tenant: str, amount: int = 1) -> bool:
        """Whether `take` would succeed."""
        # More than there is altogether is given to a caller that comes while nothing is taken.
        if not self.taken:
            return True
        free = self.total - self.taken
        return amount <= free and self._held.get(tenant, 0) + amount <= _GENEROSITY * free

    def take(self, tenant: str, amount: int = 1) -> bool:
        """Gives a tenant an amount, which it must `give_back`; or answers that there is none."""
        if not self.has_room(tenant, amount):
            return False
        self.take_anyway(tenant, amount)
        return True

    def take_anyway(self, tenant: str, amount: int = 1) -> None:
        """Gives a tenant what it cannot be refused any more; to be given back as well."""
        self.taken += amount
        self._held[tenant] = self._held.get(tenant, 0) + amount

    def give_back(self, tenant: str, amount: int = 1) -> None:
        """Ends what `take` began."""
        self.taken -= amount
        left = self._held.pop(tenant, 0) - amount
        if left > 0:
            self._held[tenant] = left


class FairQueue(Generic[Entry]):
    """A queue in which tenants take turns by weight, and each tenant's entries keep their order.

    Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): an entry is stamped with the
    time at which its tenant's turn would come if all that wait were served side by side.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int, Entry]] = []
        self._ends: dict[str, float] = {}
        self._now = 0.0
        self._count = 0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_weight(self) -> int:
        """The weight of what `pop` would answer."""
        return self._heap[0][2]

    def push(self, tenant: str, weight: int, entry: Entry) -> None:
        """Adds an entry."""
        start = max(self._now, self._ends.get(tenant, 0))
        self._ends[tenant] = start + weight
        self._count += 1
        heapq.heappush(self._heap, (start, self._count, weight, entry))

    def pop(self) -> tuple[int, Entry]:
        """Takes the entry whose turn it is; answers its weight with it."""
        start, _, weight, entry = heapq.heappop(self._heap)
        # Time passes with what is served, so that an endless row of newcomers, which all start
        # now, does not keep those who wait for a second turn from it.
        self._now = max(start, self._now + weight / (len(self._heap) + 1))
        if not self._heap:
            self._ends.clear()
        elif len(self._ends) > _FORGET_FROM + 2 * len(self._heap):
            # A tenant whose turns are all in the past starts anew like one that never came.
            self._ends = {t: end for t, end in self._ends.items() if end > self._now}
        return weight, entry
