"""Schedules: reports that are made by themselves, and what of reports is kept."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Literal, cast
from uuid import UUID

from contract.events.audit import (
    ReportScheduleCreated,
    ReportScheduleDeleted,
    ReportScheduleSnapshot,
    ReportScheduleUpdated,
)
from servicekit.call import Call, begin_background_call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import failed_precondition, invalid_field, not_found
from servicekit.etags import check_etag
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.observability.logs import Repeated, brief
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import Page
from services.audit.notices.domain import REPORTS
from services.audit.notices.service import Notices
from services.audit.reports import schedule_store, store
from services.audit.reports.calendar import checked_day, next_run, period_before, zone_of
from services.audit.reports.domain import (
    DEFAULT_KEEP,
    MOST_MISSED,
    MOST_SCHEDULES,
    PERIOD,
    Parameters,
    Report,
    Schedule,
    checked_formats,
)
from services.audit.reports.kinds import kind_of
from services.audit.reports.letters import not_begun
from services.audit.reports.service import Reports, Wanted, check_scopes

log = logs.get(__name__)

_LOOK_SECONDS: Final = 15.0
_SWEEP_SECONDS: Final = 300.0
_MOST: Final = 50
_AGAIN: Final = timedelta(minutes=5)
_DEFAULT_HOUR: Final = 3
_WHO_ENDS_IT: Final = ("Admin", "Owner")
"""Who is told of a schedule that names nobody, and cannot begin its reports."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a request says of a schedule; `None` and empty is not given."""

    parameters: Parameters | None
    formats: tuple[str, ...]
    every: str
    on_day: int
    hour: int | None
    time_zone: str
    keep: int
    enabled: bool | None
    notify: tuple[str, ...] | None = None


def snapshot(schedule: Schedule) -> ReportScheduleSnapshot:
    """What entries of the log say of a schedule."""
    return ReportScheduleSnapshot(
        kind=schedule.kind,
        parameters=schedule.parameters.given(),
        formats=schedule.formats,
        every=cast(Literal["day", "week", "month"], schedule.every),
        on=schedule.on_day,
        hour=schedule.hour,
        time_zone=schedule.time_zone,
        keep=schedule.keep,
        enabled=schedule.enabled,
        notify=schedule.notify,
    )


