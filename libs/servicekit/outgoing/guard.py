"""The one place that connects to what somebody typed: a name is resolved once, and only that
address is used.

Every address that a name has must be allowed, and the connection goes to the very address that was
looked at, so that a name that changes its address has no moment in which to do so.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from servicekit.outgoing.addresses import (
    FORBIDDEN,
    Address,
    NotConnectedError,
    Reach,
    Rules,
    reach,
)
from servicekit.outgoing.wire import ClosedError, Wire

_MOST_TRIED: Final = 4
_MOST_OF_AN_ANSWER: Final = 8 << 10
_LOOKUP_SECONDS: Final = 4.0
_EACH_SECONDS: Final = 3.0
"""For an address, while others are left."""
_MOST_LOOKUPS: Final = 64
_lookups: Final = threading.BoundedSemaphore(_MOST_LOOKUPS)

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to addresses, as texts."""


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, by the system.

    In a thread of its own: the user who types a name has name servers, too, and those that do not
    answer must hold up neither the threads that the service needs nor its end.

    Raises:
        OSError: there are none.
        UnicodeError: it is no name.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def say(found: list[str] | Exception) -> None:
        if answer.done():
            return
        if isinstance(found, Exception):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    def look() -> None:
        found: list[str] | Exception
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found = list(dict.fromkeys(str(address[0]) for *_, address in infos))
        except Exception as error:
            found = error
        finally:
            _lookups.release()
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(say, found)

    if not _lookups.acquire(blocking=False):
        raise OSError("too many names are looked up")
    threading.Thread(target=look, name="name lookup", daemon=True).start()
    return await answer


@dataclass(frozen=True, slots=True)
class Proxy:
    """What connections to public addresses go through, by CONNECT."""

    host: str
    port: int

    @classmethod
    def read(cls, url: str) -> Proxy | None:
        """The proxy of a setting; `None` for an empty one.

        Raises:
            ValueError: it is no `http://HOST:PORT`.
        """
        if not url:
            return None
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or not parts.port or "@" in parts.netloc:
            raise ValueError("must be http://HOST:PORT")
        return cls(parts.hostname, parts.port)


@dataclass(frozen=True, slots=True)
class Guard:
    """Connects to what the rules allow, and to nothing else.

    Args:
        rules: the operator's.
        proxy: what connections to public addresses go through.
        lookup: resolves names.
    """

    rules: Rules
    proxy: Proxy | None = None
    lookup: Resolve = resolve

    async def addresses(
        self, host: str, port: int, *, root: bool, plain_http: bool = False
    ) -> list[Address]:
        """The addresses of a host, all of which are allowed.

        Raises:
            NotConnectedError: the name has none, or one is not allowed.
        """
        try:
            texts = await self._look_up(host, port)
        except (OSError, UnicodeError) as error:
            raise NotConnectedError("NAME_NOT_FOUND") from error
        if not texts:
            raise NotConnectedError("NAME_NOT_FOUND")
        # The zone of a link-local address plays no part: such an address is refused.
        found = [ipaddress.ip_address(text.partition("%")[0]) for text in texts]
        if not self.rules.names_host(host, port):
            for address in found:
                if self.rules.refusal(address, port, root=root, plain_http=plain_http):
                    raise NotConnectedError(FORBIDDEN)
        return found

    async def refusal(self, host: str, port: int, *, root: bool, plain_http: bool = False) -> str:
        """Why a host will not be connected to, as far as can be said now; empty when it will.

        For a message at once: what counts is `connect`.
        """
        if self.rules.names_host(host, port):
            return ""
        try:
            texts = await self._look_up(host, port)
        except (OSError, UnicodeError):
            return ""
        for text in texts:
            address = ipaddress.ip_address(text.partition("%")[0])
            if why := self.rules.refusal(address, port, root=root, plain_http=plain_http):
                return why
        return ""

    async def _look_up(self, host: str, port: int) -> Sequence[str]:
        async with asyncio.timeout(_LOOKUP_SECONDS):
            return await self.lookup(host, port)

    async def connect(self, host: str, port: int, *, root: bool, plain_http: bool = False) -> Wire:
        """A TCP connection.

        Raises:
            NotConnectedError: as `addresses`, or nothing listens there.
        """
        found = await self.addresses(host, port, root=root, plain_http=plain_http)
        last: Exception | None = None
        tried = found[:_MOST_TRIED]
        for address in tried:
            try:
                # One that is silent leaves time for those behind it.
                async with asyncio.timeout(None if address is tried[-1] else _EACH_SECONDS):
                    if self.proxy is not None and reach(address) is Reach.PUBLIC:
                        return await self._through(self.proxy, address, port)
                    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
                    return await Wire.connect(family, (str(address), port))
            except OSError as error:
                last = error
        refused = isinstance(last, ConnectionRefusedError)
        reason = "CONNECTION_REFUSED" if refused else "NO_CONNECTION"
        raise NotConnectedError(reason) from last

    async def _through(self, proxy: Proxy, address: Address, port: int) -> Wire:
        found = await asyncio.get_running_loop().getaddrinfo(
            proxy.host, proxy.port, type=socket.SOCK_STREAM
        )
        family, _, _, _, where = found[0]
        wire = await Wire.connect(family, where)
        try:
            host = f"[{address}]" if address.version == 6 else str(address)
            asked = f"CONNECT {host}:{port} HTTP/1.1\r\nhost: {host}:{port}\r\n\r\n"
            await wire.send(asked.encode())
            answer = b""
            while b"\r\n\r\n" not in answer:
                # One by one: what comes behind the head is the target's.
                part = await wire.receive(1)
                answer += part
                if not part or len(answer) > _MOST_OF_AN_ANSWER:
                    raise ClosedError("the proxy gave no answer")
            if answer.split(b" ", 2)[1:2] != [b"200"]:
                raise NotConnectedError("PROXY_REFUSED")
        except BaseException:
            wire.close()
            raise
        return wire
