"""Reports that are made by themselves: when, for which time, and how many stay."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import grpc
import pytest

from evergreen.v1 import audit_pb2 as pb
from services.audit.reports import service
from services.audit.reports.calendar import next_run, period_before
from services.audit.reports.domain import Parameters, Schedule
from services.audit.reports.schedules import run_to_make
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


def days_of(reports: list[pb.Report]) -> list[str]:
    """The days that reports begin with, the newest first."""
    return [
        getattr(report.parameters, "from").ToDatetime(UTC).date().isoformat() for report in reports
    ]


async def shown(world: World, schedule_id: str) -> pb.ReportSchedule:
    return await world.schedules.GetReportSchedule(
        pb.GetReportScheduleRequest(id=schedule_id), metadata=RESELLER_OWNER
    )


async def test_missed_runs_are_made_late(world: World) -> None:
    """Each about its own day, the newest ones; of a kind without a period, one."""
    made = await create(world, keep=3)
    plain = await create(world, kind="devices-not-seen")
    assert made.next_run_at.ToDatetime(UTC) == _utc("2026-12-01T03:00:00")
    await asyncio.sleep(0.3)
    assert not await reports_of(world, made.id, 0)
    world.time.move(days=5)
    reports = await reports_of(world, made.id, 3)
    assert days_of(reports) == ["2026-12-04", "2026-12-03", "2026-12-02"]
    assert reports[0].requested_by == "schedule of owner@reseller.example"
    assert reports[0].parameters.until.ToDatetime(UTC) == _utc("2026-12-05T00:00:00")
    assert (await shown(world, made.id)).next_run_at.ToDatetime(UTC) == _utc("2026-12-06T03:00:00")
    await reports_of(world, plain.id, 1)
    await asyncio.sleep(0.3)
    await reports_of(world, plain.id, 1)
    asked = await world.told("audit.report_requested")
    assert {one["actor"] for one in asked} == {"system"}
    assert len(asked) == 4
    assert len(await world.told("audit.report_schedule_created")) == 2


@pytest.mark.parametrize(
    ("wanted", "begins", "at", "days"),
    [
        # February has no 31st, and each month is reported once.
        (plan("month", 31), "2027-01-31T03:00:00", "2027-04-01", ["2026-12", "2027-01", "2027-02"]),
        # The night in which clocks go back, and the one in which they go forward.
        (
            plan("day", hour=2, zone="Europe/Berlin"),
            "2026-10-25T01:00:00",
            "2026-10-26T12:00",
            ["2026-10-24", "2026-10-25"],
        ),
        (
            plan("day", hour=2, zone="Europe/Berlin"),
            "2027-03-28T01:00:00",
            "2027-03-29T12:00",
            ["2027-03-27", "2027-03-28"],
        ),
        (plan("week", 3), "2026-12-02T03:00:00", "2026-12-10", ["2026-11-23", "2026-11-30"]),
    ],
)
def test_no_period_is_left_out_or_reported_twice(
    wanted: Schedule, begins: str, at: str, days: list[str]
) -> None:
    """Each run is about the time before it, however late it is made."""
    zone = ZoneInfo(wanted.time_zone)
    schedule = replace(wanted, next_run_at=_utc(begins))
    until = _utc(at)
    periods = []
    while schedule.next_run_at and schedule.next_run_at <= until:
        run, missed = run_to_make(schedule, until, 12)
        assert missed == 0
        periods.append(period_before(schedule, run))
        schedule = replace(schedule, next_run_at=next_run(schedule, run))
    firsts = [start.astimezone(zone).date().isoformat() for start, _ in periods]
    assert [first[: len(day)] for first, day in zip(firsts, days, strict=True)] == days
    for (_, end), (start, _) in pairwise(periods):
        assert end == start


async def newest(world: World, schedule_id: str, count: int) -> list[pb.Report]:
    """The ready reports of a schedule, when the newest of so many was made now."""
    for _ in range(400):
        found = await reports_of(world, schedule_id, count)
        if found[0].as_of.ToDatetime(UTC) == world.time.now:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(found)


async def removed(world: World) -> list[tuple[str, str]]:
    """The reports that are no more, and why."""
    told = await world.told("audit.report_deleted")
    return [(one["resource"].removeprefix("reports/"), one["before"]["reason"]) for one in told]


async def test_the_newest_stay(world: World) -> None:
    """As many as the schedule keeps; the log says what went, and why."""
    made = await create(world, keep=2)
    ids = []
    for run in range(3):
        world.time.move(days=1)
        ids.append((await newest(world, made.id, min(run + 1, 2)))[0].id)
    assert await removed(world) == [(ids[0], "newer")]
    await world.schedules.UpdateReportSchedule(
        pb.UpdateReportScheduleRequest(id=made.id, keep=1), metadata=RESELLER_OWNER
    )
    await reports_of(world, made.id, 1)
    assert await removed(world) == [(ids[0], "newer"), (ids[1], "newer")]
    await world.schedules.DeleteReportSchedule(
        pb.DeleteReportScheduleRequest(id=made.id), metadata=RESELLER_OWNER
    )
    world.time.move(days=401)
    await reports_of(world, made.id, 0)
    assert (await removed(world))[-1] == (ids[2], "expired")


async def test_what_people_ask_for_takes_no_place_of_schedules(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody who fills the place for his own reports deletes those of schedules, or stops them."""
    made = await create(world)
    world.time.move(days=1)
    await reports_of(world, made.id, 1)
    monkeypatch.setattr(service, "MOST_KEPT", 1)
    await world.made("policy-history", formats=["csv"])
    refused = await refusal(world.create("policy-history"))
    assert refused.reason == "REPORTS_FULL"
    world.time.move(days=1)
    await reports_of(world, made.id, 2)
    assert await removed(world) == []


