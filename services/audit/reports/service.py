"""The use cases of reports: asked for, listed, downloaded, deleted."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Final, Literal
from uuid import UUID

from auditlog.reports import MANIFEST
from contract.events.audit import (
    ReportDeleted,
    ReportDownload,
    ReportDownloaded,
    ReportRemoved,
    ReportRequested,
    ReportWish,
)
from contract.rows import write_scope
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import (
    already_exists,
    exhausted,
    failed_precondition,
    invalid_field,
    not_found,
    permission_denied,
)
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import Page
from servicekit.security.digests import sha256_hex
from services.audit.reports import store
from services.audit.reports.domain import (
    MOST_KEPT,
    MOST_RUNNING,
    MOST_SCHEDULED,
    File,
    Kind,
    Parameters,
    Report,
    Schedule,
    Status,
    checked_formats,
    to_second,
)
from services.audit.reports.kinds import kind_of

_BUSY_SECONDS: Final = 60.0
_FULL_SECONDS: Final = 3600.0
_TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is kept."""

    days: int
    """For how long;"""
    report_bytes: int
    """of a report, of all its files;"""
    tenant_bytes: int
    """of a tenant: half of it for what people ask for, and half for schedules;"""
    all_bytes: int
    """and of all tenants."""

    @property
    def share(self) -> int:
        """The bytes of one half."""
        return self.tenant_bytes // 2


@dataclass(frozen=True, slots=True)
class Wanted:
    """A report to make."""

    kind: Kind
    parameters: Parameters
    """As they were checked."""
    formats: tuple[str, ...]
    requested_by: str
    asked_from: UUID
    """The tenant of who asks."""
    request_id: UUID | None = None
    schedule_id: UUID | None = None


def wish(report: Report) -> ReportWish:
    """What an entry of the log says of a report."""
    return ReportWish(
        kind=report.kind,
        parameters=report.parameters.given(),
        formats=report.formats,
        requested_by=report.requested_by,
        as_of=report.as_of,
    )


def removal(report: Report, reason: Literal["asked", "expired", "newer", "room"]) -> ReportDeleted:
    """What an entry of the log says of a report that is no more."""
    return ReportDeleted(id=report.id, before=ReportRemoved(**asdict(wish(report)), reason=reason))


class ShortFileError(Exception):
    """What is stored of a file is less than what was signed."""


