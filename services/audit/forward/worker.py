"""Who sends when: one process for each forwarder, at once after something was recorded.

Each process looks once a second, and when it has recorded something, whether the log has grown. It
takes the leases of forwarders that nobody sends for, and holds them. A process that died loses them
after some seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol
from uuid import UUID

from prometheus_client import Gauge

from auditlog.entries import Entry
from servicekit.call import begin_background_call
from servicekit.data.postgres import Scope
from servicekit.ids import new_id
from servicekit.observability import logs
from servicekit.observability.logs import Repeated, brief
from servicekit.security.sealing import SealingError
from services.audit.forward import health_store, messages, position_store, store
from services.audit.forward.deliver import WebhookDelivery, disable
from services.audit.forward.domain import TOLD_AFTER, Disabled, Forwarder, Kind
from services.audit.forward.health_store import Due
from services.audit.forward.outbound import Outbound
from services.audit.forward.syslog import SyslogDelivery, syslog_connection

log = logs.get(__name__)

_WAITING: Final = Gauge(
    "evergreen_forwarder_waiting", "Entries that a forwarder still has to look at.", ["forwarder"]
)
_OLDEST: Final = Gauge(
    "evergreen_forwarder_oldest_seconds",
    "How long ago the oldest of them happened; 0 for none.",
    ["forwarder"],
)
_FAILING: Final = Gauge(
    "evergreen_forwarder_failing", "Whether nothing is delivered now.", ["forwarder"]
)
_LOOK_SECONDS: Final = 1.0
_FULL_LOOK_SECONDS: Final = 5.0
"""So long a forwarder is left alone while nothing is recorded: tenants may have been made, or
quarantined messages asked for."""
_LINGER_SECONDS: Final = 0.02
_LEASE_SECONDS: Final = 10.0
_RENEW_SECONDS: Final = 3.0
_SHOW_SECONDS: Final = 15.0
_AGAIN_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 0.8


class Sends(Protocol):
    """Sends what waits for one forwarder."""

    @property
    def watch_seconds(self) -> float | None:
        """In how many seconds there is something to look after; `None` for never."""

    async def run(self) -> bool:
        """Sends until nothing waits; answers whether that was so, and not an error the end."""

    async def close(self) -> None:
        """Closes the connections."""


@dataclass(slots=True)
class _Runner:
    """A forwarder that this process sends for."""

    forwarder: Forwarder
    look: asyncio.Event = field(default_factory=asyncio.Event)
    seen: tuple[str, int] | None = None
    """What was recorded when it last had nothing more to send."""
    look_at: float = 0.0
    task: asyncio.Task[None] | None = None


class Worker:
    """Sends for forwarders, for as long as the service lives."""

    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound
        self._lease = new_id()
        self._wake = asyncio.Event()
        self._runners: dict[UUID, _Runner] = {}
        self._has_any = False

    def recorded(self, entries: Sequence[Entry]) -> None:
        """This process has recorded something."""
        if self._runners:
            self._wake.set()

    def changed(self, forwarder_id: UUID) -> None:
        """A forwarder was changed by this process."""
        if runner := self._runners.get(forwarder_id):
            runner.look_at = 0.0
        self._wake.set()

    async def run(self) -> None:
        """Looks and sends."""
        outage = Repeated(log, "forwarding postponed")
        helpers = [
            asyncio.create_task(self._renew_forever()),
            asyncio.create_task(self._show_forever()),
        ]
        try:
            while True:
                self._wake.clear()
                begin_background_call()
                try:
                    await self._look()
                    outage.worked()
                except Exception as error:
                    outage.failed(error)
                # Without a forwarder there is nothing to look after but that one is made elsewhere.
                pause = _LOOK_SECONDS if self._has_any else _FULL_LOOK_SECONDS
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), pause)
                await asyncio.sleep(_LINGER_SECONDS)
        finally:
            for helper in helpers:
                helper.cancel()
            await self._end(list(self._runners))

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = self._outbound.clock()
        async with self._outbound.database.system_transaction(
            "forwarders of all tenants are looked at"
        ) as connection:
            seen = await health_store.recorded(connection)
            known = {key: runner.forwarder for key, runner in self._runners.items()}
            found, self._has_any = await health_store.enabled(connection, self._lease, known)
            since = now - TOLD_AFTER
            if any(_is_untold(due.forwarder, since) for due in found):
                for forwarder in await health_store.failing_untold(connection, since):
                    await self._outbound.outbox.append(connection, messages.failing(forwarder, now))
        await self._end(
            [
                known
                for known, runner in self._runners.items()
                if (runner.task is not None and runner.task.done())
                or not any(
                    due.is_mine
                    and due.forwarder.id == known
                    and due.forwarder.revision == runner.forwarder.revision
                    for due in found
                )
            ]
        )
        for due in found:
            runner = await self._runner(due)
            state = due.forwarder.state
            if runner is None or (state.next_attempt_at and state.next_attempt_at > now):
                continue
            is_held = due.held_until is not None and due.held_until <= now
            if is_held or runner.seen != seen or runner.look_at <= loop.time():
                runner.seen = seen
                runner.look_at = loop.time() + _FULL_LOOK_SECONDS
                runner.look.set()

    async def _runner(self, due: Due) -> _Runner | None:
        forwarder = due.forwarder
        runner = self._runners.get(forwarder.id)
        if runner is not None:
            return runner
        node = self._outbound.tenants.known(forwarder.tenant_id)
        # Whose entries it sends is known only when identity was heard.
        if node is None or node.going or not (due.is_free or due.is_mine):
            return None
        async with self._outbound.database.transaction(Scope.of(forwarder.tenant_id)) as connection:
            if not await health_store.take(connection, forwarder.id, self._lease, _LEASE_SECONDS):
                return None
        runner = _Runner(forwarder)
        runner.task = asyncio.create_task(self._send(runner))
        self._runners[forwarder.id] = runner
        return runner

    async def _send(self, runner: _Runner) -> None:
        """Sends for one forwarder, whenever there may be something."""
        begin_background_call()
        forwarder = runner.forwarder
        outage = Repeated(log, "forwarder stopped for now", forwarder=str(forwarder.id))
        try:
            sends = self._sender(forwarder)
        except (SealingError, ValueError) as error:
            log.error(
                "secrets of a forwarder unreadable", forwarder=str(forwarder.id), error=brief(error)
            )
            await disable(self._outbound, forwarder, Disabled.SECRET_UNREADABLE)
            return
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(runner.look.wait(), sends.watch_seconds)
                runner.look.clear()
                try:
                    if not await sends.run():
                        # It is looked at again when it may try again.
                        runner.seen = None
                    outage.worked()
                except Exception as error:
                    runner.seen = None
                    outage.failed(error)
                    await asyncio.sleep(_AGAIN_SECONDS)
        finally:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_STOP_SECONDS):
                    await sends.close()

    def _sender(self, forwarder: Forwarder) -> Sends:
        if forwarder.kind is Kind.WEBHOOK:
            sender = self._outbound.webhook(forwarder)
            return WebhookDelivery(self._outbound, forwarder, self._lease, sender)
        connection, lines = syslog_connection(self._outbound, forwarder)
        return SyslogDelivery(self._outbound, forwarder, self._lease, connection, lines)

    async def _end(self, ids: Sequence[UUID]) -> None:
        """Stops sending for forwarders, and gives their leases back."""
        ended = [(known, self._runners.pop(known)) for known in ids]
        tasks = [runner.task for _, runner in ended if runner.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_STOP_SECONDS)
        for known, runner in ended:
            for gauge in (_WAITING, _OLDEST, _FAILING):
                with contextlib.suppress(KeyError):
                    gauge.remove(str(known))
            with contextlib.suppress(Exception):
                async with self._outbound.database.transaction(
                    Scope.of(runner.forwarder.tenant_id)
                ) as connection:
                    await health_store.release(connection, known, self._lease)

    async def _renew_forever(self) -> None:
        outage = Repeated(log, "leases of forwarders not renewed")
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            if not self._runners:
                continue
            try:
                async with self._outbound.database.system_transaction(
                    "a process holds leases of all tenants"
                ) as connection:
                    await health_store.renew(connection, self._lease, _LEASE_SECONDS)
                outage.worked()
            except Exception as error:
                outage.failed(error)

    async def _show_forever(self) -> None:
        """Sets the metrics of the forwarders that this process sends for."""
        outage = Repeated(log, "forwarders not measured")
        while True:
            await asyncio.sleep(_SHOW_SECONDS)
            try:
                for runner in list(self._runners.values()):
                    await self._show(runner.forwarder)
                outage.worked()
            except Exception as error:
                outage.failed(error)

    async def _show(self, forwarder: Forwarder) -> None:
        async with self._outbound.database.system_transaction(
            "a forwarder reads the chains of a subtree"
        ) as connection:
            found = await store.find(connection, Scope.of(forwarder.tenant_id), forwarder.id)
            lag = await position_store.lag(
                connection, forwarder.id, self._outbound.chains(forwarder)
            )
        if found is None or forwarder.id not in self._runners:
            return
        name = str(forwarder.id)
        now = self._outbound.clock()
        _WAITING.labels(name).set(lag.backlog)
        _OLDEST.labels(name).set(max((now - lag.oldest).total_seconds(), 0) if lag.oldest else 0)
        _FAILING.labels(name).set(found.state.failing_since is not None)


def _is_untold(forwarder: Forwarder, since: datetime) -> bool:
    state = forwarder.state
    return not state.told and state.failing_since is not None and state.failing_since <= since
