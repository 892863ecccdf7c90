"""Sends what waits for one syslog receiver, over a connection that stays.

Syslog has no acknowledgement: what a receiver's kernel has taken may be lost when its process ends.
So an entry counts as received when the receiver's kernel had it a minute ago on a connection that
still stands, or when the receiver has closed an orderly ended connection. A connection that broke
makes all sent again that does not count yet.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from auditlog.entries import Entry
from servicekit.data.postgres import Scope
from servicekit.observability.tracing import step
from servicekit.outgoing.addresses import NotConnectedError
from servicekit.outgoing.guard import Guard
from servicekit.outgoing.wire import Wire, certificate_reason, client_context
from services.audit.forward import position_store, quarantine_store
from services.audit.forward.deliver import TURN_SECONDS, Delivery, MovedError
from services.audit.forward.domain import (
    CONFIRMED_AFTER,
    Fault,
    Forwarder,
    NotDeliveredError,
    Quarantined,
    Secrets,
    Syslog,
    Transport,
    not_connected,
)
from services.audit.forward.formats import Item, UnreadableError
from services.audit.forward.lines import Lines
from services.audit.forward.outbound import Outbound
from services.audit.forward.position_store import Waiting

_AT_ONCE: Final = 50
"""Messages, before the receiver's kernel must have them."""
_SECONDS: Final = 15.0
"""For connecting, and for each so many messages."""
_PAGES: Final = 20
_FINISH_SECONDS: Final = 0.6
_MOVED_SECONDS: Final = 0.2


