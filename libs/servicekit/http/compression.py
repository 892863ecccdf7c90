"""Answers of device calls in gzip, for clients that take it.

What is worth it is decided by who answers: an answer that has secrets beside text that somebody
else than their owner writes must not be compressed, for its length would tell of them (BREACH).
See docs/adr.
"""

from __future__ import annotations

import asyncio
import gzip
from collections import OrderedDict
from typing import Final

SMALLEST: Final = 1024
"""Bytes up to which a body fits into one packet anyway."""
_LEVEL: Final = 6
_KEPT_BYTES: Final = 32 << 20
_AT_ONCE: Final = 64 << 10
"""A larger body is compressed beside the loop: it takes milliseconds."""


def accepts_gzip(header: bytes | None) -> bool:
    """Whether a client takes gzip, by its `Accept-Encoding`; one that says nothing does not."""
    if header is None or b"gzip" not in (lower := header.lower()):
        return False
    for part in lower.split(b","):
        coding, _, parameter = part.partition(b";")
        if coding.strip() == b"gzip":
            name, _, value = parameter.strip().partition(b"=")
            return name.strip() != b"q" or bool(value.strip().strip(b"0."))
    return False


class Compressed:
    """Bodies in gzip. Devices that get the same one share it."""

    def __init__(self, limit: int = _KEPT_BYTES) -> None:
        self._limit = limit
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()
        self._size = 0
        self._busy = asyncio.Lock()

    async def of(self, body: bytes) -> bytes:
        """A body in gzip."""
        found = self._found(body)
        if found is not None:
            return found
        if len(body) <= _AT_ONCE:
            return self._put(body, _zipped(body))
        async with self._busy:
            found = self._found(body)
            if found is None:
                found = self._put(body, await asyncio.to_thread(_zipped, body))
            return found

    def _found(self, body: bytes) -> bytes | None:
        found = self._kept.get(body)
        if found is not None:
            self._kept.move_to_end(body)
        return found

    def _put(self, body: bytes, zipped: bytes) -> bytes:
        self._kept[body] = zipped
        self._size += len(body) + len(zipped)
        while self._size > self._limit:
            old, gone = self._kept.popitem(last=False)
            self._size -= len(old) + len(gone)
        return zipped


def _zipped(body: bytes) -> bytes:
    # The same bytes have the same answer, whenever it is made.
    return gzip.compress(body, _LEVEL, mtime=0)
