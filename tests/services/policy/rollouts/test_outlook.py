"""What a plan would mean: devices of each batch, and times at the earliest."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from uuid import uuid4
from zoneinfo import ZoneInfo

from services.policy.rollouts.outlook import Kind, Outlook, outlook
from services.policy.rollouts.plans import PRESETS, Batch, Health, Plan
from services.policy.rollouts.settings import Freeze, InEffect

BERLIN = ZoneInfo("Europe/Berlin")
ALWAYS = InEffect(ZoneInfo("UTC"), require_approval=False, freezes=())
MONDAY = datetime(2027, 5, 31, 10, tzinfo=UTC)
SCHOOL = [Kind(frozenset(), 200)]
DAY = timedelta(days=1)


def of(
    plan: Plan, effect: InEffect = ALWAYS, kinds: list[Kind] = SCHOOL, *, urgent: bool = False
) -> Outlook:
    return outlook(plan, kinds, effect, MONDAY, urgent=urgent)


def opens(found: Outlook) -> list[datetime | None]:
    return [one.opens_at for one in found.steps]


def test_a_careful_plan_takes_three_days() -> None:
    """Each batch gets those that the ones before did not, after their soak."""
    found = of(PRESETS["careful"])
    assert [one.devices for one in found.steps] == [2, 18, 80, 100]
    assert opens(found) == [MONDAY, MONDAY + DAY, MONDAY + 2 * DAY, MONDAY + 3 * DAY]
    assert found.completes_at == MONDAY + 3 * DAY + timedelta(hours=1)
    assert not found.outside_windows


def test_pilots_come_first_and_count_once() -> None:
    """Also where percents reach them later."""
    pilots, others = uuid4(), uuid4()
    kinds = [Kind(frozenset({pilots}), 10), Kind(frozenset({others}), 90)]
    plan = Plan((Batch("pilots", group_ids=(pilots,)), Batch("half", 50), Batch("all", 100)))
    assert [one.devices for one in of(plan, kinds=kinds).steps] == [10, 45, 45]


def test_windows_and_freezes_stretch_it() -> None:
    """The soak counts while devices are served; what is urgent knows neither."""
    evenings = Plan((Batch("half", 50, soak=timedelta(hours=6)), Batch("all", 100, soak=DAY / 24)))
    evenings = replace(evenings, windows=("Mon-Fri 18:00-22:00", "* 20:00-22:00"))
    exams = InEffect(BERLIN, False, (Freeze("Exams", date(2027, 6, 1), date(2027, 6, 2)),))
    found = of(evenings, exams)
    # 18:00 in Berlin; four hours on Monday, none on Tuesday and Wednesday, two on Thursday.
    assert opens(found) == [
        datetime(2027, 5, 31, 16, tzinfo=UTC),
        datetime(2027, 6, 3, 18, tzinfo=UTC),
    ]
    assert found.completes_at == datetime(2027, 6, 3, 19, tzinfo=UTC)
    assert found.outside_windows
    urgent = of(evenings, exams, urgent=True)
    assert opens(urgent) == [MONDAY, MONDAY + timedelta(hours=6)]
    assert not urgent.outside_windows


def test_a_pace_stretches_it() -> None:
    """The first batch passes with a fifth of its devices; the last one is for all of them."""
    plan = Plan((Batch("half", 50, soak=timedelta(0)), Batch("all", 100, soak=timedelta(0))))
    found = of(replace(plan, max_per_minute=2, health=Health(min_seen_percent=20)))
    assert opens(found) == [MONDAY, MONDAY + timedelta(minutes=10)]
    assert found.completes_at == MONDAY + timedelta(minutes=100)


def test_what_is_too_far_away_has_no_time() -> None:
    """A freeze without an end is none that is waited for."""
    for_ever = InEffect(ZoneInfo("UTC"), False, (Freeze("x", date(2000, 1, 1), date(2999, 1, 1)),))
    found = of(PRESETS["careful"], for_ever)
    assert opens(found) == [None] * 4
    assert found.completes_at is None
