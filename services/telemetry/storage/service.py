"""Who may store more today: budgets of devices and organisations, counted beside the writing.

What is stored is added up in memory, which costs no call anything, and told to the database when
it has come to a part of a budget worth telling. There the parts of all processes meet, and are
kept over restarts. A device may so store a little more than its budget: a sixty-fourth for each
process, and the batch that is on its way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, timedelta
from math import inf
from typing import Final
from uuid import UUID

from servicekit.call import Caller
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.ids import Clock
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from services.telemetry.metrics import QUARANTINE_DROPPED, STORAGE_REFUSED, STORAGE_USED, STORED
from services.telemetry.settings import TelemetrySettings
from services.telemetry.storage import store
from services.telemetry.storage.domain import What, day_of, refused
from services.telemetry.storage.store import Use

log = logs.get(__name__)

QUARANTINE_PER_DEVICE: Final = 100_000
"""The events of a device that are kept in quarantine: its latest; as many as one body may have."""
_STORED_EVENTS: Final = STORED.labels("events")
_STORED_STATES: Final = STORED.labels("states")
_STORED_IN_QUARANTINE: Final = STORED.labels("quarantine")
_TICK_SECONDS: Final = 10.0
_AGAIN_SECONDS: Final = 1.0
_PARTS: Final = {
    What.DEVICE_EVENTS: 64,
    What.DEVICE_STATES: 64,
    What.TENANT_EVENTS: 1_024,
    What.TENANT_STATES: 1_024,
}
"""What is stored is told when it comes to such a part of the budget."""
_QUARANTINE_PARTS: Final = 64
_KEPT: Final = timedelta(days=7)
_COUNTED_FOR: Final = 3_600.0
_MOST_SUBJECTS: Final = 1_000_000
_MOST_TRIMMED: Final = 100
_OF_EVENTS: Final = (What.DEVICE_EVENTS, What.TENANT_EVENTS)
_OF_STATES: Final = (What.DEVICE_STATES, What.TENANT_STATES)


class _Account:
    """What one kind of subject stored today and nobody was told of yet."""

    __slots__ = ("limit", "untold", "worth")

    def __init__(self, what: What, limit: int) -> None:
        self.limit = limit
        self.worth = max(limit // _PARTS[what], 1)
        self.untold: dict[UUID, int] = {}

    def add(self, subject: UUID, size: int) -> bool:
        """Counts; answers whether it has come to something worth telling."""
        sum_ = self.untold.get(subject, 0) + size
        self.untold[subject] = sum_
        return sum_ >= self.worth


class Storage:
    """Counts what is stored, and refuses more to those who have used their budget."""

    def __init__(self, database: Database, settings: TelemetrySettings, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._accounts = {
            What.DEVICE_EVENTS: _Account(What.DEVICE_EVENTS, settings.device_event_bytes),
            What.DEVICE_STATES: _Account(What.DEVICE_STATES, settings.device_state_bytes),
            What.TENANT_EVENTS: _Account(What.TENANT_EVENTS, settings.tenant_event_bytes),
            What.TENANT_STATES: _Account(What.TENANT_STATES, settings.tenant_state_bytes),
        }
        self._per_device = {
            What.TENANT_EVENTS: settings.tenant_event_bytes_per_device,
            What.TENANT_STATES: settings.tenant_state_bytes_per_device,
        }
        self._device_quarantine = settings.device_quarantine_bytes
        self._tenant_quarantine = settings.tenant_quarantine_bytes
        self._quarantined: dict[UUID, int] = {}
        self._day: date = day_of(clock())
        self._due: dict[tuple[What, UUID], UUID] = {}
        """What is worth telling, with the tenant that it is about."""
        self._totals: dict[tuple[What, UUID], Use] = {}
        """What is known of subjects that were told of."""
        self._full: dict[What, dict[str, int]] = {what: {} for what in What}
        """Who has used their budget, with how large it was."""
        self._shares = dict.fromkeys(What, 0.0)
        """The largest share of a budget that is used."""
        self._devices: dict[UUID, tuple[int, float]] = {}
        """How many devices an organisation has, and when they were counted."""
        self._noted = asyncio.Event()
        self._urgent = asyncio.Event()

    def require_events(self, caller: Caller) -> None:
        """Refuses events of a device that, or whose organisation, has used its budget.

        Raises:
            DomainError: RESOURCE_EXHAUSTED.
        """
        self._require(caller, *_OF_EVENTS)

    def require_states(self, caller: Caller) -> None:
        """As `require_events`, for a state."""
        self._require(caller, *_OF_STATES)

    def _require(self, caller: Caller, device: What, tenant: What) -> None:
        for what, subject in ((device, caller.id), (tenant, caller.tenant_id)):
            if (limit := self._full[what].get(subject)) is not None:
                STORAGE_REFUSED.labels(what.value).inc()
                self._noted.set()  # the next day begins also when nothing is stored
                raise refused(what, limit, self._clock())

    def note_events(self, device_id: UUID, tenant_id: UUID, size: int) -> None:
        """Counts events that were stored."""
        self._note(*_OF_EVENTS, device_id, tenant_id, size)
        _STORED_EVENTS.inc(size)

    def note_state(self, device_id: UUID, tenant_id: UUID, size: int) -> None:
        """Counts a state that was stored."""
        self._note(*_OF_STATES, device_id, tenant_id, size)
        _STORED_STATES.inc(size)

    async def trim_quarantines(self, connection: Connection, devices: Collection[UUID]) -> None:
        """Deletes the oldest of what devices have in quarantine, where it is too much."""
        most = self._device_quarantine
        for device_id, size, events in await store.quarantines(connection, devices):
            if size > most or events > QUARANTINE_PER_DEVICE:
                QUARANTINE_DROPPED.inc(
                    await store.trim_device(
                        connection,
                        device_id,
                        size=size,
                        most_bytes=most,
                        most_events=QUARANTINE_PER_DEVICE,
                    )
                )

    def note_quarantined(self, tenants: Mapping[UUID, UUID], sizes: Mapping[UUID, int]) -> None:
        """Counts what devices have got into quarantine: as events, and for its bounds.

        Args:
            tenants: the organisation of each device.
            sizes: bytes by device.
        """
        for device_id, size in sizes.items():
            tenant_id = tenants[device_id]
            self.note_events(device_id, tenant_id, size)
            _STORED_IN_QUARANTINE.inc(size)
            self._quarantined[tenant_id] = self._quarantined.get(tenant_id, 0) + size

    def _note(
        self, device: What, tenant: What, device_id: UUID, tenant_id: UUID, size: int
    ) -> None:
        for what, subject in ((device, device_id), (tenant, tenant_id)):
            if self._accounts[what].add(subject, size):
                self._due[what, subject] = tenant_id
                self._urgent.set()
        self._noted.set()

    async def load(self) -> None:
        """Goes on where the processes before were today."""
        async with self._database.system_transaction(
            "uses of all tenants are counted"
        ) as connection:
            await store.forget_uses(connection, self._day - _KEPT)
            known = await store.largest_uses(connection, self._day)
            await self._learn(connection, known + await store.full_uses(connection, self._day))

    async def run(self) -> None:
        """Tells the database what was stored, while something is."""
        outage = Repeated(log, "what devices store cannot be counted at the moment")
        try:
            while True:
                await self._noted.wait()
                self._noted.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_TICK_SECONDS):
                        await self._urgent.wait()
                self._urgent.clear()
                try:
                    await self.tell()
                    outage.worked()
                except Exception as error:
                    outage.failed(error)
                    self._noted.set()
                    self._urgent.set()
                    await asyncio.sleep(_AGAIN_SECONDS)
        finally:
            for what in (What.TENANT_EVENTS, What.TENANT_STATES):
                self._due |= {(what, tenant): tenant for tenant in self._accounts[what].untold}
            with contextlib.suppress(Exception):
                await self.tell()

    async def tell(self) -> None:
        """Tells what is worth it, and learns what other processes told."""
        if self._begin_day():
            await self.load()
        due, self._due = self._due, {}
        told: list[Use] = []
        try:
            async with self._database.system_transaction(
                "uses of all tenants are counted"
            ) as connection:
                await self._count_devices(connection, due)
                told = [
                    Use(what, subject, tenant, size, self._limit(what, subject))
                    for (what, subject), tenant in due.items()
                    if (size := self._accounts[what].untold.get(subject, 0))
                ]
                known = await store.add_uses(connection, self._day, told) if told else []
                known += await store.full_uses(connection, self._day)
                await self._learn(connection, known)
        except BaseException:
            self._due = due | self._due
            raise
        for use in told:
            self._forget(use)
        await self._trim_quarantines()

    def _begin_day(self) -> bool:
        """Begins anew if it is another day; answers whether it is."""
        day = day_of(self._clock())
        begins = day != self._day
        subjects = max(len(account.untold) for account in self._accounts.values())
        if begins or subjects > _MOST_SUBJECTS:
            self._due.clear()
            for account in self._accounts.values():
                account.untold.clear()
        if begins:
            self._day = day
            self._totals.clear()
            self._shares = dict.fromkeys(What, 0.0)
            for full in self._full.values():
                full.clear()
        return begins

    def _forget(self, use: Use) -> None:
        untold = self._accounts[use.what].untold
        left = untold.get(use.subject, 0) - use.size
        if left > 0:
            untold[use.subject] = left
        else:
            untold.pop(use.subject, None)

    async def _learn(self, connection: Connection, uses: Sequence[Use]) -> None:
        """Notes what others told, too. How large a budget is, this process's settings say."""
        for use in uses:
            self._totals[use.what, use.subject] = use
        await self._count_devices(connection, [(use.what, use.subject) for use in uses])
        for use in uses:
            what, subject, limit = use.what, str(use.subject), self._limit(use.what, use.subject)
            self._shares[what] = max(self._shares[what], use.size / limit)
            if use.size < limit:
                self._full[what].pop(subject, None)
            elif subject not in self._full[what]:
                self._full[what][subject] = limit
                log.warning(
                    "storage budget used",
                    what=what.value,
                    subject=subject,
                    tenant_id=str(use.tenant_id),
                    bytes=use.size,
                    limit=limit,
                )
        for what, share in self._shares.items():
            STORAGE_USED.labels(what.value).set(share)

    def _limit(self, what: What, subject: UUID) -> int:
        limit = self._accounts[what].limit
        if (each := self._per_device.get(what)) is None:
            return limit
        devices, _ = self._devices.get(subject, (0, 0.0))
        return max(limit, devices * each)

    async def _count_devices(
        self, connection: Connection, subjects: Iterable[tuple[What, UUID]]
    ) -> None:
        """Counts the devices of organisations for which it matters, once an hour."""
        now = asyncio.get_running_loop().time()
        wanted = {
            subject
            for what, subject in subjects
            if what in self._per_device
            and self._known(what, subject) >= self._accounts[what].limit
            and self._devices.get(subject, (0, -inf))[1] < now - _COUNTED_FOR
        }
        if wanted:
            counts = await store.device_counts(connection, wanted)
            self._devices |= {tenant: (counts.get(tenant, 0), now) for tenant in wanted}

    def _known(self, what: What, subject: UUID) -> int:
        use = self._totals.get((what, subject))
        return (0 if use is None else use.size) + self._accounts[what].untold.get(subject, 0)

    async def _trim_quarantines(self) -> None:
        """Keeps the quarantine of an organisation within its bound: the largest device's first."""
        worth = self._tenant_quarantine // _QUARANTINE_PARTS
        for tenant in [tenant for tenant, size in self._quarantined.items() if size >= worth]:
            del self._quarantined[tenant]
            for _ in range(_MOST_TRIMMED):
                async with self._database.transaction(Scope.of(tenant)) as connection:
                    excess = await store.quarantine_of(connection, tenant) - self._tenant_quarantine
                    largest = await store.largest_quarantine(connection, tenant)
                    if excess <= 0 or largest is None:
                        break
                    device_id, size, events = largest
                    QUARANTINE_DROPPED.inc(
                        await store.trim_device(
                            connection,
                            device_id,
                            size=size,
                            most_bytes=max(size - excess, size // 2),
                            most_events=events,
                        )
                    )
