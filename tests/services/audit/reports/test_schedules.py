"""Reports that are made by themselves: when, for which time, and how many stay."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from evergreen.v1 import audit_pb2 as pb
from services.audit.reports import service
from services.audit.reports.calendar import next_run, period_before
from services.audit.reports.domain import Parameters, Schedule
from tests.services.audit.reports.conftest import AS_OF, ORG_OWNER, RESELLER_OWNER, World, uid
from tests.support import callers
from tests.support.audit import SISTER
from tests.support.refusals import refusal


def plan(every: str, on_day: int = 1, hour: int = 3, zone: str = "UTC") -> Schedule:
    return Schedule(
        id=uid(1),
        tenant_id=uid(2),
        kind="policy-history",
        parameters=Parameters(),
        formats=("csv",),
        every=every,
        on_day=on_day,
        hour=hour,
        time_zone=zone,
        keep=12,
        enabled=True,
        created_at=AS_OF,
        created_by="",
        updated_at=AS_OF,
    )


@pytest.mark.parametrize(
    ("wanted", "after", "at"),
    [
        (plan("day"), "2026-11-30T02:59:59", "2026-11-30T03:00:00"),
        (plan("day"), "2026-11-30T03:00:00", "2026-12-01T03:00:00"),
        (plan("day", hour=0, zone="Asia/Tokyo"), "2026-11-30T09:00:00", "2026-11-30T15:00:00"),
        (plan("week", 7), "2026-11-30T09:00:00", "2026-12-06T03:00:00"),
        (plan("month", 31), "2027-02-01T00:00:00", "2027-02-28T03:00:00"),
        (plan("month", 1), "2026-12-01T03:00:00", "2027-01-01T03:00:00"),
        # Summer time: 3:00 in Berlin is 2:00 or 1:00 UTC; 2:00 does not exist on the last Sunday
        # of March.
        (plan("day", zone="Europe/Berlin"), "2026-07-01T00:00:00", "2026-07-01T01:00:00"),
        (plan("day", hour=2, zone="Europe/Berlin"), "2027-03-27T12:00:00", "2027-03-28T01:00:00"),
    ],
)
def test_when_a_schedule_is_due(wanted: Schedule, after: str, at: str) -> None:
    assert next_run(wanted, _utc(after)) == _utc(at)


@pytest.mark.parametrize(
    ("wanted", "at", "start", "until"),
    [
        (plan("day"), "2026-11-30T03:00:00", "2026-11-29T00:00:00", "2026-11-30T00:00:00"),
        (plan("week"), "2026-11-30T03:00:00", "2026-11-23T00:00:00", "2026-11-30T00:00:00"),
        (plan("month"), "2027-01-15T03:00:00", "2026-12-01T00:00:00", "2027-01-01T00:00:00"),
        (
            plan("month", zone="Europe/Berlin"),
            "2026-11-01T03:00:00",
            "2026-09-30T22:00:00",
            "2026-10-31T23:00:00",
        ),
    ],
)
def test_which_time_a_report_is_about(wanted: Schedule, at: str, start: str, until: str) -> None:
    assert period_before(wanted, _utc(at)) == (_utc(start), _utc(until))


def _utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


async def create(world: World, by: callers.Metadata = RESELLER_OWNER, **more: Any) -> Any:
    wanted = {"kind": "policy-history", "every": "day", "formats": ["csv"]} | more
    return await world.schedules.CreateReportSchedule(
        pb.CreateReportScheduleRequest(**wanted), metadata=by
    )


async def reports_of(world: World, schedule_id: str, count: int) -> list[pb.Report]:
    """The ready reports of a schedule, when there are so many."""
    for _ in range(600):
        found = await world.reports.ListReports(
            pb.ListReportsRequest(schedule_id=schedule_id), metadata=RESELLER_OWNER
        )
        ready = [report for report in found.reports if report.status == "ready"]
        if len(ready) == count:
            return ready
        await asyncio.sleep(0.05)
    raise AssertionError(found)


async def test_a_missed_run_is_made_once_late(world: World) -> None:
    """About the day that ended last; who made the schedule is named, and the log says so."""
    made = await create(world)
    assert made.next_run_at.ToDatetime(UTC) == _utc("2026-12-01T03:00:00")
    await asyncio.sleep(0.3)
    assert not await reports_of(world, made.id, 0)
    world.time.move(days=5)
    (report,) = await reports_of(world, made.id, 1)
    assert report.requested_by == "schedule of owner@reseller.example"
    assert getattr(report.parameters, "from").ToDatetime(UTC) == _utc("2026-12-04T00:00:00")
    assert report.parameters.until.ToDatetime(UTC) == _utc("2026-12-05T00:00:00")
    shown = await world.schedules.GetReportSchedule(
        pb.GetReportScheduleRequest(id=made.id), metadata=RESELLER_OWNER
    )
    assert shown.next_run_at.ToDatetime(UTC) == _utc("2026-12-06T03:00:00")
    (asked,) = await world.told("audit.report_requested")
    assert asked["actor"] == "system"
    assert len(await world.told("audit.report_schedule_created")) == 1


async def test_the_newest_stay(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the schedule keeps; and when the tenant is full, the oldest make room."""
    made = await create(world, keep=2)
    for run in range(4):
        world.time.move(days=1)
        if run < 2:
            await reports_of(world, made.id, run + 1)
        else:
            for _ in range(400):
                newest = (await reports_of(world, made.id, 2))[0]
                if newest.as_of.ToDatetime(UTC) == world.time.now:
                    break
                await asyncio.sleep(0.05)
            assert newest.as_of.ToDatetime(UTC) == world.time.now
    monkeypatch.setattr(service, "MOST_KEPT", 2)
    world.time.move(days=1)
    for _ in range(400):
        newest = (await reports_of(world, made.id, 2))[0]
        if newest.as_of.ToDatetime(UTC) == world.time.now:
            break
        await asyncio.sleep(0.05)
    assert newest.as_of.ToDatetime(UTC) == world.time.now
    world.time.move(days=500)
    await world.schedules.DeleteReportSchedule(
        pb.DeleteReportScheduleRequest(id=made.id), metadata=RESELLER_OWNER
    )