class Schedules:
    """The schedules of tenants.

    Args:
        database: the service's.
        outbox: takes events.
        tenants: the tree.
        reports: begins reports.
        clock: the time.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        reports: Reports,
        notices: Notices,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._reports = reports
        self._notices = notices
        self._clock = clock

    async def list_schedules(
        self, call: Call, org_id: UUID | None, after: UUID | None, limit: int
    ) -> Page[Schedule, UUID]:
        """The schedules of the caller's subtree, or of a tenant in it and those below it.

        Raises:
            DomainError: NOT_FOUND for a tenant that is not in the subtree.
        """
        scope = await self._tenants.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            return await schedule_store.list_schedules(connection, scope, after, limit)

    async def get(self, call: Call, schedule_id: UUID) -> Schedule:
        """One schedule.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            return await self._found(connection, scope, schedule_id)

    async def create(self, call: Call, org_id: UUID | None, kind: str, plan: Plan) -> Schedule:
        """Adds a schedule.

        Raises:
            DomainError: NOT_FOUND for a tenant that is not in the subtree; INVALID_ARGUMENT with
                the field; PERMISSION_DENIED when the API token may not read what its reports say;
                FAILED_PRECONDITION when there are too many.
        """
        tenant_id = org_id or UUID(call.caller.tenant_id)
        await self._tenants.require(call.caller, tenant_id, to_add=True)
        wanted = kind_of(kind)
        check_scopes(call, wanted)
        zone_of(plan.time_zone or "UTC")
        at = self._clock()
        schedule = Schedule(
            id=new_id(),
            tenant_id=tenant_id,
            kind=kind,
            parameters=_parameters(kind, plan.parameters or Parameters()),
            formats=checked_formats(plan.formats),
            every=plan.every,
            on_day=checked_day(plan.every, plan.on_day),
            hour=_DEFAULT_HOUR if plan.hour is None else plan.hour,
            time_zone=plan.time_zone or "UTC",
            keep=plan.keep or DEFAULT_KEEP,
            enabled=plan.enabled is not False,
            created_at=at,
            created_by=call.caller.name,
            updated_at=at,
            notify=plan.notify or (),
        )
        schedule = self._timed(schedule)
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            await store.lock_tenant(connection, tenant_id)
            if await schedule_store.count(connection, tenant_id) >= MOST_SCHEDULES:
                raise failed_precondition(
                    "TOO_MANY_SCHEDULES",
                    f"a tenant has at most {MOST_SCHEDULES} schedules; delete one",
                )
            await schedule_store.insert(connection, schedule)
            event = ReportScheduleCreated(id=schedule.id, after=snapshot(schedule))
            await self._outbox.append(connection, CloudEvent(event, tenant_id))
        return schedule

    async def update(self, call: Call, schedule_id: UUID, plan: Plan) -> Schedule:
        """Changes a schedule.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT with the field; ABORTED when its etag is
                another.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            before = await self._found(connection, scope, schedule_id, for_update=True)
            check_etag(before.etag)
            check_scopes(call, kind_of(before.kind))
            after = _changed(before, plan)
            if after == before:
                return before
            after = replace(after, revision=before.revision + 1, updated_at=self._clock())
            if _rhythm(after) != _rhythm(before):
                after = self._timed(after)
            await schedule_store.update(connection, after)
            event = ReportScheduleUpdated(
                id=after.id, before=snapshot(before), after=snapshot(after)
            )
            await self._outbox.append(connection, CloudEvent(event, after.tenant_id))
        return after

    async def delete(self, call: Call, schedule_id: UUID) -> None:
        """Removes a schedule; its reports stay.

        Raises:
            DomainError: NOT_FOUND; ABORTED when its etag is another.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            before = await self._found(connection, scope, schedule_id, for_update=True)
            check_etag(before.etag)
            await schedule_store.delete(connection, before)
            event = ReportScheduleDeleted(id=schedule_id, before=snapshot(before))
            await self._outbox.append(connection, CloudEvent(event, before.tenant_id))

    async def _found(
        self, connection: Connection, scope: Scope, schedule_id: UUID, *, for_update: bool = False
    ) -> Schedule:
        found = await schedule_store.find(connection, scope, schedule_id, for_update=for_update)
        if found is None:
            raise not_found("report schedule", schedule_id)
        return found

    def _timed(self, schedule: Schedule) -> Schedule:
        """The schedule with the time of its next run."""
        at = next_run(schedule, self._clock()) if schedule.enabled else None
        return replace(schedule, next_run_at=at, not_before=None)

    async def run(self) -> None:
        """Begins the reports whose time has come, for as long as the service lives."""
        outage = Repeated(log, "schedules of reports not looked at")
        loop = asyncio.get_running_loop()
        sweep_at = 0.0
        while True:
            begin_background_call()
            try:
                if self._tenants.follower.synced:
                    await self._begin_due()
                if loop.time() >= sweep_at:
                    await self._sweep()
                    sweep_at = loop.time() + _SWEEP_SECONDS
                outage.worked()
            except Exception as error:
                outage.failed(error)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _begin_due(self) -> None:
        async with self._database.system_transaction(
            "schedules of all tenants are looked at"
        ) as connection:
            found = await schedule_store.due(connection, self._clock(), _MOST)
        for tenant_id, schedule_id in found:
            try:
                await self._begin(tenant_id, schedule_id)
            except Exception as error:
                # One that is broken keeps no other one waiting.
                log.warning(
                    "scheduled report not begun", schedule=str(schedule_id), error=brief(error)
                )
                await self._put_off(tenant_id, schedule_id, error)

    async def _begin(self, tenant_id: UUID, schedule_id: UUID) -> None:
        """Begins the next report of a schedule; what is refused stays due."""
        at = self._clock()
        node = self._tenants.known(tenant_id)
        left = await self._reports.left()
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            await store.lock_tenant(connection, tenant_id)
            schedule = await schedule_store.lock_due(connection, tenant_id, schedule_id, at)
            if schedule is None:
                return
            refused, somebody_can_end_it = "", False
            if node is None:
                refused = "the organisation is not known yet"
            elif node.status != "active":
                refused = "the organisation is archived"
            elif left <= 0:
                refused, somebody_can_end_it = "all tenants keep as many reports as they may", True
            elif not await self._reports.make_room(connection, schedule):
                refused = "the tenant keeps as many reports as it may; delete some"
                somebody_can_end_it = True
            if refused:
                await self._refuse(connection, schedule, refused, tell=somebody_can_end_it)
                return
            run, left_out = run_to_make(
                schedule, at, min(schedule.keep, MOST_MISSED) if _has_period(schedule) else 1
            )
            kind = kind_of(schedule.kind)
            wanted = Wanted(
                kind,
                kind.checked(_of_period(schedule, run)),
                schedule.formats,
                f"schedule of {schedule.created_by}",
                tenant_id,
                schedule_id=schedule.id,
            )
            await self._reports.begin(connection, tenant_id, wanted)
            after = replace(
                schedule,
                last_run_at=at,
                last_error=f"{left_out} earlier runs were missed" if left_out else "",
                next_run_at=next_run(schedule, run),
                not_before=None,
            )
            await schedule_store.update(connection, after)

    async def _put_off(self, tenant_id: UUID, schedule_id: UUID, error: Exception) -> None:
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            schedule = await schedule_store.lock_due(
                connection, tenant_id, schedule_id, self._clock()
            )
            if schedule is not None:
                await self._refuse(connection, schedule, brief(error), tell=True)

    async def _refuse(
        self, connection: Connection, schedule: Schedule, reason: str, *, tell: bool
    ) -> None:
        """Leaves a schedule alone for a while. People get a mail the first time, and not at each
        further look."""
        after = replace(schedule, last_error=reason, not_before=self._clock() + _AGAIN)
        await schedule_store.update(connection, after)
        if tell and schedule.last_error != reason:
            await self._notices.add(
                connection,
                schedule.tenant_id,
                not_begun(schedule, reason),
                REPORTS,
                addresses=schedule.notify,
                roles=() if schedule.notify else _WHO_ENDS_IT,
            )

    async def _sweep(self) -> None:
        """Deletes reports that have expired, and those of schedules that have newer ones."""
        async with self._database.system_transaction("reports of all tenants expire") as connection:
            expired = await store.expired(connection, self._clock(), _MOST)
            surplus = await store.surplus(connection, _MOST)
        reasons: tuple[tuple[Literal["expired", "newer"], list[Report]], ...] = (
            ("expired", expired),
            ("newer", surplus),
        )
        for reason, found in reasons:
            for report in found:
                try:
                    async with self._database.transaction(Scope.of(report.tenant_id)) as connection:
                        await self._reports.remove(connection, report, reason)
                except Exception as error:
                    # One tenant keeps no other one's reports.
                    log.warning("report not deleted", report=str(report.id), error=brief(error))


