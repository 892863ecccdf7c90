"""What becomes of rollouts: on school days, in freezes, and after pauses."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

import pytest

from servicekit.errors import DomainError
from services.policy.rollouts import domain
from services.policy.rollouts.domain import Counts, Happened, Rollout, State, Step
from services.policy.rollouts.plans import NOW, PRESETS, Batch, Plan
from services.policy.targets.domain import PolicyTargets

MONDAY: Final = datetime(2027, 3, 1, 8, tzinfo=UTC)
MINUTE: Final = timedelta(minutes=1)
HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)
_IN_LESSON: Final = 0.6
"""This part of the laptops is on in a lesson."""
WELL: Final = Counts(
    served=10, applied=10, polled=10, recent=10, control=90, trouble_known=True, expected=10
)


def asked_for(plan: Plan = PRESETS["careful"], **more: object) -> Rollout:
    return Rollout(
        **{
            "id": uuid4(),
            "tenant_id": uuid4(),
            "policy_id": uuid4(),
            "policy_name": "Laptops",
            "version": 2,
            "targets": PolicyTargets(),
            "base": "[]",
            "plan": plan,
            "note": "",
            "urgent": False,
            "salt": bytes(16),
            "state": State.SCHEDULED,
            "created_at": MONDAY,
            "created_by": UUID(int=1),
            "created_by_name": "anna",
            "starts_at": MONDAY,
            **more,
        }
    )


def open_one(plan: Plan = PRESETS["careful"]) -> Rollout:
    return domain.opened(asked_for(plan), MONDAY)


def at(rollout: Rollout, counts: Counts, now: datetime, *, may_open: bool = True) -> Step | None:
    """A look."""
    return domain.judged(domain.looked(rollout, counts, now), counts, now, may_open=may_open)


def put(step: Step | None, now: datetime) -> Rollout:
    """What is stored of a step: paused ones serve nobody."""
    assert step is not None
    goes_on = step.after.state in {State.RUNNING, State.AWAITING_APPROVAL}
    return domain.serving(step.after, now, serves=goes_on and step.after.live)


# A simulated school


@dataclass
class Laptop:
    """A device that may be on in a lesson, and polls every five minutes then."""

    has_it: bool
    dies: bool = False
    is_on: bool = False
    met_at: datetime | None = None
    seen_at: datetime | None = None

    def is_silent(self, now: datetime) -> bool:
        assert self.met_at is not None and self.seen_at is not None
        if self.seen_at >= now - 10 * MINUTE:
            return False
        return self.seen_at < self.met_at + MINUTE or self.seen_at < now - 10 * MINUTE - DAY


@dataclass
class School:
    """Lessons of 45 minutes from eight to four on weekdays, with an outage of the service."""

    laptops: list[Laptop]
    chance: random.Random
    outage: range = range(0)
    now: datetime = MONDAY
    minute: int = 0

    def tick(self) -> None:
        if self.minute % 45 == 0:
            in_school = 8 <= self.now.hour < 16 and self.now.weekday() < 5
            for one in self.laptops:
                one.is_on = in_school and self.chance.random() < _IN_LESSON
        for one in self.laptops:
            if one.is_on and self.minute not in self.outage:
                if one.met_at is None:
                    one.met_at = self.now
                elif one.dies and one.has_it:
                    continue
                one.seen_at = self.now
        self.now += 5 * MINUTE
        self.minute += 5

    def counts(self) -> Counts:
        met = [one for one in self.laptops if one.met_at is not None]
        old = [one for one in met if one.met_at and one.met_at < self.now - 10 * MINUTE]
        with_it = [one for one in old if one.has_it]
        without = [one for one in old if not one.has_it]
        served = sum(one.has_it for one in met)
        return Counts(
            served=served,
            applied=served,
            polled=served,
            recent=len(with_it),
            recent_lost=sum(one.is_silent(self.now) for one in with_it),
            control=len(without),
            control_lost=sum(one.is_silent(self.now) for one in without),
            trouble_known=True,
            expected=served,
        )


def a_school(seed: int, count: int, served: int, *, dies: bool = False) -> School:
    chance = random.Random(seed)
    laptops = [Laptop(one < served, dies) for one in range(count)]
    return School(laptops, chance)


def stopped_within(school: School, span: timedelta) -> Rollout | None:
    """The rollout once it stops; `None` when it does not for so long."""
    rollout = domain.opened(asked_for(Plan((Batch("x", 10, soak=30 * DAY), *NOW.batches))), MONDAY)
    while school.now < MONDAY + span:
        for _ in range(3):
            school.tick()
        counts = school.counts()
        rollout = domain.looked(rollout, counts, school.now)
        step = domain.judged(rollout, counts, school.now, may_open=True)
        if step is not None:
            return step.after
    return None


@pytest.mark.parametrize(("count", "served"), [(100, 10), (200, 20), (200, 100), (60, 30)])
def test_school_days_stop_no_harmless_version(count: int, served: int) -> None:
    """Lids close in the afternoon and open in the morning, and the service was away for an hour."""
    for seed in range(2):
        school = a_school(seed, count, served)
        school.outage = range(120, 180)
        assert stopped_within(school, 2 * DAY) is None


def test_a_version_that_cuts_devices_off_stops_within_the_hour() -> None:
    """On a usual school day; a batch of three is enough."""
    for seed, (count, served) in enumerate(((100, 10), (300, 30), (1000, 100))):
        found = stopped_within(a_school(seed, count, served, dies=True), 2 * HOUR)
        assert found is not None
        assert (found.state, found.reason) == (State.STOPPED, "WENT_SILENT")


def test_silence_has_to_last() -> None:
    """One bad look in half an hour stops nothing."""
    rollout = open_one()
    silent = replace(WELL, recent_lost=10)
    rollout = domain.looked(rollout, silent, MONDAY + 11 * MINUTE)
    assert at(rollout, silent, MONDAY + 20 * MINUTE) is None
    calm = domain.looked(rollout, WELL, MONDAY + 30 * MINUTE)
    assert at(calm, silent, MONDAY + 45 * MINUTE) is None
    assert put(at(rollout, silent, MONDAY + 45 * MINUTE), MONDAY).state is State.STOPPED


def test_a_batch_with_suspicious_silence_does_not_pass() -> None:
    """Two of three are too few to stop it, and no reason to go on."""
    rollout = open_one()
    two = replace(WELL, served=3, applied=1, polled=1, recent=3, recent_lost=2, control=200)
    assert at(rollout, two, MONDAY + 2 * DAY) is None
    paused = put(at(rollout, two, MONDAY + 9 * DAY), MONDAY + 9 * DAY)
    assert (paused.state, paused.reason) == (State.PAUSED, "WENT_SILENT")


# Freezes and windows


def test_in_a_freeze_nothing_opens_and_nothing_completes() -> None:
    """Neither the next batch nor, after the last one, all devices that were off."""
    rollout = open_one()
    assert at(rollout, WELL, MONDAY + 2 * DAY, may_open=False) is None
    last = open_one(NOW)
    seen = replace(WELL, served=20, applied=20, polled=20, expected=100)
    assert at(last, seen, MONDAY + 2 * HOUR, may_open=False) is None
    done = at(last, seen, MONDAY + 2 * HOUR)
    assert done is not None and Happened.COMPLETED in done.happened


def test_closed_times_are_no_soak() -> None:
    """A batch that was opened a minute before the weekend is as unsoaked on Monday."""
    rollout = domain.serving(open_one(), MONDAY + MINUTE, serves=False)
    later = domain.serving(rollout, MONDAY + 3 * DAY, serves=True)
    assert not later.is_soaked(MONDAY + 3 * DAY + 23 * HOUR)
    assert later.is_soaked(MONDAY + 4 * DAY)
    lacking = replace(WELL, served=0, applied=0, polled=0, recent=0)
    assert at(later, lacking, MONDAY + 10 * DAY) is None
    assert put(at(later, lacking, MONDAY + 11 * DAY), MONDAY).reason == "NOT_ENOUGH_SEEN"


def test_only_a_window_began_or_ended() -> None:
    """That changes no etag."""
    rollout = open_one()
    assert domain.is_edge(rollout, domain.serving(rollout, MONDAY + HOUR, serves=False))
    assert not domain.is_edge(rollout, domain.paused(rollout, "").after)


# Pauses and stops


def test_resumed_after_a_week_it_waits_for_another_one() -> None:
    """Holidays are longer than a week."""
    lacking = replace(WELL, served=1, applied=1, polled=1, expected=100)
    then = MONDAY + 8 * DAY + MINUTE
    paused = put(at(open_one(), lacking, then), then)
    assert (paused.state, paused.reason) == (State.PAUSED, "NOT_ENOUGH_SEEN")
    then += 40 * DAY
    resumed = put(domain.resumed(paused, ""), then)
    assert at(resumed, lacking, then + MINUTE) is None
    assert at(resumed, lacking, then + 6 * DAY) is None
    assert put(at(resumed, lacking, then + 8 * DAY), then).state is State.PAUSED
    passed = at(resumed, WELL, then + MINUTE)
    assert passed is not None and Happened.BATCH_OPENED in passed.happened


def test_resumed_after_a_stop_it_needs_evidence() -> None:
    """All that count no more prove nothing."""
    then = MONDAY + 25 * HOUR
    stopped = put(at(open_one(), replace(WELL, applied=0, failed=10), then), then)
    assert (stopped.state, stopped.reason) == (State.STOPPED, "NOT_APPLIED")
    step = domain.resumed(stopped, "The server was down")
    assert step.excuses
    resumed = put(step, then)
    excused = Counts(excused=10, expected=10, trouble_known=True)
    assert at(resumed, excused, then + MINUTE) is None
    assert at(resumed, excused, then + 2 * DAY) is None
    assert at(resumed, WELL, then + 23 * HOUR) is None
    passed = at(resumed, replace(excused, served=1, applied=1, polled=1, expected=11), then + DAY)
    assert passed is not None and Happened.BATCH_OPENED in passed.happened


def test_laptops_in_drawers_neither_block_nor_pass() -> None:
    """Those that did not poll since they got it count for nothing; one may always be missing."""
    then = MONDAY + 25 * HOUR
    for counts in (
        replace(WELL, served=10, applied=9, polled=9, expected=12),
        replace(WELL, served=4, applied=3, polled=4, expected=4),
        replace(WELL, served=0, applied=0, polled=0, expected=0),
    ):
        assert at(open_one(), counts, then) is not None
    for counts in (
        replace(WELL, served=10, applied=8, polled=10),
        replace(WELL, served=2, applied=0, polled=0, expected=2),
        replace(WELL, served=1, applied=0, polled=1, expected=1),
    ):
        assert at(open_one(), counts, then) is None


# Second persons


def test_a_first_batch_can_wait_for_approval() -> None:
    """It is not opened, however the rollout came to be scheduled."""
    plan = Plan((Batch("pilots", 10, approval=True), *NOW.batches))
    waiting = put(at(asked_for(plan), Counts(), MONDAY), MONDAY)
    assert waiting.state is State.AWAITING_APPROVAL
    paused = asked_for(plan, state=State.PAUSED)
    assert domain.resumed(paused, "").after.state is State.AWAITING_APPROVAL
    with pytest.raises(DomainError) as refused:
        domain.advanced(paused, "", MONDAY)
    assert refused.value.reason == "APPROVAL_NEEDED"
    let_go = put(domain.approved(waiting, UUID(int=2), "bert"), MONDAY)
    assert put(at(let_go, Counts(), MONDAY), MONDAY).batch == 0


def test_one_that_waits_between_batches_can_be_paused() -> None:
    """And waits again when it goes on."""
    plan = Plan((Batch("x", 10), Batch("all", 100, approval=True)))
    then = MONDAY + 25 * HOUR
    waiting = put(at(open_one(plan), WELL, then), then)
    assert (waiting.state, waiting.serves) == (State.AWAITING_APPROVAL, True)
    paused = put(domain.paused(waiting, ""), then)
    assert not paused.serves
    resumed = put(domain.resumed(paused, ""), then)
    assert put(at(resumed, WELL, then), then).state is State.AWAITING_APPROVAL


def test_nothing_is_advanced_before_its_time() -> None:
    """A pause does not move the start."""
    paused = asked_for(state=State.PAUSED, starts_at=MONDAY + DAY)
    with pytest.raises(DomainError) as refused:
        domain.advanced(paused, "", MONDAY)
    assert refused.value.reason == "ROLLOUT_STATE"
