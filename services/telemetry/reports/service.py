"""What devices report: written together with whatever other devices report at the moment."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, TypeVar
from uuid import UUID

from servicekit.admission.fair import Shares
from servicekit.call import Call, Caller, waited_seconds
from servicekit.data.batcher import BEAT_SECONDS, Batcher
from servicekit.data.postgres import Database
from servicekit.errors import DomainError, exhausted
from servicekit.ids import Clock
from servicekit.observability import logs
from services.telemetry.metrics import EVENTS, QUEUE_WAIT, STATES, STATES_MENDED
from services.telemetry.reports import store
from services.telemetry.reports.clone_watch import CloneWatch
from services.telemetry.reports.events import BadEvent, NewEvent, ReadEvent
from services.telemetry.reports.queues import Queues, Turns
from services.telemetry.reports.sizes import size_of_events, size_of_state
from services.telemetry.reports.state import State, StateReport, newest_per_device
from services.telemetry.settings import TelemetrySettings
from services.telemetry.storage.service import Storage

log = logs.get(__name__)
Step = TypeVar("Step")

_STATES_PER_BATCH: Final = 500
_EVENTS_PER_BATCH: Final = 1_000
"""A batch takes some 30 ms: so long, and a batch of its own, another tenant's events wait."""
_EVENTS_PER_PIECE: Final = 1_000
_BYTES_PER_PIECE: Final = 1 << 20
_BYTES_OF_A_SMALL_BATCH: Final = 8_192
_BYTES_READ_AT_ONCE: Final = 1 << 20
_BYTES_OF_A_SMALL_STATE: Final = 4_096
_OF_THE_MOMENT: Final = timedelta(minutes=1)
"""A state that is older was waiting in a queue."""
_LEAST_QUEUES: Final = 4
_KEPT_SECONDS: Final = 5.0
"""A device that empties its queue makes its next call within this time after the one before, also
over a slow line or through a busy gateway."""
_QUICK_SECONDS: Final = 0.03
"""Nearly all old states are to be written within this time: the way through a gateway that is as
busy takes longer than that, and calls are to be answered within 200 ms."""
PATIENCE_SECONDS: Final = 4.0
"""With the 10 s that a state may then wait to be written it is less than the 15 s after which the
gateway gives up, and less than the 5 s that a service gives its calls when it stops."""
_BYTES_THAT_WAIT: Final = 64 << 10
"""A larger state is not kept in memory until there is a place."""
_CONTACT_EVERY: Final = timedelta(minutes=1)
_MOST_CONTACTS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a batch of events; every event is in exactly one of the counts."""

    accepted: int
    duplicates: int
    quarantined: int


@dataclass(slots=True)
class _Piece:
    """A part of one device's batch: small enough to share a transaction with other devices."""

    device_id: UUID
    tenant_id: UUID
    good: list[NewEvent] = field(default_factory=list)
    bad: list[BadEvent] = field(default_factory=list)
    size: int = 0

    def add(self, event: ReadEvent) -> None:
        if isinstance(event, NewEvent):
            self.good.append(event)
            self.size += len(event.payload or "")
        else:
            self.bad.append(event)
            self.size += len(event.content)

    @property
    def count(self) -> int:
        return len(self.good) + len(self.bad)

    @property
    def full(self) -> bool:
        return self.count >= _EVENTS_PER_PIECE or self.size >= _BYTES_PER_PIECE


