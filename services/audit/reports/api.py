"""Reports over gRPC: translates between proto and domain, nothing else."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final
from uuid import UUID

from google.api.httpbody_pb2 import HttpBody

from evergreen.v1 import audit_pb2 as pb
from evergreen.v1 import audit_pb2_grpc
from servicekit.errors import invalid_field
from servicekit.ids import given_id
from servicekit.rpc.pagination import asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import given_time, optional_timestamp, timestamp
from services.audit.reports.domain import Kind, Parameters, Report, Schedule
from services.audit.reports.kinds import kinds
from services.audit.reports.page import CONTENT_POLICY
from services.audit.reports.schedules import Plan, Schedules
from services.audit.reports.service import Reports, shown_files

_HEADERS: Final = {
    "content-security-policy": f"{CONTENT_POLICY}; frame-ancestors 'none'; sandbox",
    "x-content-type-options": "nosniff",
}


class ReportApi(audit_pb2_grpc.ReportServiceServicer):
    """evergreen.v1.ReportService."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports

    async def ListReportKinds(
        self, request: pb.ListReportKindsRequest, context: Context
    ) -> pb.ListReportKindsResponse:
        """Lists the kinds of reports."""
        return pb.ListReportKindsResponse(kinds=map(_to_kind, kinds()))

    async def CreateReport(self, request: pb.CreateReportRequest, context: Context) -> pb.Report:
        """Begins a report."""
        made = await self._reports.create(
            context.call,
            given_id(request.org_id),
            request.kind,
            _parameters(request.parameters),
            tuple(request.formats),
            given_id(request.request_id),
        )
        return _to_report(made)

    async def ListReports(
        self, request: pb.ListReportsRequest, context: Context
    ) -> pb.ListReportsResponse:
        """Lists reports."""
        before, size = asked_page(request, UUID)
        page = await self._reports.list_reports(
            context.call,
            given_id(request.org_id),
            request.kind,
            given_id(request.schedule_id),
            before,
            size,
        )
        return pb.ListReportsResponse(
            reports=map(_to_report, page.items), next_page_token=page.token
        )

    async def GetReport(self, request: pb.GetReportRequest, context: Context) -> pb.Report:
        """Answers one report."""
        return _to_report(await self._reports.get(context.call, UUID(request.id)))

    async def DownloadReport(
        self, request: pb.DownloadReportRequest, context: Context
    ) -> AsyncGenerator[HttpBody, None]:
        """Streams a file of a report."""
        file, parts = await self._reports.download(context.call, UUID(request.id), request.name)
        await context.send_headers(
            {"content-disposition": f'attachment; filename="{file.name}"', **_HEADERS}
        )
        async with aclosing(parts):
            async for part in parts:
                yield HttpBody(content_type=file.media_type, data=part)

    async def DeleteReport(
        self, request: pb.DeleteReportRequest, context: Context
    ) -> pb.DeleteReportResponse:
        """Deletes a report."""
        await self._reports.delete(context.call, UUID(request.id))
        return pb.DeleteReportResponse()


class ReportScheduleApi(audit_pb2_grpc.ReportScheduleServiceServicer):
    """evergreen.v1.ReportScheduleService."""

    def __init__(self, schedules: Schedules) -> None:
        self._schedules = schedules

    async def ListReportSchedules(
        self, request: pb.ListReportSchedulesRequest, context: Context
    ) -> pb.ListReportSchedulesResponse:
        """Lists schedules."""
        after, size = asked_page(request, UUID)
        page = await self._schedules.list_schedules(
            context.call, given_id(request.org_id), after, size
        )
        return pb.ListReportSchedulesResponse(
            report_schedules=map(_to_schedule, page.items), next_page_token=page.token
        )

    async def GetReportSchedule(
        self, request: pb.GetReportScheduleRequest, context: Context
    ) -> pb.ReportSchedule:
        """Answers one schedule."""
        return _to_schedule(await self._schedules.get(context.call, UUID(request.id)))

    async def CreateReportSchedule(
        self, request: pb.CreateReportScheduleRequest, context: Context
    ) -> pb.ReportSchedule:
        """Adds a schedule."""
        made = await self._schedules.create(
            context.call, given_id(request.org_id), request.kind, _plan(request)
        )
        return _to_schedule(made)

    async def UpdateReportSchedule(
        self, request: pb.UpdateReportScheduleRequest, context: Context
    ) -> pb.ReportSchedule:
        """Changes a schedule."""
        changed = await self._schedules.update(context.call, UUID(request.id), _plan(request))
        return _to_schedule(changed)

    async def DeleteReportSchedule(
        self, request: pb.DeleteReportScheduleRequest, context: Context
    ) -> pb.DeleteReportScheduleResponse:
        """Removes a schedule."""
        await self._schedules.delete(context.call, UUID(request.id))
        return pb.DeleteReportScheduleResponse()


