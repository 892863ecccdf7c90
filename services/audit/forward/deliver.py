"""Goes along the chains of one webhook: reads, sends, and notes how far it is.

No transaction is open while something is sent. What was sent and not noted, because the process
died in between, is sent again with the same id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from prometheus_client import Counter

from auditlog.entries import Entry
from servicekit.data.postgres import Connection, Scope
from servicekit.errors import DomainError
from servicekit.ids import new_id
from servicekit.observability import logs
from servicekit.observability.tracing import step
from services.audit.forward import health_store, messages, position_store, quarantine_store
from services.audit.forward.domain import (
    ATTEMPTS,
    JITTER,
    LONGEST_WAIT,
    MOST_QUARANTINED,
    Disabled,
    Fault,
    Forwarder,
    NotDeliveredError,
    Quarantined,
    Webhook,
    delay,
)
from services.audit.forward.formats import Item, UnreadableError
from services.audit.forward.outbound import Outbound
from services.audit.forward.position_store import Waiting
from services.audit.forward.webhook import WebhookSender
from services.audit.log import store as chains

log = logs.get(__name__)

DELIVERIES: Final = Counter(
    "evergreen_forwarder_deliveries_total",
    "Messages of forwarders by what came of them.",
    ["kind", "outcome"],
)
QUARANTINED: Final = Counter(
    "evergreen_forwarder_quarantined_total", "Messages that targets of forwarders refused for good."
)
_LANES: Final = 4
"""Chains of a forwarder that are sent at a time."""
_PAGES: Final = 20
"""Pages of a chain, before others have their turn."""
TURN_SECONDS: Final = 10.0
"""So long a chain is sent, before others have their turn: a target may be slow."""
_AFTER_OTHERS: Final = timedelta(seconds=30)
_SHORTEST_WAIT: Final = timedelta(seconds=5)
_MOST_OF_A_BODY: Final = 1 << 20
_MOVED_SECONDS: Final = 0.2
_CHECKPOINTS_EVERY: Final = timedelta(hours=1)


class MovedError(Exception):
    """A position is not where it was: somebody replays, or another process sends now."""


class Delivery:
    """What every kind of forwarder notes of its deliveries."""

    def __init__(self, outbound: Outbound, forwarder: Forwarder, lease: UUID) -> None:
        self.outbound = outbound
        self.forwarder = forwarder
        self.lease = lease
        self._last = UUID(int=0)
        """The last chain that had its turn."""
        self._checkpoint_due: datetime | None = None

    async def checkpoint(self) -> Item | None:
        """What says where the log is, if that is due now and wanted."""
        outbound, forwarder, at = self.outbound, self.forwarder, self.outbound.clock()
        if self._checkpoint_due is None:
            async with outbound.database.transaction(Scope.of(forwarder.tenant_id)) as connection:
                last = await health_store.checkpoint_at(connection, forwarder.id)
            self._checkpoint_due = (last or forwarder.created_at) + _CHECKPOINTS_EVERY
        if at < self._checkpoint_due:
            return None
        try:
            tree = await outbound.tree.checkpoint()
        except DomainError:
            # There is no tree now, or it was damaged.
            return None
        scope = Scope.of(forwarder.tenant_id)
        async with outbound.database.transaction(scope) as connection:
            heads = await chains.heads(connection, scope)
        item = messages.checkpoint(forwarder, tree, heads[0] if heads else None)
        if forwarder.filter.takes(item.record):
            return item
        self._checkpoint_due = at + _CHECKPOINTS_EVERY
        return None

    async def told_checkpoint(self) -> None:
        """Notes that it was sent."""
        at = self.outbound.clock()
        async with self.outbound.database.transaction(
            Scope.of(self.forwarder.tenant_id)
        ) as connection:
            await health_store.note_checkpoint(connection, self.forwarder.id, at)
            await self.succeeded(connection, 1)
        self._checkpoint_due = at + _CHECKPOINTS_EVERY

    async def waiting(self) -> list[Waiting]:
        """Chains with entries to send now, each in its turn."""
        outbound = self.outbound
        async with outbound.database.system_transaction(
            "a forwarder reads the chains of a subtree"
        ) as connection:
            found = await position_store.waiting(
                connection,
                self.forwarder.id,
                outbound.chains(self.forwarder),
                outbound.clock(),
                self._last,
            )
        if found:
            self._last = found[-1].chain_id
        return found

    async def succeeded(self, connection: Connection, count: int) -> None:
        """Notes that something was delivered."""
        at = self.outbound.clock()
        told, _ = await health_store.delivered(connection, self.forwarder.id, count, at)
        if told:
            await self.outbound.outbox.append(connection, messages.recovered(self.forwarder, at))

    def count(self, outcome: str, number: int = 1) -> None:
        """Counts messages."""
        DELIVERIES.labels(self.forwarder.kind, outcome).inc(number)

    async def failed(self, error: NotDeliveredError) -> datetime | None:
        """Notes that the target is at fault, and when it is tried again, which it answers."""
        self.count("failed")
        forwarder, at = self.forwarder, self.outbound.clock()
        if error.fault is Fault.GONE:
            await disable(self.outbound, forwarder, Disabled.GONE)
            return None
        if error.fault is Fault.ADDRESS:
            await disable(self.outbound, forwarder, Disabled.ADDRESS_REFUSED)
            return None
        async with self.outbound.database.transaction(Scope.of(forwarder.tenant_id)) as connection:
            attempts = await health_store.attempts(connection, forwarder.id) + 1
            wait = error.retry_after
            if wait is None:
                wait = delay(attempts, self.outbound.chance())
            wait = max(wait, _SHORTEST_WAIT * (1 - JITTER))
            await health_store.failed(
                connection, forwarder.id, error.reason, at, attempts, at + wait
            )
        log.info(
            "forwarder waits",
            forwarder=str(forwarder.id),
            reason=error.reason,
            attempts=attempts,
            seconds=round(wait.total_seconds()),
        )
        return at + wait

    async def quarantine(
        self, entry: Entry, reason: str, attempts: int, known: int, confirmed: int | None = None
    ) -> None:
        """Quarantines an entry's message, and goes on behind it.

        Raises:
            MovedError: the position is another one by now.
            NotDeliveredError: there is no room.
        """
        forwarder, at = self.forwarder, self.outbound.clock()
        chain_id = UUID(entry.tenant_id)
        message = Quarantined(
            id=new_id(),
            entry_id=UUID(entry.columns.id),
            chain_id=chain_id,
            sequence=entry.sequence,
            reason=reason,
            attempts=attempts,
            quarantined_at=at,
        )
        async with self.outbound.database.transaction(Scope.of(forwarder.tenant_id)) as connection:
            if await quarantine_store.undelivered(connection, forwarder.id) >= MOST_QUARANTINED:
                raise NotDeliveredError(Fault.TARGET, "QUARANTINE_FULL", retry_after=LONGEST_WAIT)
            if not await position_store.advance(
                connection,
                forwarder,
                self.lease,
                chain_id,
                known=known,
                sent=entry.sequence,
                confirmed=confirmed,
            ):
                raise MovedError
            await quarantine_store.quarantine(connection, forwarder, message)
            await self.outbound.outbox.append(
                connection, messages.quarantined(forwarder, message.entry_id, reason)
            )
        QUARANTINED.inc()
        self.count("quarantined")
        log.warning(
            "message quarantined",
            forwarder=str(forwarder.id),
            tenant=entry.tenant_id,
            sequence=entry.sequence,
            reason=reason,
        )


async def disable(outbound: Outbound, forwarder: Forwarder, reason: Disabled) -> None:
    """Disables a forwarder by the system."""
    at = outbound.clock()
    async with outbound.database.transaction(Scope.of(forwarder.tenant_id)) as connection:
        if await health_store.disable(connection, forwarder, reason, at):
            await outbound.outbox.append(connection, messages.disabled(forwarder, reason, at))
    log.warning("forwarder disabled", forwarder=str(forwarder.id), reason=reason.value)


@dataclass(slots=True)
class _Lane:
    """A chain that is being sent."""

    chain_id: UUID
    position: int
    attempts: int
    size: int
    """Entries in the next message."""
    until: float
    """When others have their turn, by the loop's clock."""


