"""Rollouts: their states, and when a batch passes or a rollout stops.

Nothing here looks at a clock or a database. What a rollout may become is in this file alone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from contract.events.policy import RolloutSnapshot
from servicekit.errors import DomainError, failed_precondition, invalid_field
from services.policy.rollouts.chance import chance
from services.policy.rollouts.plans import Health, Plan
from services.policy.stamps.domain import BUCKETS
from services.policy.targets.domain import PolicyTargets

MOST_LIVE: Final = 3
"""Rollouts of an organisation that deliveries look at; another one waits until one ends."""
MOST_OPEN: Final = 20
"""Rollouts of an organisation that are not at their end, with those that wait."""
CONFIRMED_PERCENT: Final = 95
"""So many of the devices that polled after they got the version have to have applied it before a
batch passes; one may always be missing."""
_MOST_WAITING: Final = timedelta(days=7)
"""So long a batch may serve devices without passing, beyond its soak."""
_STOPS_BELOW: Final = 1 / 10_000
"""Silence stops a rollout when it is so unlikely to be chance, in looks that are
`_LOOKS_APART` apart."""
_HOLDS_BELOW: Final = 1 / 100
"""No batch passes while silence is so unlikely to be chance."""
_LOOKS_APART: Final = timedelta(minutes=30)
MOST_WATCHED: Final = timedelta(days=30)
"""So long devices are watched for which a rollout was taken back."""


class State(StrEnum):
    """What a rollout does."""

    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    SCHEDULED = "SCHEDULED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    STOPPED = "STOPPED"
    COMPLETED = "COMPLETED"
    ROLLED_BACK = "ROLLED_BACK"
    CANCELED = "CANCELED"
    SUPERSEDED = "SUPERSEDED"


OPEN: Final = (
    State.AWAITING_APPROVAL,
    State.SCHEDULED,
    State.RUNNING,
    State.PAUSED,
    State.STOPPED,
)
"""It is not at its end."""


class DeviceState(StrEnum):
    """How a device does in a rollout."""

    WAITING = "WAITING"
    DELIVERED = "DELIVERED"
    APPLIED = "APPLIED"
    FAILED = "FAILED"
    LOST = "LOST"
    RETURNED = "RETURNED"


class Happened(StrEnum):
    """What is told of a rollout, in the words of events."""

    CREATED = "created"
    APPROVED = "approved"
    STARTED = "started"
    BATCH_OPENED = "batch_opened"
    BATCH_PASSED = "batch_passed"
    PAUSED = "paused"
    RESUMED = "resumed"
    STOPPED = "stopped"
    ROLLED_BACK = "rolled_back"
    COMPLETED = "completed"
    SUPERSEDED = "superseded"
    CANCELED = "canceled"


@dataclass(frozen=True, slots=True)
class Counts:
    """What was seen of the devices of a rollout."""

    served: int = 0
    applied: int = 0
    failed: int = 0
    trouble: int = 0
    lost: int = 0
    """Of those that got it, the ones that are silent: no poll since, or none for a day."""
    polled: int = 0
    """Of those that got it, the ones that polled again."""
    recent: int = 0
    """Of those that got it, the ones that were seen since the batch opened, ten minutes ago or
    more."""
    recent_lost: int = 0
    """Those of them that are silent."""
    control: int = 0
    """Devices without it that were seen since the batch opened, ten minutes ago or more."""
    control_lost: int = 0
    """Those of them that are silent: no poll since the first one of these, or none for a day."""
    excused: int = 0
    returned: int = 0
    waiting: int = 0
    """Devices without it that were seen within a day."""
    trouble_known: bool = False
    expected: int | None = None
    """Devices in open batches; `None` while it was not counted."""

    @property
    def lost_percent(self) -> float:
        """How much more devices with it went silent than devices without it; 0 with none of them.

        Both are watched from their first poll on: in the evening all are closed.
        """
        if not self.control or not self.recent:
            return 0.0
        return 100 * (self.recent_lost / self.recent - self.control_lost / self.control)

    def is_silent(self, health: Health, below: float) -> bool:
        """Whether more devices with it than allowed went silent, which is hardly chance."""
        return (
            self.recent_lost >= health.at_least
            and self.lost_percent > health.max_lost_percent
            and chance(self.recent_lost, self.recent, self.control_lost, self.control) < below
        )


@dataclass(frozen=True, slots=True)
class Rollout:
    """A version on its way to devices."""

    id: UUID
    tenant_id: UUID
    policy_id: UUID
    policy_name: str
    version: int
    targets: PolicyTargets
    base: str
    plan: Plan
    note: str
    urgent: bool
    salt: bytes
    state: State
    created_at: datetime
    created_by: UUID
    created_by_name: str
    starts_at: datetime
    reason: str = ""
    detail: str = ""
    batch: int = -1
    batch_opened_at: datetime | None = None
    served_for: timedelta = timedelta(0)
    """So long devices could get the open batch's version, until `serving_since`."""
    serving_since: datetime | None = None
    """Since when they can get it; `None` while they cannot."""
    suspected_at: datetime | None = None
    """Since when too many devices are silent; `None` while they are not."""
    approved_batch: int = -1
    below: int = 0
    open_groups: frozenset[UUID] = frozenset()
    serves: bool = False
    holds: bool = False
    live: bool = False
    counts: Counts | None = None
    approved_by: UUID | None = None
    approved_by_name: str = ""
    ended_at: datetime | None = None
    revision: int = 1

    @property
    def etag(self) -> str:
        """Changes with every change of its state."""
        return str(self.revision)

    @property
    def is_open(self) -> bool:
        """Whether it is not at its end."""
        return self.state in OPEN

    @property
    def has_begun(self) -> bool:
        """Whether a batch was opened."""
        return self.batch >= 0

    @property
    def is_in_last_batch(self) -> bool:
        """Whether no batch is left to open."""
        return self.batch + 1 == len(self.plan.batches)

    @property
    def needs_approval(self) -> bool:
        """Whether the next batch waits for somebody."""
        following = self.batch + 1
        return (
            following < len(self.plan.batches)
            and self.plan.batches[following].approval
            and self.approved_batch < following
        )

    def is_based_on(self, base: str, gone: Collection[UUID]) -> bool:
        """Whether what is in force for its devices is still what it was made upon.

        Args:
            base: what is in force now, as text.
            gone: groups and devices that are deleted, for which nothing is.
        """
        deleted = {str(one) for one in gone}
        before = [entry for entry in json.loads(self.base) if entry[0] not in deleted]
        now: list[object] = json.loads(base)
        return before == now

    def served_time(self, now: datetime) -> timedelta:
        """How long devices could get the open batch's version: freezes, closed windows and pauses
        do not count."""
        more = timedelta(0) if self.serving_since is None else now - self.serving_since
        return self.served_for + more

    def is_soaked(self, now: datetime) -> bool:
        """Whether the batch served devices for long enough."""
        return self.has_begun and self.served_time(now) >= self.plan.batches[self.batch].soak

    def snapshot(self, devices: tuple[UUID, ...] = ()) -> RolloutSnapshot:
        """The rollout as events have it."""
        return RolloutSnapshot(
            policy_id=self.policy_id,
            policy_name=self.policy_name,
            org_id=self.tenant_id,
            version=str(self.version),
            state=self.state.value,
            reason=self.reason,
            detail=self.detail,
            batch=self.batch + 1,
            batches=len(self.plan.batches),
            counts=None if self.counts is None else asdict(self.counts),
            devices=devices,
        )


