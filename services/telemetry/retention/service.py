"""How long events are kept: what tenants say of it, and the work that it makes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final, TypeVar
from uuid import UUID

from contract.events.telemetry import EventRetentionUpdated, RetentionDays
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database
from servicekit.etags import check_etag, etag_of
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from servicekit.peers.tenants import TenantDirectory
from services.telemetry.metrics import EVENTS_EXPIRED, EVENTS_UNTIL
from services.telemetry.retention import store

log = logs.get(__name__)

T = TypeVar("T")

_AHEAD: Final = timedelta(days=14)
_EVERY_SECONDS: Final = 3_600.0
_AGAIN_SECONDS: Final = 60.0
_ROWS: Final = 2_000
"""Rows that a step looks at: some tens of milliseconds, in a transaction of its own."""
_PAUSE_SECONDS: Final = 0.05
"""Between two steps, so that what devices send goes before."""
_RATE: Final = 7
"""Times as fast as the service runs, at most, does what is kept no longer follow the clock."""
_SUSPICIOUS: Final = timedelta(days=1)
_MOST_WEEKS_AHEAD: Final = timedelta(days=400)
"""How far behind the clock it may be, and weeks are still made for the clock's time."""


@dataclass(frozen=True, slots=True)
class EventRetention:
    """How many days an organisation keeps its events; `own_days` when it has said so itself."""

    tenant_id: UUID
    own_days: int | None
    default_days: int

    @property
    def days(self) -> int:
        """What counts."""
        return self.default_days if self.own_days is None else self.own_days

    @property
    def etag(self) -> str:
        """Changes with what the organisation says."""
        return etag_of(self.tenant_id, self.own_days)


class Retention:
    """Lets administrators see and say how long their events are kept."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        default_days: int,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._default_days = default_days
        self._clock = clock

    async def get(self, call: Call, org_id: UUID | None) -> EventRetention:
        """What counts for an organisation of the caller's subtree; for the caller's own without.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT when it is no organisation.
        """
        org = await self._tenants.require_org(call.caller, org_id or UUID(call.caller.tenant_id))
        scope = await self._tenants.query_scope(call.caller, org.id)
        async with self._database.transaction(scope) as connection:
            days = await store.event_days(connection, org.id)
        return EventRetention(org.id, days, self._default_days)

    async def update(self, call: Call, org_id: UUID | None, days: int | None) -> EventRetention:
        """Says how many days an organisation keeps its events; `None` for the default again.

        What changes nothing writes nothing.

        Raises:
            DomainError: as `get`.
        """
        org = await self._tenants.require_org(call.caller, org_id or UUID(call.caller.tenant_id))
        scope = await self._tenants.query_scope(call.caller, org.id)
        async with self._database.transaction(scope) as connection:
            before = await store.event_days(connection, org.id, for_update=True)
            check_etag(EventRetention(org.id, before, self._default_days).etag)
            if days == before:
                return EventRetention(org.id, days, self._default_days)
            await store.store_event_days(connection, org.id, days, self._clock())
            await self._outbox.append(
                connection,
                CloudEvent(
                    EventRetentionUpdated(
                        id=org.id, before=RetentionDays(days=before), after=RetentionDays(days=days)
                    ),
                    org.id,
                ),
            )
        return EventRetention(org.id, days, self._default_days)


class Maintenance:
    """Makes partitions ahead of time, and removes what is kept no longer.

    Everything is done in small steps that give way to devices: a step that does not get a lock at
    once is left for later. Several processes may do it at the same time.

    The clock is not trusted at once: while the service runs for a day, at most a week more is
    removed. A clock that is years ahead at a start, until somebody sets it, removes next to
    nothing; an installation that was off for a year has caught up after 52 days.
    """

    def __init__(self, database: Database, default_days: int, clock: Clock) -> None:
        self._database = database
        self._default_days = default_days
        self._clock = clock

    async def run(self) -> None:
        """Does it every hour, for as long as the service lives; sooner again when it failed."""
        outage = Repeated(log, "partition maintenance postponed")
        loop = asyncio.get_running_loop()
        seen = loop.time()
        while True:
            try:
                ran, seen = loop.time() - seen, loop.time()
                await self.once(timedelta(seconds=ran))
                outage.worked()
                await asyncio.sleep(_EVERY_SECONDS)
            except Exception as error:
                outage.failed(error)
                await asyncio.sleep(_AGAIN_SECONDS)

    async def once(self, ran: timedelta) -> None:
        """All that there is to do now. What fails does not keep the rest from being done.

        Args:
            ran: how long the service has run since it was done before.
        """
        moment = await self._moment(ran)
        failures: list[Exception] = []
        for work in (
            self._extend,
            self._drop,
            self._expire,
            self._sweep,
            self._sweep_quarantine,
        ):
            try:
                await work(moment)
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]

    async def _moment(self, ran: timedelta) -> datetime:
        moment = self._clock()

        async def reach(connection: Connection) -> datetime:
            return await store.retention_moment(connection, moment, _RATE * ran)

        reached = await self._step(reach)
        if moment - reached > _SUSPICIOUS:
            log.warning(
                "the clock is far ahead of when events were removed last; unless the service was"
                " off for as long, it is wrong. Removing follows it slowly",
                clock=moment.isoformat(),
                removing_as_of=reached.isoformat(),
            )
        return reached

    async def _extend(self, moment: datetime) -> None:
        until = (min(self._clock(), moment + _MOST_WEEKS_AHEAD) + _AHEAD).date()

        async def extend(connection: Connection) -> date | None:
            return await store.extend_events(connection, until)

        while (end := await self._step(extend)) is not None:
            EVENTS_UNTIL.set(datetime.combine(end, time(), UTC).timestamp())
            if end >= until:
                return

    async def _drop(self, moment: datetime) -> None:
        async def drop(connection: Connection) -> str | None:
            return await store.drop_events(connection, moment, self._default_days)

        while (name := await self._step(drop)) is not None:
            log.info("week of events dropped", partition=name)

    async def _expire(self, moment: datetime) -> None:
        async def expire(connection: Connection) -> int:
            return await store.expire_events(connection, moment, self._default_days, _ROWS)

        while deleted := await self._step(expire):
            EVENTS_EXPIRED.inc(deleted)

    async def _sweep(self, moment: datetime) -> None:
        failures: list[Exception] = []
        for partition in await self._step(store.swept_partitions):
            try:
                await self._sweep_partition(partition, moment)
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]

    async def _sweep_partition(self, partition: str, moment: datetime) -> None:
        at: store.Sweep | None = store.Sweep()

        async def sweep(connection: Connection) -> tuple[store.Sweep | None, int]:
            assert at is not None
            return await store.sweep_events(
                connection, partition, at, moment, self._default_days, _ROWS
            )

        while at is not None:
            at, deleted = await self._step(sweep)
            EVENTS_EXPIRED.inc(deleted)

    async def _sweep_quarantine(self, moment: datetime) -> None:
        at: UUID | None = UUID(int=0)

        async def sweep(connection: Connection) -> tuple[UUID | None, int]:
            assert at is not None
            return await store.sweep_quarantine(connection, at, moment, self._default_days, _ROWS)

        while at is not None:
            at, _ = await self._step(sweep)

    async def _step(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        await asyncio.sleep(_PAUSE_SECONDS)
        async with self._database.system_transaction("old rows of all tenants go") as connection:
            return await work(connection)