def _parameters(kind: str, given: Parameters) -> Parameters:
    """The parameters of a schedule: without a period, which is that of each run.

    Raises:
        DomainError: INVALID_ARGUMENT with the field.
    """
    for name in PERIOD:
        if name in given.given():
            raise invalid_field(
                f"parameters.{name}", "must not be given: each report is about the time before it"
            )
    return kind_of(kind).checked(given)


def _changed(before: Schedule, plan: Plan) -> Schedule:
    """The schedule as a request wants it.

    Raises:
        DomainError: INVALID_ARGUMENT with the field.
    """
    every = plan.every or before.every
    # Another rhythm has other days.
    day = plan.on_day or (before.on_day if every == before.every else 1)
    zone = plan.time_zone or before.time_zone
    zone_of(zone)
    return replace(
        before,
        parameters=before.parameters
        if plan.parameters is None
        else _parameters(before.kind, plan.parameters),
        formats=checked_formats(plan.formats) if plan.formats else before.formats,
        every=every,
        on_day=checked_day(every, day),
        hour=before.hour if plan.hour is None else plan.hour,
        time_zone=zone,
        keep=plan.keep or before.keep,
        enabled=before.enabled if plan.enabled is None else plan.enabled,
        notify=before.notify if plan.notify is None else plan.notify,
    )


def _rhythm(schedule: Schedule) -> tuple[object, ...]:
    """What tells when a schedule is due."""
    return (
        schedule.every,
        schedule.on_day,
        schedule.hour,
        schedule.time_zone,
        schedule.enabled,
    )


def _has_period(schedule: Schedule) -> bool:
    return kind_of(schedule.kind).has_period


def run_to_make(schedule: Schedule, at: datetime, most: int) -> tuple[datetime, int]:
    """The oldest run that is due and is one of the newest ones, and how many before it are missed.

    Args:
        schedule: one that is due.
        at: the time.
        most: how many runs are made up for.
    """
    assert schedule.next_run_at is not None
    due: deque[datetime] = deque(maxlen=most)
    run, count = schedule.next_run_at, 0
    while run <= at:
        due.append(run)
        count += 1
        run = next_run(schedule, run)
    return due[0], count - len(due)


def _of_period(schedule: Schedule, run: datetime) -> Parameters:
    """What a run is asked for: the time that ended before it, where its kind has one."""
    if not _has_period(schedule):
        return schedule.parameters
    start, until = period_before(schedule, run)
    return replace(schedule.parameters, start=start, until=until)