class SyslogConnection:
    """A connection to a receiver, by TCP or TLS; or a socket, with UDP.

    Raises, from all methods:
        NotDeliveredError: the target is at fault.
    """

    def __init__(
        self, syslog: Syslog, secrets: Secrets, lines: Lines, guard: Guard, *, root: bool
    ) -> None:
        self._syslog = syslog
        self._secrets = secrets
        self._lines = lines
        self._guard = guard
        self._root = root
        self._wire: Wire | None = None
        self._socket: socket.socket | None = None

    @property
    def is_open(self) -> bool:
        """Whether it was opened, and has not broken as far as is known."""
        return self._socket is not None or (self._wire is not None and not self._wire.is_closed())

    async def open(self) -> None:
        """Connects."""
        self.drop()
        syslog = self._syslog
        if syslog.transport is Transport.UDP:
            await self._open_udp()
            return
        try:
            async with asyncio.timeout(_SECONDS):
                wire = await self._guard.connect(syslog.host, syslog.port, root=self._root)
                self._wire = wire
                if syslog.transport is Transport.TLS:
                    context = client_context(
                        syslog.ca_pem, syslog.client_certificate_pem, self._secrets.client_key_pem
                    )
                    await wire.start_tls(context, syslog.server_name or syslog.host)
        except BaseException as error:
            self.drop()
            raise _told(error) from error

    async def _open_udp(self) -> None:
        syslog = self._syslog
        try:
            (address, *_) = await self._guard.addresses(syslog.host, syslog.port, root=self._root)
        except NotConnectedError as error:
            raise not_connected(error) from error
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        found = socket.socket(family, socket.SOCK_DGRAM)
        try:
            found.setblocking(False)
            found.connect((str(address), syslog.port))
        except OSError as error:
            found.close()
            raise NotDeliveredError(Fault.TARGET, "NO_CONNECTION") from error
        self._socket = found

    async def send(self, messages: Sequence[bytes]) -> None:
        """Sends messages, and waits until the receiver's kernel has them."""
        try:
            async with asyncio.timeout(_SECONDS):
                if self._socket is not None:
                    for message in messages:
                        await self._send_datagram(message)
                    return
                wire = self._wire
                if wire is None or wire.is_closed():
                    raise ConnectionResetError
                await wire.send(b"".join(map(self._lines.frame, messages)))
                await wire.until_acknowledged()
        except BaseException as error:
            self.drop()
            raise _told(error) from error

    async def _send_datagram(self, message: bytes) -> None:
        assert self._socket is not None
        try:
            await asyncio.get_running_loop().sock_sendall(self._socket, message)
        except OSError as error:
            # Nobody listens, or it is too long for the way: UDP loses it, as it may.
            if error.errno not in (errno.ECONNREFUSED, errno.EMSGSIZE):
                raise

    async def finish(self) -> bool:
        """Ends it in order; answers whether the receiver has everything."""
        try:
            if self._wire is None or self._wire.is_closed():
                return False
            async with asyncio.timeout(_FINISH_SECONDS):
                await self._wire.finish()
            return True
        except (OSError, TimeoutError):
            return False
        finally:
            self.drop()

    def drop(self) -> None:
        """Closes it at once."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def syslog_connection(outbound: Outbound, forwarder: Forwarder) -> tuple[SyslogConnection, Lines]:
    """What sends for a syslog forwarder, not connected yet.

    Raises:
        SealingError, ValueError: its secrets cannot be opened.
    """
    assert isinstance(forwarder.config, Syslog)
    lines = Lines(forwarder.config, outbound.host)
    connection = SyslogConnection(
        forwarder.config,
        outbound.secrets(forwarder),
        lines,
        outbound.guard,
        root=outbound.is_root(forwarder),
    )
    return connection, lines


async def send_syslog_test(outbound: Outbound, forwarder: Forwarder, item: Item) -> None:
    """Sends one message over a connection of its own.

    Raises:
        NotDeliveredError: the target did not take it.
        SealingError, ValueError: its secrets cannot be opened.
    """
    connection, lines = syslog_connection(outbound, forwarder)
    try:
        await connection.open()
        await connection.send([lines.message(item)])
    finally:
        await connection.finish()


def _told(error: BaseException) -> BaseException:
    """What is told of an error; what is none of the target's stays as it is."""
    if isinstance(error, NotConnectedError):
        return not_connected(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return NotDeliveredError(Fault.TARGET, certificate_reason(error))
    if isinstance(error, ssl.SSLError):
        return NotDeliveredError(Fault.TARGET, "TLS_FAILED")
    if isinstance(error, TimeoutError):
        return NotDeliveredError(Fault.TARGET, "TIMEOUT")
    if isinstance(error, OSError):
        return NotDeliveredError(Fault.TARGET, "CONNECTION_LOST")
    if isinstance(error, ValueError):
        return NotDeliveredError(Fault.TARGET, "CERTIFICATE_UNUSABLE")
    return error


@dataclass(frozen=True, slots=True)
class _Mark:
    """That the receiver's kernel had a chain up to an entry at some time."""

    at: float
    chain_id: UUID
    sequence: int


class SyslogDelivery(Delivery):
    """Sends what waits for one syslog receiver."""

    def __init__(
        self,
        outbound: Outbound,
        forwarder: Forwarder,
        lease: UUID,
        connection: SyslogConnection,
        lines: Lines,
    ) -> None:
        super().__init__(outbound, forwarder, lease)
        self._connection = connection
        self._lines = lines
        assert isinstance(forwarder.config, Syslog)
        self._confirms = forwarder.config.transport is not Transport.UDP
        self._marks: deque[_Mark] = deque()
        self._sent: dict[UUID, int] = {}
        """Up to where the chains of the marks were sent."""

    @property
    def watch_seconds(self) -> float | None:
        """In how many seconds there is something to look after; `None` for never."""
        return 1.0 if self._marks else None

    async def run(self) -> bool:
        """Sends until nothing waits; answers whether that was so, and not an error the end."""
        try:
            await self._confirm()
            checkpoint = await self.checkpoint()
            if checkpoint is not None and not self._connection.is_open:
                await self._connect()
            while found := await self.waiting():
                if not self._connection.is_open:
                    await self._connect()
                    continue
                for waiting in found:
                    async with self.outbound.lane(self.forwarder):
                        await self._lane(waiting)
                await self._confirm()
            await self._again()
            if checkpoint is not None:
                await self._connection.send([self._lines.message(checkpoint)])
                self.count("delivered")
                await self.told_checkpoint()
        except MovedError:
            # A replay: what was sent counts no more.
            self._forget()
            await asyncio.sleep(_MOVED_SECONDS)
            return False
        except NotDeliveredError as error:
            await self.failed(error)
            return False
        return True

    async def close(self) -> None:
        """Ends the connection in order; then the receiver has everything."""
        marks = {mark.chain_id: mark for mark in self._marks}
        if await self._connection.finish() and marks:
            await self._confirm_all(list(marks.values()))

    async def _connect(self) -> None:
        """Connects, behind what the receiver has for certain."""
        self._forget()
        async with self.outbound.database.transaction(
            Scope.of(self.forwarder.tenant_id)
        ) as connection:
            await position_store.go_back_to_confirmed(connection, self.forwarder.id, self.lease)
        await self._connection.open()

    def _forget(self) -> None:
        self._marks.clear()
        self._sent.clear()
        self._connection.drop()

    async def _lane(self, waiting: Waiting) -> None:
        chain_id, position, confirmed = waiting.chain_id, waiting.sent, waiting.sequence
        loop = asyncio.get_running_loop()
        until = loop.time() + TURN_SECONDS
        for _ in range(_PAGES):
            async with self.outbound.database.transaction(Scope.of(chain_id)) as connection:
                head, entries = await position_store.page(connection, chain_id, position)
            if not entries:
                if head > position:
                    await self._move(chain_id, position, head, confirmed, 0)
                return
            for first in range(0, len(entries), _AT_ONCE):
                position, confirmed = await self._some(
                    chain_id, position, confirmed, entries[first : first + _AT_ONCE]
                )
                if loop.time() >= until:
                    return

    async def _some(
        self, chain_id: UUID, position: int, confirmed: int, entries: Sequence[Entry]
    ) -> tuple[int, int]:
        """Sends some entries; answers up to where the chain was sent, and is confirmed."""
        messages: list[bytes] = []
        count = 0
        for entry in entries:
            try:
                item = Item.of(entry)
                if self.forwarder.filter.takes(item.record):
                    messages.append(self._lines.message(item))
            except UnreadableError:
                if messages:
                    await self._connection.send(messages)
                    count, messages = count + len(messages), []
                if entry.sequence - 1 > position:
                    await self._move(chain_id, position, entry.sequence - 1, confirmed, count)
                    position, count = entry.sequence - 1, 0
                kept = None if confirmed == position else confirmed
                await self.quarantine(entry, "UNREADABLE", 0, position, kept)
                position = entry.sequence
                self._note(chain_id, position)
        if messages:
            await self.outbound.pace.take(len(messages))
            with step("forward"):
                await self._connection.send(messages)
            count += len(messages)
        if entries[-1].sequence > position:
            await self._move(chain_id, position, entries[-1].sequence, confirmed, count)
            position = entries[-1].sequence
        return position, confirmed if self._confirms else position

    async def _move(
        self, chain_id: UUID, known: int, position: int, confirmed: int, count: int
    ) -> None:
        async with self.outbound.database.transaction(
            Scope.of(self.forwarder.tenant_id)
        ) as connection:
            if not await position_store.advance(
                connection,
                self.forwarder,
                self.lease,
                chain_id,
                known=known,
                sent=position,
                confirmed=confirmed if self._confirms else None,
            ):
                raise MovedError
            if count:
                await self.succeeded(connection, count)
        self.count("delivered", count)
        self._note(chain_id, position)

    def _note(self, chain_id: UUID, position: int) -> None:
        if self._confirms:
            now = asyncio.get_running_loop().time()
            self._marks.append(_Mark(now, chain_id, position))
            self._sent[chain_id] = position

    async def _confirm(self) -> None:
        """Notes what counts as received, and has all sent again behind a broken connection.

        Raises:
            MovedError: somebody replays.
            NotDeliveredError: the target is at fault.
        """
        if not self._marks:
            return
        if not self._connection.is_open:
            await self._connect()
            return
        limit = asyncio.get_running_loop().time() - CONFIRMED_AFTER.total_seconds()
        ready: dict[UUID, _Mark] = {}
        while self._marks and self._marks[0].at <= limit:
            mark = self._marks.popleft()
            ready[mark.chain_id] = mark
        if ready and not await self._confirm_all(list(ready.values())):
            raise MovedError

    async def _confirm_all(self, marks: Sequence[_Mark]) -> bool:
        good = True
        async with self.outbound.database.transaction(
            Scope.of(self.forwarder.tenant_id)
        ) as connection:
            for mark in marks:
                good &= await position_store.confirm(
                    connection,
                    self.forwarder.id,
                    self.lease,
                    mark.chain_id,
                    mark.sequence,
                    self._sent[mark.chain_id],
                )
        return good

    async def _again(self) -> None:
        """Sends quarantined messages once more."""
        while True:
            async with self.outbound.database.transaction(
                Scope.of(self.forwarder.tenant_id)
            ) as connection:
                message = await quarantine_store.asked_again(connection, self.forwarder.id)
            if message is None:
                return
            reason = await self._once_more(message)
            async with self.outbound.database.transaction(
                Scope.of(self.forwarder.tenant_id)
            ) as connection:
                at = None if reason else self.outbound.clock()
                await quarantine_store.note_again(connection, message.id, reason, at)

    async def _once_more(self, message: Quarantined) -> str:
        async with self.outbound.database.transaction(Scope.of(message.chain_id)) as connection:
            entry = await position_store.entry(connection, message.chain_id, message.sequence)
        if entry is None:
            return "ENTRY_MISSING"
        try:
            line = self._lines.message(Item.of(entry))
        except UnreadableError:
            return "UNREADABLE"
        if not self._connection.is_open:
            await self._connect()
        await self._connection.send([line])
        return ""
