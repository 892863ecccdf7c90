"""What was used last, in a bounded amount of memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

K = TypeVar("K", bound=Hashable)


class _Sized(Protocol):
    @property
    def size(self) -> int:
        """The memory that it takes, in bytes."""


V = TypeVar("V", bound=_Sized)


class Cache(Generic[K, V]):
    """Keeps what was used last, `limit` bytes of it; what is larger than that is not kept."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[K, V] = OrderedDict()
        self.size = 0

    @property
    def full(self) -> bool:
        """Whether something had to go, or is about to."""
        return self.size >= self._limit * 0.9

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def get(self, key: K) -> V | None:
        """What is kept under a key, as the newest from now on."""
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
        return found

    def put(self, key: K, value: V) -> None:
        """Keeps a value as the newest one, in place of the oldest ones."""
        before = self._entries.pop(key, None)
        if before is not None:
            self.size -= before.size
        self._entries[key] = value
        self.size += value.size
        while self.size > self._limit:
            _, oldest = self._entries.popitem(last=False)
            self.size -= oldest.size