class Reports:
    """The reports of tenants.

    Args:
        database: the service's.
        outbox: takes events.
        tenants: the tree.
        bounds: how much is kept.
        clock: the time.
        wake: is called when there is a report to make.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        bounds: Bounds,
        clock: Clock,
        wake: Callable[[], None],
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._bounds = bounds
        self._clock = clock
        self._wake = wake

    async def create(
        self,
        call: Call,
        org_id: UUID | None,
        kind: str,
        parameters: Parameters,
        formats: tuple[str, ...],
        request_id: UUID | None,
    ) -> Report:
        """Begins a report.

        Raises:
            DomainError: NOT_FOUND for a tenant that is not in the subtree; INVALID_ARGUMENT with
                the field; PERMISSION_DENIED when the API token may not read what it says;
                RESOURCE_EXHAUSTED when too many are made or kept.
        """
        tenant_id = org_id or UUID(call.caller.tenant_id)
        await self._tenants.require(call.caller, tenant_id)
        wanted = kind_of(kind)
        check_scopes(call, wanted)
        checked = wanted.checked(parameters)
        self._check_past(checked)
        asked = Wanted(
            wanted,
            checked,
            checked_formats(formats),
            call.caller.name,
            UUID(call.caller.tenant_id),
            request_id,
        )
        # What a tenant asks for is counted over all below it.
        scope = await self._tenants.query_scope(call.caller)
        left = await self.left()
        async with self._database.transaction(scope) as connection:
            # Both bounds; the upper tenant first, so that no two calls wait for one another.
            for one in dict.fromkeys((asked.asked_from, tenant_id)):
                await store.lock_tenant(connection, one)
            if request_id is not None:
                known = await store.by_request(connection, tenant_id, request_id)
                if known is not None:
                    _check_same(known, asked)
                    return await self._with_files(connection, known)
            if left <= 0:
                raise exhausted(
                    "REPORTS_FULL",
                    f"all tenants' reports hold {self._bounds.all_bytes >> 20} MiB, as much as the"
                    " operator allows (EVERGREEN_REPORTS_MIB)",
                    retry_after=_FULL_SECONDS,
                )
            await self._check_room(connection, tenant_id, asked.asked_from)
            made = await self.begin(connection, tenant_id, asked)
        self._wake()
        return made

    def _check_past(self, parameters: Parameters) -> None:
        """Refuses a period that has not ended: a report says what was.

        Raises:
            DomainError: INVALID_ARGUMENT with the field.
        """
        at = to_second(self._clock())
        for name, value in (("from", parameters.start), ("until", parameters.until)):
            if value is not None and value > at:
                raise invalid_field(f"parameters.{name}", "must not be in the future")

    async def begin(self, connection: Connection, tenant_id: UUID, wanted: Wanted) -> Report:
        """Adds a report that is to be made, in the transaction of who asks."""
        at = self._clock()
        report = Report(
            id=new_id(),
            tenant_id=tenant_id,
            kind=wanted.kind.name,
            parameters=wanted.parameters,
            formats=wanted.formats,
            status=Status.RUNNING,
            as_of=to_second(at),
            requested_by=wanted.requested_by,
            asked_from=wanted.asked_from,
            request_id=wanted.request_id,
            schedule_id=wanted.schedule_id,
            expires_at=at + timedelta(days=self._bounds.days),
        )
        await store.insert(connection, report)
        event = ReportRequested(id=report.id, after=wish(report))
        await self._outbox.append(connection, CloudEvent(event, tenant_id))
        return report

    async def left(self) -> int:
        """The bytes that are left for all tenants; what is being made counts as large as it may
        become."""
        async with self._database.system_transaction(
            "all reports have one bound together"
        ) as connection:
            used = await store.bytes_of_all(connection, self._bounds.report_bytes)
        return self._bounds.all_bytes - used

    async def _check_room(self, connection: Connection, tenant_id: UUID, asked_from: UUID) -> None:
        """Refuses what is too much; failed reports make room.

        Raises:
            DomainError: RESOURCE_EXHAUSTED.
        """
        running = max(
            await store.count_running(connection, tenant_id),
            await store.count_asked(connection, asked_from),
        )
        if running >= MOST_RUNNING:
            raise exhausted(
                "TOO_MANY_REPORTS",
                f"{MOST_RUNNING} reports of the tenant are being made; wait for them",
                retry_after=_BUSY_SECONDS,
            )
        load = await store.load(connection, tenant_id, scheduled=False)
        surplus = load.kept - MOST_KEPT + 1
        failed = await store.failed(connection, tenant_id, surplus) if surplus > 0 else []
        if load.bytes >= self._bounds.share or len(failed) < surplus:
            raise exhausted(
                "REPORTS_FULL",
                f"a tenant keeps at most {MOST_KEPT} reports of"
                f" {self._bounds.share >> 20} MiB in all, beside those of schedules; delete some",
                retry_after=_FULL_SECONDS,
            )
        for report in failed:
            await self.remove(connection, report, "room")

    async def make_room(self, connection: Connection, schedule: Schedule) -> bool:
        """Whether a report of a schedule can be added; only older ones of the schedule make room
        for it, failed ones first, and none when that is not enough."""
        load = await store.load(connection, schedule.tenant_id, scheduled=True)
        own = await store.of_schedule(connection, schedule)
        # The next one will be as large as the last one.
        needed = own[-1].bytes if own else 0
        number, size = load.kept, load.bytes
        gone = []
        for report in own:
            if number < MOST_SCHEDULED and size + needed < self._bounds.share:
                break
            number, size = number - 1, size - report.bytes
            gone.append(report)
        if number >= MOST_SCHEDULED or size + needed >= self._bounds.share:
            return False
        for report in gone:
            await self.remove(connection, report, "room")
        return True

    async def remove(
        self,
        connection: Connection,
        report: Report,
        reason: Literal["asked", "expired", "newer", "room"],
    ) -> None:
        """Deletes a report, and says so in the log."""
        if await store.delete(connection, report):
            event = CloudEvent(removal(report, reason), report.tenant_id)
            await self._outbox.append(connection, event)

    async def list_reports(
        self,
        call: Call,
        org_id: UUID | None,
        kind: str,
        schedule_id: UUID | None,
        before: UUID | None,
        limit: int,
    ) -> Page[Report, UUID]:
        """The reports of the caller's subtree, or of a tenant in it and those below it.

        Raises:
            DomainError: NOT_FOUND for a tenant that is not in the subtree.
        """
        scope = await self._tenants.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            page = await store.list_reports(connection, scope, kind, schedule_id, before, limit)
            files = await store.files(connection, [report.id for report in page.items])
        return Page([replace(r, files=files.get(r.id, ())) for r in page.items], page.after)

    async def get(self, call: Call, report_id: UUID) -> Report:
        """One report.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            found = await self._found(connection, scope, report_id)
            return await self._with_files(connection, found)

    async def download(
        self, call: Call, report_id: UUID, name: str
    ) -> tuple[File, AsyncGenerator[bytes, None]]:
        """A file of a report, and its content in parts; the log says that it was downloaded.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION while it is not ready; PERMISSION_DENIED
                when the API token may not read what it says.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            report = await self._found(connection, scope, report_id)
            check_scopes(call, kind_of(report.kind))
            if report.status is not Status.READY:
                raise failed_precondition("REPORT_NOT_READY", f"the report is {report.status}")
            files = (await store.files(connection, [report_id])).get(report_id, ())
            file = next((f for f in (*files, _manifest_of(report)) if f.name == name), None)
            if file is None:
                raise not_found("file", name)
            event = ReportDownloaded(
                id=report_id, after=ReportDownload(kind=report.kind, file=name)
            )
            await self._outbox.append(connection, CloudEvent(event, report.tenant_id))
        if name == MANIFEST:
            return file, _only(report.manifest.encode())
        return file, self._parts(report, file)

    async def _parts(self, report: Report, file: File) -> AsyncGenerator[bytes, None]:
        number, size = -1, 0
        while True:
            async with self._database.transaction(Scope.of(report.tenant_id)) as connection:
                found = await store.part(connection, report.id, file.name, number)
                if found is None:
                    if size != file.bytes:
                        # An end that is none: the report was deleted meanwhile.
                        await self._found(connection, Scope.of(report.tenant_id), report.id)
                        raise ShortFileError(f"{file.name} of {report.id} is not whole")
                    return
            number, content = found
            size += len(content)
            yield content

    async def delete(self, call: Call, report_id: UUID) -> None:
        """Deletes a report; one that is being made ends.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            report = await store.find(connection, scope, report_id, for_update=True)
            if report is None:
                raise not_found("report", report_id)
            await self.remove(connection, report, "asked")

    async def _found(self, connection: Connection, scope: Scope, report_id: UUID) -> Report:
        found = await store.find(connection, scope, report_id)
        if found is None:
            raise not_found("report", report_id)
        return found

    async def _with_files(self, connection: Connection, report: Report) -> Report:
        files = await store.files(connection, [report.id])
        return replace(report, files=files.get(report.id, ()))