def _notified(
    request: pb.CreateReportScheduleRequest | pb.UpdateReportScheduleRequest,
) -> tuple[str, ...] | None:
    if isinstance(request, pb.UpdateReportScheduleRequest) and request.notify_nobody:
        if request.notify:
            raise invalid_field("notifyNobody", "must not be given with notify")
        return ()
    return tuple(dict.fromkeys(request.notify)) or None


def _plan(request: pb.CreateReportScheduleRequest | pb.UpdateReportScheduleRequest) -> Plan:
    return Plan(
        parameters=_parameters(request.parameters) if request.HasField("parameters") else None,
        formats=tuple(request.formats),
        every=request.every,
        on_day=request.on,
        hour=request.hour if request.HasField("hour") else None,
        time_zone=request.time_zone,
        keep=request.keep,
        enabled=request.enabled if request.HasField("enabled") else None,
        notify=_notified(request),
    )


def _parameters(given: pb.ReportParametersInput) -> Parameters:
    return Parameters(
        days=given.days if given.HasField("days") else None,
        grace_days=given.grace_days if given.HasField("grace_days") else None,
        inactive_days=given.inactive_days if given.HasField("inactive_days") else None,
        start=given_time(given, "from"),
        until=given_time(given, "until"),
        actor=given.actor,
        resource=given.resource,
        with_decommissioned=given.with_decommissioned
        if given.HasField("with_decommissioned")
        else None,
    )


def _to_parameters(given: Parameters) -> pb.ReportParameters:
    return pb.ReportParameters(
        days=given.days,
        grace_days=given.grace_days,
        inactive_days=given.inactive_days,
        **{"from": optional_timestamp(given.start)},
        until=optional_timestamp(given.until),
        actor=given.actor,
        resource=given.resource,
        with_decommissioned=given.with_decommissioned,
    )


def _to_kind(kind: Kind) -> pb.ReportKind:
    return pb.ReportKind(
        name=kind.name,
        title=kind.title,
        about=kind.about,
        parameters=kind.takes,
        tables=[
            pb.ReportTable(name=table.name, columns=[column.name for column in table.columns])
            for table in kind.tables
        ],
        scopes=kind.scopes,
    )


def _to_report(report: Report) -> pb.Report:
    return pb.Report(
        id=str(report.id),
        org_id=str(report.tenant_id),
        kind=report.kind,
        parameters=_to_parameters(report.parameters),
        formats=report.formats,
        status=report.status,
        as_of=timestamp(report.as_of),
        requested_by=report.requested_by,
        schedule_id=str(report.schedule_id) if report.schedule_id else "",
        finished_at=optional_timestamp(report.finished_at),
        rows=report.rows,
        files=[
            pb.ReportFile(
                name=file.name,
                media_type=file.media_type,
                bytes=file.bytes,
                sha256=file.sha256,
            )
            for file in shown_files(report)
        ],
        audit_entry_id=str(report.entry_id) if report.entry_id else "",
        error=report.error,
        expires_at=timestamp(report.expires_at),
    )


def _to_schedule(schedule: Schedule) -> pb.ReportSchedule:
    return pb.ReportSchedule(
        id=str(schedule.id),
        org_id=str(schedule.tenant_id),
        kind=schedule.kind,
        parameters=_to_parameters(schedule.parameters),
        formats=schedule.formats,
        every=schedule.every,
        on=schedule.on_day,
        hour=schedule.hour,
        time_zone=schedule.time_zone,
        keep=schedule.keep,
        enabled=schedule.enabled,
        next_run_at=optional_timestamp(schedule.next_run_at),
        last_run_at=optional_timestamp(schedule.last_run_at),
        last_error=schedule.last_error,
        created_at=timestamp(schedule.created_at),
        created_by=schedule.created_by,
        updated_at=timestamp(schedule.updated_at),
        etag=schedule.etag,
        notify=schedule.notify,
    )