@dataclass(slots=True)
class _Message:
    """What is sent at once, and up to where in a page it goes."""

    items: list[Item]
    pieces: list[bytes]
    behind: int
    """The index of the entry in the page behind the last one."""


class WebhookDelivery(Delivery):
    """Sends what waits for one webhook."""

    def __init__(
        self, outbound: Outbound, forwarder: Forwarder, lease: UUID, sender: WebhookSender
    ) -> None:
        super().__init__(outbound, forwarder, lease)
        assert isinstance(forwarder.config, Webhook)
        self._batch = forwarder.config.batch
        self._sender = sender
        self._error: NotDeliveredError | None = None
        self._refused_lane: _Lane | None = None
        """Whose message was answered with the error."""

    @property
    def watch_seconds(self) -> float | None:
        """In how many seconds there is something to look after; `None` for never."""
        return None

    async def run(self) -> bool:
        """Sends until nothing waits; answers whether that was so, and not an error the end."""
        self._error = self._refused_lane = None
        while True:
            found = await self.waiting()
            if not found:
                return await self._again() and await self._tell_checkpoint()
            await self._send_all(found)
            if self._error is not None:
                again = await self.failed(self._error)
                if again is not None and self._refused_lane is not None and len(found) > 1:
                    # It may be this chain's message that the target does not like: then those of
                    # others go before it is tried again.
                    await self._hold(self._refused_lane, again + _AFTER_OTHERS)
                return False

    async def close(self) -> None:
        """Closes the connections."""
        await self._sender.close()

    async def _send_all(self, found: Sequence[Waiting]) -> None:
        turn = iter(found)

        async def work() -> None:
            for waiting in turn:
                if self._error is not None:
                    return
                async with self.outbound.lane(self.forwarder):
                    await self._lane(waiting)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(_LANES, len(found))):
                group.create_task(work())

    async def _lane(self, waiting: Waiting) -> None:
        lane = _Lane(
            waiting.chain_id,
            waiting.sent,
            waiting.attempts,
            1 if waiting.attempts else self._batch,
            asyncio.get_running_loop().time() + TURN_SECONDS,
        )
        try:
            for _ in range(_PAGES):
                async with self.outbound.database.transaction(
                    Scope.of(lane.chain_id)
                ) as connection:
                    head, entries = await position_store.page(
                        connection, lane.chain_id, lane.position
                    )
                if not entries:
                    # Somebody removed what was there.
                    await self._move(lane, max(head, lane.position), 0)
                    return
                if not await self._page(lane, entries):
                    return
        except MovedError:
            await asyncio.sleep(_MOVED_SECONDS)
        except NotDeliveredError as error:
            if self._error is None:
                self._error = error
                self._refused_lane = lane if error.status else None

    async def _page(self, lane: _Lane, entries: Sequence[Entry]) -> bool:
        """Sends a page; answers whether the lane goes on."""
        at = 0
        while at < len(entries):
            if self._error is not None:
                return False
            message = self._next(lane, entries, at)
            if not message.items:
                if message.behind == at:
                    await self.quarantine(entries[at], "UNREADABLE", 0, lane.position)
                    lane.position = entries[at].sequence
                    at += 1
                else:
                    at = message.behind
                    if at == len(entries):
                        await self._move(lane, entries[-1].sequence, 0)
                continue
            await self.outbound.pace.take(len(message.items))
            try:
                with step("forward"):
                    await self._sender.send(message.items, message.pieces)
            except NotDeliveredError as error:
                if error.fault is not Fault.MESSAGE:
                    raise
                if len(message.items) > 1:
                    # One of them may be at fault: it is found by halves.
                    lane.size = max(1, len(message.items) // 2)
                    continue
                index = at + next(
                    offset
                    for offset, entry in enumerate(entries[at:])
                    if entry.sequence == message.items[0].sequence
                )
                if not await self._refused(lane, entries[index], error):
                    return False
                at = index + 1
                continue
            self.count("delivered", len(message.items))
            await self._move(lane, entries[message.behind - 1].sequence, len(message.items))
            at = message.behind
            lane.size = min(self._batch, lane.size * 2)
            if asyncio.get_running_loop().time() >= lane.until:
                return False
        return True

    def _next(self, lane: _Lane, entries: Sequence[Entry], at: int) -> _Message:
        """The next message of a page; without entries, where the filter takes none of them.

        It ends before an entry of which no message can be made; one that begins with such an entry
        is of length 0.
        """
        found = _Message([], [], at)
        room = _MOST_OF_A_BODY
        while found.behind < len(entries) and len(found.items) < lane.size:
            try:
                item = Item.of(entries[found.behind])
                if self.forwarder.filter.takes(item.record):
                    piece = self._sender.piece(item)
                    room -= len(piece)
                    if room < 0 and found.items:
                        break
                    found.items.append(item)
                    found.pieces.append(piece)
            except UnreadableError:
                break
            found.behind += 1
        return found

    async def _move(self, lane: _Lane, position: int, count: int) -> None:
        if position == lane.position:
            return
        async with self.outbound.database.transaction(
            Scope.of(self.forwarder.tenant_id)
        ) as connection:
            if not await position_store.advance(
                connection,
                self.forwarder,
                self.lease,
                lane.chain_id,
                known=lane.position,
                sent=position,
            ):
                raise MovedError
            if count:
                await self.succeeded(connection, count)
        lane.position, lane.attempts = position, 0

    async def _refused(self, lane: _Lane, entry: Entry, error: NotDeliveredError) -> bool:
        """Handles a message that the target refused; answers whether it was quarantined."""
        lane.attempts += 1
        self.count("refused")
        if lane.attempts >= ATTEMPTS:
            try:
                # Only if the target takes another one, it is this one's fault.
                item = messages.make_test(self.forwarder)
                await self._sender.send([item], [self._sender.piece(item)])
            except NotDeliveredError as wrong:
                raise NotDeliveredError(Fault.TARGET, wrong.reason) from wrong
            await self.quarantine(entry, error.reason, lane.attempts, lane.position)
            lane.position, lane.attempts = entry.sequence, 0
            return True
        at = self.outbound.clock()
        await self._hold(lane, at + delay(lane.attempts, self.outbound.chance()))
        async with self.outbound.database.transaction(
            Scope.of(self.forwarder.tenant_id)
        ) as connection:
            await health_store.note_error(connection, self.forwarder.id, error.reason, at)
        return False

    async def _hold(self, lane: _Lane, until: datetime) -> None:
        async with self.outbound.database.transaction(
            Scope.of(self.forwarder.tenant_id)
        ) as connection:
            await position_store.hold(
                connection,
                self.forwarder,
                self.lease,
                lane.chain_id,
                known=lane.position,
                attempts=lane.attempts,
                next_attempt_at=until,
            )

    async def _again(self) -> bool:
        """Sends quarantined messages once more; answers whether the target did what it should."""
        while True:
            async with self.outbound.database.transaction(
                Scope.of(self.forwarder.tenant_id)
            ) as connection:
                message = await quarantine_store.asked_again(connection, self.forwarder.id)
            if message is None:
                return True
            reason = await self._once_more(message)
            if reason is None:
                return False
            async with self.outbound.database.transaction(
                Scope.of(self.forwarder.tenant_id)
            ) as connection:
                at = None if reason else self.outbound.clock()
                await quarantine_store.note_again(connection, message.id, reason, at)
                if not reason:
                    await self.succeeded(connection, 1)

    async def _tell_checkpoint(self) -> bool:
        """Says where the log is, when it is time; answers whether the target did what it should."""
        item = await self.checkpoint()
        if item is None:
            return True
        try:
            await self._sender.send([item], [self._sender.piece(item)])
        except NotDeliveredError as error:
            if error.fault is not Fault.MESSAGE:
                await self.failed(error)
                return False
            # It does not like this kind of message; entries are not held up for it.
            self.count("refused")
        else:
            self.count("delivered")
        await self.told_checkpoint()
        return True

    async def _once_more(self, message: Quarantined) -> str | None:
        """What went wrong, empty for nothing; `None` when the target is at fault."""
        async with self.outbound.database.transaction(Scope.of(message.chain_id)) as connection:
            entry = await position_store.entry(connection, message.chain_id, message.sequence)
        if entry is None:
            return "ENTRY_MISSING"
        try:
            item = Item.of(entry)
            await self._sender.send([item], [self._sender.piece(item)])
        except UnreadableError:
            return "UNREADABLE"
        except NotDeliveredError as error:
            if error.fault is Fault.MESSAGE:
                return error.reason
            await self.failed(error)
            return None
        self.count("delivered")
        return ""