def _check_same(known: Report, wanted: Wanted) -> None:
    """Refuses the id of a request that asked for something else.

    Raises:
        DomainError: ALREADY_EXISTS.
    """
    before = (known.kind, known.parameters, known.formats)
    if before != (wanted.kind.name, wanted.parameters, wanted.formats):
        raise already_exists(
            "REQUEST_ID_USED", f"the requestId made another report: {known.id}, {known.kind}"
        )


async def _only(content: bytes) -> AsyncGenerator[bytes, None]:
    yield content


def _manifest_of(report: Report) -> File:
    content = report.manifest.encode()
    return File(MANIFEST, _TEXT, len(content), sha256_hex(content))


def shown_files(report: Report) -> tuple[File, ...]:
    """The files of a report, with its manifest, when it is ready."""
    if report.status is not Status.READY:
        return ()
    return (*report.files, _manifest_of(report))


def check_scopes(call: Call, kind: Kind) -> None:
    """Refuses an API token that may not read what a report says.

    Raises:
        DomainError: PERMISSION_DENIED.
    """
    token = call.caller.token
    if token is None:
        return
    for area, scope in zip(kind.areas, kind.scopes, strict=True):
        if token.scopes.isdisjoint({scope, write_scope(area)}):
            raise permission_denied("SCOPE_MISSING", f"the API token lacks the scope {scope}")