async def test_a_schedule_makes_room_among_its_own_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When that is not enough nothing goes, and the run stays due until there is room."""
    first, second = await create(world), await create(world)
    world.time.move(days=1)
    (kept,) = await reports_of(world, first.id, 1)
    (old,) = await reports_of(world, second.id, 1)
    monkeypatch.setattr(service, "MOST_SCHEDULED", 2)
    await world.sql(
        "UPDATE audit.report_schedule SET next_run_at = NULL WHERE id::text = $1", first.id
    )
    world.time.move(days=1)
    (new,) = await newest(world, second.id, 1)
    assert await removed(world) == [(old.id, "room")]
    await world.get(kept.id)
    monkeypatch.setattr(service, "MOST_SCHEDULED", 1)
    world.time.move(days=1)
    for _ in range(400):
        found = await shown(world, second.id)
        if found.last_error:
            break
        await asyncio.sleep(0.05)
    assert "keeps as many" in found.last_error
    # The first refusal is told, and not each look.
    looks = await world.sql(
        "SELECT not_before FROM audit.report_schedule WHERE id::text = $1", found.id
    )
    world.time.move(minutes=6)
    for _ in range(400):
        again = await world.sql(
            "SELECT not_before FROM audit.report_schedule WHERE id::text = $1", found.id
        )
        if again != looks:
            break
        await asyncio.sleep(0.05)
    assert again != looks
    (row,) = await world.sql("SELECT texts, addresses, roles FROM audit.notice")
    assert (row["addresses"], row["roles"]) == ([], ["Admin", "Owner"])
    text = json.loads(row["texts"])[0]
    assert text["subject"] == "The scheduled report policy-history cannot be made"
    assert "keeps as many reports as it may; delete some" in text["paragraphs"][0]
    assert found.next_run_at.ToDatetime(UTC) == _utc("2026-12-03T03:00:00")
    assert [report.id for report in await reports_of(world, second.id, 1)] == [new.id]
    monkeypatch.setattr(service, "MOST_SCHEDULED", 5)
    world.time.move(days=1)
    reports = await reports_of(world, second.id, 3)
    assert days_of(reports) == ["2026-12-03", "2026-12-02", "2026-12-01"]


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
    broken = await create(world, notify=["it@school.example"])
    await world.sql(
        "UPDATE audit.report_schedule SET time_zone = 'Nowhere' WHERE id::text = $1", broken.id
    )
    other = await create(world)
    world.time.move(days=1)
    assert await reports_of(world, other.id, 1)
    rows = await world.sql(
        "SELECT last_error, not_before FROM audit.report_schedule WHERE id::text = $1", broken.id
    )
    assert "time zone" in rows[0]["last_error"]
    (told,) = await world.sql("SELECT texts, addresses FROM audit.notice")
    assert told["addresses"] == ["it@school.example"]
    assert "time zone" in told["texts"]
    assert rows[0]["not_before"] == world.time.now + timedelta(minutes=5)


async def test_who_is_told_when_a_report_is_ready(world: World) -> None:
    """One mail for each report, in both languages; none when nobody is to be told."""
    made = await create(world, notify=["it@school.example", "it@school.example"])
    assert list((await shown(world, made.id)).notify) == ["it@school.example"]
    world.time.move(days=1)
    (report,) = await reports_of(world, made.id, 1)
    (row,) = await world.sql("SELECT texts, addresses, roles FROM audit.notice")
    assert (row["addresses"], row["roles"]) == (["it@school.example"], [])
    texts = json.loads(row["texts"])
    assert [text["language"] for text in texts] == ["en", "de"]
    assert texts[0]["subject"] == "The report policy-history is ready"
    assert report.id in texts[0]["paragraphs"][1]
    await world.schedules.UpdateReportSchedule(
        pb.UpdateReportScheduleRequest(id=made.id, notify_nobody=True), metadata=RESELLER_OWNER
    )
    assert list((await shown(world, made.id)).notify) == []
    world.time.move(days=1)
    await reports_of(world, made.id, 2)
    assert len(await world.sql("SELECT 1 FROM audit.notice")) == 1
    wrong = create(world, notify=["nobody"])
    assert (await refusal(wrong)).fields == ["notify[0]"]