@dataclass(frozen=True, slots=True)
class RolloutDevice:
    """How a device does in a rollout."""

    device_id: UUID
    state: DeviceState
    trouble: bool
    seen_at: datetime
    delivered_at: datetime | None
    applied_at: datetime | None


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of a rollout, and what is told of it in that order."""

    after: Rollout
    happened: tuple[Happened, ...] = ()
    excuses: bool = False
    """Whether what its devices did so far counts no more."""


def counts_of(text: str | None) -> Counts | None:
    """Counts as they are stored."""
    if text is None:
        return None
    found: Mapping[str, Any] = json.loads(text)
    return Counts(**found)


def in_state(rollout: Rollout, state: State, reason: str = "", detail: str = "") -> Rollout:
    """The rollout in another state, with all that follows for deliveries."""
    goes_on = state in {State.RUNNING, State.AWAITING_APPROVAL} and rollout.has_begun
    return replace(
        rollout,
        state=state,
        reason=reason,
        detail=detail,
        serves=rollout.serves and goes_on,
        holds=rollout.has_begun and state not in {State.COMPLETED, State.ROLLED_BACK},
        live=rollout.has_begun and state is not State.COMPLETED,
    )


def forgotten(rollout: Rollout) -> Rollout:
    """A rollout that deliveries do not look at any more."""
    return replace(rollout, serves=False, holds=False, live=False)


def ended(rollout: Rollout, state: State, now: datetime, reason: str, detail: str = "") -> Rollout:
    """The rollout at its end."""
    return replace(in_state(rollout, state, reason, detail), ended_at=now)


def serving(rollout: Rollout, now: datetime, *, serves: bool) -> Rollout:
    """The rollout with its devices getting the version from now on, or not."""
    if serves == (rollout.serving_since is not None):
        return replace(rollout, serves=serves)
    since = now if serves else None
    served_for = rollout.served_time(now)
    return replace(rollout, serves=serves, serving_since=since, served_for=served_for)


def is_edge(before: Rollout, after: Rollout) -> bool:
    """Whether all that changed is that a window or a freeze began or ended."""
    return before == replace(
        after,
        serves=before.serves,
        serving_since=before.serving_since,
        served_for=before.served_for,
    )


def opened(rollout: Rollout, now: datetime) -> Rollout:
    """The rollout with its next batch open."""
    batch = rollout.plan.batches[rollout.batch + 1]
    found = replace(
        rollout,
        batch=rollout.batch + 1,
        batch_opened_at=now,
        served_for=timedelta(0),
        serving_since=now,
        suspected_at=None,
        serves=True,
        below=max(rollout.below, batch.percent * BUCKETS // 100),
        open_groups=rollout.open_groups | set(batch.group_ids),
    )
    return in_state(found, State.RUNNING)


# What happens by itself


def looked(rollout: Rollout, counts: Counts, now: datetime) -> Rollout:
    """The rollout with what was counted."""
    suspected_at: datetime | None = rollout.suspected_at or now
    if not counts.is_silent(rollout.plan.health, _STOPS_BELOW):
        suspected_at = None
    return replace(rollout, counts=counts, suspected_at=suspected_at)


def broken_limit(rollout: Rollout, counts: Counts, now: datetime) -> tuple[str, str] | None:
    """The limit that is broken, as a word and a sentence.

    A few devices that fail stop nothing at once: when the batch could pass, one is enough. Silence
    has to be more than chance, and to last.
    """
    health = rollout.plan.health
    least = 1 if rollout.is_soaked(now) else health.at_least
    found = (
        ("NOT_APPLIED", counts.failed, health.max_failed_percent, "did not apply it"),
        ("TROUBLE", counts.trouble, health.max_trouble_percent, "tell of failures since"),
    )
    for word, bad, limit, what in found:
        if bad >= least and bad * 100 > limit * counts.served:
            return word, f"{bad} of {counts.served} devices {what}; the limit is {limit} percent"
    if rollout.suspected_at is not None and now >= rollout.suspected_at + _LOOKS_APART:
        return _silence(counts, health)
    return None


def _silence(counts: Counts, health: Health) -> tuple[str, str]:
    return "WENT_SILENT", (
        f"{counts.recent_lost} of {counts.recent} devices went silent after they got it, and"
        f" {counts.control_lost} of {counts.control} without it; the limit is"
        f" {health.max_lost_percent} percent more"
    )


def missing(rollout: Rollout, counts: Counts) -> tuple[str, str] | None:
    """What a batch that was open for long enough lacks to pass, as a word and a sentence."""
    health = rollout.plan.health
    expected = counts.expected
    wanted = 0 if expected is None else expected - counts.excused
    if expected is None or counts.served * 100 < health.min_seen_percent * wanted:
        return "NOT_ENOUGH_SEEN", (
            f"{counts.served} of {expected or 0} devices got it; {health.min_seen_percent} percent"
            " are asked for"
        )
    if expected and not counts.applied:
        return "NOT_CONFIRMED", (
            f"none of {counts.served} devices that count has applied it; one at least is asked for"
        )
    lacks = counts.polled - counts.applied
    if lacks > 1 and counts.applied * 100 < CONFIRMED_PERCENT * counts.polled:
        return "NOT_CONFIRMED", (
            f"{counts.applied} of {counts.polled} devices that polled again have applied it;"
            f" {CONFIRMED_PERCENT} percent are asked for"
        )
    if counts.is_silent(replace(health, at_least=1), _HOLDS_BELOW):
        return _silence(counts, health)
    if not counts.trouble_known:
        return "TROUBLE_UNKNOWN", "what devices tell of failures cannot be read"
    pace = rollout.plan.max_per_minute
    if pace and rollout.is_in_last_batch and counts.waiting > pace:
        # At the end all get it that ask.
        return "PACE", f"{counts.waiting} devices wait for it; {pace} get it within a minute"
    return None


def judged(rollout: Rollout, counts: Counts, now: datetime, *, may_open: bool) -> Step | None:
    """What becomes of a rollout by itself; `None` for nothing.

    Args:
        rollout: as `looked` left it.
        counts: what was counted.
        now: when.
        may_open: whether more devices may get it now; not outside of windows, and in freezes.
    """
    if rollout.state is State.SCHEDULED:
        if rollout.needs_approval:
            return Step(in_state(rollout, State.AWAITING_APPROVAL))
        if now < rollout.starts_at or not may_open:
            return None
        return Step(opened(rollout, now), (Happened.STARTED, Happened.BATCH_OPENED))
    if rollout.state not in {State.RUNNING, State.AWAITING_APPROVAL} or not rollout.has_begun:
        return None
    counted = looked(rollout, counts, now)
    if broken := broken_limit(counted, counts, now):
        if rollout.plan.roll_back:
            after = ended(counted, State.ROLLED_BACK, now, *broken)
            return Step(after, (Happened.STOPPED, Happened.ROLLED_BACK))
        return Step(in_state(counted, State.STOPPED, *broken), (Happened.STOPPED,))
    if rollout.state is State.AWAITING_APPROVAL or not rollout.is_soaked(now):
        return None
    if lacks := missing(rollout, counts):
        soak = rollout.plan.batches[rollout.batch].soak
        if rollout.served_time(now) < soak + _MOST_WAITING:
            return None
        return Step(in_state(counted, State.PAUSED, *lacks), (Happened.PAUSED,))
    return _passed(counted, now, may_open=may_open)


def _passed(rollout: Rollout, now: datetime, *, may_open: bool) -> Step | None:
    if rollout.needs_approval:
        return Step(in_state(rollout, State.AWAITING_APPROVAL, "BATCH"), (Happened.BATCH_PASSED,))
    if not may_open:
        return None
    if rollout.is_in_last_batch:
        # All get it now that did not yet.
        after = ended(rollout, State.COMPLETED, now, "")
        return Step(after, (Happened.BATCH_PASSED, Happened.COMPLETED))
    return Step(opened(rollout, now), (Happened.BATCH_PASSED, Happened.BATCH_OPENED))


# What administrators do


def approved(rollout: Rollout, by: UUID, name: str) -> Step:
    """Somebody else than who asked for the rollout lets it go on."""
    if rollout.state is not State.AWAITING_APPROVAL:
        raise _not_in(rollout, "nothing of it waits for approval")
    if by == rollout.created_by:
        raise failed_precondition(
            "SECOND_PERSON_NEEDED", "somebody else than who asked for the rollout has to approve it"
        )
    named = replace(
        rollout, approved_by=by, approved_by_name=name, approved_batch=rollout.batch + 1
    )
    state = State.RUNNING if rollout.has_begun else State.SCHEDULED
    return Step(in_state(named, state), (Happened.APPROVED,))


def paused(rollout: Rollout, detail: str) -> Step:
    """No device gets it any more; those that have it keep it."""
    if rollout.state is State.PAUSED:
        return Step(rollout)
    serves_on = rollout.state is State.AWAITING_APPROVAL and rollout.has_begun
    if rollout.state not in {State.RUNNING, State.SCHEDULED} and not serves_on:
        raise _not_in(rollout, "it does not run")
    return Step(in_state(rollout, State.PAUSED, "ADMIN", detail), (Happened.PAUSED,))


def resumed(rollout: Rollout, detail: str) -> Step:
    """It goes on where it was paused or stopped.

    After a pause it waits for another week; after a stop for the whole soak, and for devices that
    did nothing wrong yet.
    """
    if rollout.state in {State.RUNNING, State.SCHEDULED}:
        return Step(rollout)
    if rollout.state not in {State.PAUSED, State.STOPPED}:
        raise _not_in(rollout, "it is neither paused nor stopped")
    _ask_for_reason(rollout, detail)
    if not rollout.has_begun:
        state = State.AWAITING_APPROVAL if rollout.needs_approval else State.SCHEDULED
        return Step(in_state(rollout, state, "ADMIN", detail), (Happened.RESUMED,))
    excuses = rollout.state is State.STOPPED
    soak = rollout.plan.batches[rollout.batch].soak
    after = replace(
        in_state(rollout, State.RUNNING, "ADMIN", detail),
        served_for=timedelta(0) if excuses else min(rollout.served_for, soak),
        suspected_at=None,
    )
    return Step(after, (Happened.RESUMED,), excuses)


def advanced(rollout: Rollout, detail: str, now: datetime) -> Step:
    """The next batch is opened at once; behind the last one the rollout is complete."""
    if rollout.state not in {State.RUNNING, State.PAUSED, State.STOPPED}:
        raise _not_in(rollout, "it neither runs nor is paused or stopped")
    _ask_for_reason(rollout, detail)
    if rollout.needs_approval:
        raise failed_precondition(
            "APPROVAL_NEEDED", "the next batch waits for approval once this one has passed"
        )
    if not rollout.has_begun and now < rollout.starts_at:
        raise _not_in(rollout, "its first batch is opened at the time that was asked for")
    excuses = rollout.state is State.STOPPED
    if rollout.is_in_last_batch:
        after = ended(rollout, State.COMPLETED, now, "ADMIN", detail)
        return Step(after, (Happened.COMPLETED,), excuses)
    after = replace(opened(rollout, now), reason="ADMIN", detail=detail)
    first = () if rollout.has_begun else (Happened.STARTED,)
    return Step(after, (*first, Happened.BATCH_OPENED), excuses)


def canceled(rollout: Rollout, detail: str, now: datetime) -> Step:
    """It goes no further; devices that have it keep it until the next publish."""
    if rollout.state is State.CANCELED:
        return Step(rollout)
    if not rollout.is_open:
        raise _not_in(rollout, "it is at its end")
    return Step(ended(rollout, State.CANCELED, now, "ADMIN", detail), (Happened.CANCELED,))


def rolled_back(rollout: Rollout, detail: str, now: datetime) -> Step:
    """Devices that have it get what is in force, under a higher number."""
    if rollout.state is State.ROLLED_BACK:
        return Step(rollout)
    if rollout.state is State.COMPLETED:
        raise _not_in(rollout, "it is complete; roll the policy back to an earlier version")
    if not rollout.live:
        raise _not_in(rollout, "no device has it; cancel it")
    after = ended(rollout, State.ROLLED_BACK, now, "ADMIN", detail)
    return Step(after, (Happened.ROLLED_BACK,))


def superseded(rollout: Rollout, now: datetime, *, keep: bool, reason: str = "PUBLISHED") -> Step:
    """Something else is published for its devices.

    Args:
        keep: whether devices that have it keep it until they get that.
    """
    after = rollout
    happened: tuple[Happened, ...] = ()
    if rollout.is_open:
        after = ended(rollout, State.SUPERSEDED, now, reason)
        happened = (Happened.SUPERSEDED,)
    return Step(after if keep else forgotten(after), happened)


def _ask_for_reason(rollout: Rollout, detail: str) -> None:
    if rollout.state is State.STOPPED and not detail:
        raise invalid_field("reason", "is required: the rollout stopped by itself")


def _not_in(rollout: Rollout, why: str) -> DomainError:
    return failed_precondition("ROLLOUT_STATE", f"the rollout is {rollout.state}: {why}")