class Reports:
    """Takes states and events; acknowledges them when they are committed.

    Args:
        stored: is called when events were stored.
        storage: who may store more.
        clones: sees every state that was stored.
    """

    def __init__(
        self,
        database: Database,
        settings: TelemetrySettings,
        clock: Clock,
        stored: Callable[[], None],
        storage: Storage,
        clones: CloneWatch,
    ) -> None:
        self._database = database
        self._storage = storage
        self._state_lane = database.system_lane("a batch spans tenants")
        self._event_lane = database.system_lane("a batch spans tenants")
        self._clock = clock
        self._stored = stored
        self._bytes = Shares(settings.body_budget_bytes)
        self._turns = Turns()
        self._queues = Queues(
            _LEAST_QUEUES,
            settings.emptied_queues,
            kept=_KEPT_SECONDS,
            quick=_QUICK_SECONDS,
            waiting=settings.waiting_queues,
            patience=PATIENCE_SECONDS,
        )
        self._contacts: dict[UUID, datetime] = {}
        self._clones = clones
        self.states: Batcher[StateReport, None] = Batcher(
            "states",
            self._write_states,
            max_batch=_STATES_PER_BATCH,
            max_waiting=settings.waiting_states,
            weigh=_weigh_state,
            tenant=_tenant,
            beat=BEAT_SECONDS,
        )
        self.events: Batcher[_Piece, int] = Batcher(
            "events",
            self._write_events,
            max_batch=_EVENTS_PER_BATCH,
            max_waiting=settings.waiting_events,
            weigh=_weigh_piece,
            tenant=_tenant,
            beat=BEAT_SECONDS,
        )

    def require_place(self, call: Call, size: int, look: Callable[[], datetime | None]) -> None:
        """Refuses, before anything is done for it, an old state that could not even wait.

        Args:
            call: the device's.
            size: bytes of the state's body.
            look: answers of when the state is, if that is to be seen; asked only when it matters.

        Raises:
            DomainError: RESOURCE_EXHAUSTED.
        """
        caller = call.caller
        tenant = caller.tenant_id
        if self._queues.may_enter(tenant, caller.id, time.monotonic()):
            return
        if self._may_wait(tenant, size):
            return
        observed_at = look()
        if observed_at is not None and _is_old(observed_at, self._clock()):
            raise _too_many_queues()

    async def report_state(self, call: Call, size: int, state: State) -> None:
        """Stores the state of the calling device, unless a newer one is stored.

        Args:
            call: the device's.
            size: bytes of the state's body.
            state: what it says.

        Raises:
            DomainError: UNAVAILABLE or RESOURCE_EXHAUSTED; then nothing is stored for sure.
        """
        caller = call.caller
        self._storage.require_states(caller)
        now = self._clock()
        report = StateReport(UUID(caller.id), UUID(caller.tenant_id), state, now)
        if _is_old(state.observed_at, now):
            await self._report_of_queue(caller, size, report)
        else:
            await self.states.submit(report)
            # A queue ends with how the device is at the moment.
            self._queues.end(caller.id)
        if state.sanitised:
            # Never what was in them. A fleet may do so with every state, so it is no line of info.
            log.debug("state sanitised", device_id=caller.id, fields=sorted(state.sanitised))
            for name in state.sanitised:
                STATES_MENDED.labels(name).inc()

    async def _report_of_queue(self, caller: Caller, size: int, report: StateReport) -> None:
        tenant = caller.tenant_id
        await self._take_place(caller, size)
        begun = time.monotonic()
        try:
            await self.states.submit(report)
        except BaseException:
            self._queues.leave(tenant)
            raise
        ended = time.monotonic()
        self._queues.pause(tenant, caller.id, ended, ended - begun)

    async def _take_place(self, caller: Caller, size: int) -> None:
        """Takes a place for an old state, at once or when one becomes free."""
        tenant, came = caller.tenant_id, time.monotonic()
        if self._queues.enter(tenant, caller.id, came):
            return
        if not self._may_wait(tenant, size):
            raise _too_many_queues()
        has_place = False
        try:
            has_place = await self._queues.wait(tenant, came)
        finally:
            waited = time.monotonic() - came
            waited_seconds.set(waited)
            QUEUE_WAIT.labels("place" if has_place else "none").observe(waited)
        if not has_place:
            raise _too_many_queues()

    def _may_wait(self, tenant: str, size: int) -> bool:
        return size <= _BYTES_THAT_WAIT and self._queues.may_wait(tenant)

    async def report_events(
        self,
        call: Call,
        size: int,
        read: Iterable[list[ReadEvent]],
        check: Iterable[object] = (),
    ) -> Outcome:
        """Stores a batch of the calling device, of `size` bytes.

        A large batch is stored in several transactions, so that it does not hold up other
        devices. What is stored of it when one of them fails is a duplicate in its next attempt.

        Args:
            call: the device's.
            size: bytes of the batch.
            read: gives the batch by slices. All of a small one are read before any is stored; of
                a large one, of which the events take more room than its text, as they are stored.
            check: comes to its end, in steps, if `read` will.

        Raises:
            DomainError: what `read` and `check` raise, before anything is stored; UNAVAILABLE or
                RESOURCE_EXHAUSTED.
        """
        caller = call.caller
        if size > _BYTES_OF_A_SMALL_BATCH:
            await self._turns.wait(caller.tenant_id)
        if size > _BYTES_READ_AT_ONCE:
            async for _ in self._slowly(caller, check):
                pass
        else:
            read = [[event async for events in self._slowly(caller, read) for event in events]]
        piece = _Piece(UUID(caller.id), UUID(caller.tenant_id))
        accepted = good = bad = 0
        async for events in self._slowly(caller, read):
            for event in events:
                piece.add(event)
                if piece.full:
                    accepted += await self.events.submit(piece, goes_on=good + bad > 0)
                    good += len(piece.good)
                    bad += len(piece.bad)
                    piece = _Piece(piece.device_id, piece.tenant_id)
        if piece.count:
            accepted += await self.events.submit(piece, goes_on=good + bad > 0)
            good += len(piece.good)
            bad += len(piece.bad)
        outcome = Outcome(accepted, good - accepted, bad)
        EVENTS.labels("accepted").inc(outcome.accepted)
        EVENTS.labels("duplicate").inc(outcome.duplicates)
        EVENTS.labels("quarantined").inc(outcome.quarantined)
        return outcome

    async def _slowly(self, caller: Caller, steps: Iterable[Step]) -> AsyncIterator[Step]:
        """The steps, with a wait for the caller's turn between two of them."""
        begun = False
        for step in steps:
            if begun:
                await self._turns.wait(caller.tenant_id)
            begun = True
            yield step

    @contextmanager
    def room_for_events(self, caller: Caller, size: int) -> Iterator[None]:
        """As `room_for_body`, for events: refused also when too many wait, or are stored today."""
        self._storage.require_events(caller)
        self.events.require_room(caller.tenant_id)
        with self.room_for_body(caller, size):
            yield

    @contextmanager
    def room_for_body(self, caller: Caller, size: int) -> Iterator[None]:
        """Holds the memory that a large body needs while it is worked on.

        Raises:
            DomainError: RESOURCE_EXHAUSTED when too much is being worked on.
        """
        tenant = caller.tenant_id
        if not self._bytes.take(tenant, size):
            raise exhausted("TOO_MUCH_AT_ONCE", "too many large batches at once; send it later")
        try:
            yield
        finally:
            self._bytes.give_back(tenant, size)

    async def _write_states(self, reports: Sequence[StateReport]) -> Sequence[None]:
        newest = newest_per_device(reports)
        older = await store.store_states(self._state_lane, newest)
        if older:
            await store.store_contacts(
                self._state_lane, {(r.device_id, r.tenant_id) for r in older}, self._clock()
            )
        outdated = {report.device_id for report in older}
        for report in newest:
            self._contacts[report.device_id] = report.received_at
            if report.device_id not in outdated:
                self._storage.note_state(
                    report.device_id, report.tenant_id, size_of_state(report.state)
                )
        await self._clones.see(r for r in newest if r.device_id not in outdated)
        STATES.labels("stored").inc(len(newest) - len(older))
        STATES.labels("outdated").inc(len(reports) - len(newest) + len(older))
        return [None] * len(reports)

    async def _write_events(self, pieces: Sequence[_Piece]) -> Sequence[int]:
        now = self._clock()
        contacts = self._new_contacts(pieces, now)
        good = [(p.device_id, p.tenant_id, e) for p in pieces for e in p.good]
        bad = [(p.device_id, p.tenant_id, e) for p in pieces for e in p.bad]
        quarantined: dict[UUID, int] = {}
        if bad:
            async with self._database.system_transaction("a batch spans tenants") as connection:
                stored = await store.store_events(connection, good, contacts, now)
                quarantined = await store.quarantine(connection, bad, now)
                await self._storage.trim_quarantines(connection, quarantined)
        else:
            stored = await store.store_events(self._event_lane, good, contacts, now)
        self._contacts.update((device_id, now) for device_id, _ in contacts)
        if quarantined:
            tenants = {device_id: tenant_id for device_id, tenant_id, _ in bad}
            self._storage.note_quarantined(tenants, quarantined)
        if not stored:
            return [0] * len(pieces)
        self._stored()
        whole = len(stored) == len(good)
        counts = []
        for piece in pieces:
            new = piece.good if whole else [e for e in piece.good if e.id in stored]
            counts.append(len(new))
            if new:
                self._storage.note_events(piece.device_id, piece.tenant_id, size_of_events(new))
        return counts

    def _new_contacts(self, pieces: Iterable[_Piece], now: datetime) -> set[tuple[UUID, UUID]]:
        """The devices (each with its tenant) of which the last contact was not just noted."""
        if len(self._contacts) > _MOST_CONTACTS:
            self._contacts.clear()
        since = now - _CONTACT_EVERY
        devices = {(piece.device_id, piece.tenant_id) for piece in pieces}
        return {
            (device_id, tenant_id)
            for device_id, tenant_id in devices
            if (noted := self._contacts.get(device_id)) is None or noted < since
        }


def _is_old(observed_at: datetime, now: datetime) -> bool:
    return observed_at < now - _OF_THE_MOMENT


def _too_many_queues() -> DomainError:
    return exhausted(
        "TOO_MANY_QUEUES", "many devices catch up at once; send it later", retry_after=4
    )


def _tenant(item: StateReport | _Piece) -> str:
    return str(item.tenant_id)


def _weigh_state(report: StateReport) -> int:
    apps = report.state.installed_apps
    return 1 + (len(apps) // _BYTES_OF_A_SMALL_STATE if apps else 0)


def _weigh_piece(piece: _Piece) -> int:
    """Its events, or as many of a kibibyte as it is large: a single event may have many."""
    return max(piece.count, min(piece.size >> 10, _EVENTS_PER_PIECE))