async def test_schedules_are_changed_seen_and_refused(world: World) -> None:
    made = await create(world, ORG_OWNER, time_zone="Europe/Berlin")
    changed = await world.schedules.UpdateReportSchedule(
        pb.UpdateReportScheduleRequest(id=made.id, every="month", on=15, enabled=False),
        metadata=ORG_OWNER,
    )
    assert (changed.every, changed.on, changed.hour) == ("month", 15, 3)
    assert not changed.HasField("next_run_at")
    assert changed.etag != made.etag
    refused = await refusal(
        world.schedules.UpdateReportSchedule(
            pb.UpdateReportScheduleRequest(id=made.id, keep=3, etag=made.etag), metadata=ORG_OWNER
        )
    )
    assert refused.reason == "ETAG_MISMATCH"
    stranger = callers.user(SISTER.id)
    refused = await refusal(
        world.schedules.GetReportSchedule(
            pb.GetReportScheduleRequest(id=made.id), metadata=stranger
        )
    )
    assert refused.code is grpc.StatusCode.NOT_FOUND
    for more, field in (
        ({"time_zone": "Berlin"}, "timeZone"),
        ({"time_zone": "../etc/passwd"}, "timeZone"),
        ({"every": "week", "on": 8}, "on"),
        ({"kind": "x"}, "kind"),
        ({"parameters": {"until": AS_OF}}, "parameters.until"),
        ({"parameters": {"days": 3}}, "parameters.days"),
        ({"formats": ["xml"]}, "formats[0]"),
    ):
        refused = await refusal(create(world, **more))
        assert refused.fields == [field], refused.body


async def test_a_broken_schedule_stops_no_other(world: World) -> None:
    """A row that somebody damaged is put off, and says why."""
    broken = await create(world)
    await world.sql(
        "UPDATE audit.report_schedule SET time_zone = 'Nowhere' WHERE id::text = $1", broken.id
    )
    other = await create(world)
    world.time.move(days=1)
    assert await reports_of(world, other.id, 1)
    rows = await world.sql(
        "SELECT last_error, next_run_at FROM audit.report_schedule WHERE id::text = $1", broken.id
    )
    assert "time zone" in rows[0]["last_error"]
    assert rows[0]["next_run_at"] == world.time.now + timedelta(minutes=5)
