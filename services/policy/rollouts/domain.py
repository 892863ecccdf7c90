"""Rollouts: their states, and when a batch passes or a rollout stops.

Nothing here looks at a clock or a database. What a rollout may become is in this file alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from contract.events.policy import RolloutSnapshot
from servicekit.errors import DomainError, failed_precondition, invalid_field
from services.policy.rollouts.plans import Plan
from services.policy.stamps.domain import BUCKETS
from services.policy.targets.domain import PolicyTargets

MOST_LIVE: Final = 3
"""Rollouts of an organisation that deliveries look at."""
CONFIRMED_PERCENT: Final = 95
"""So many of the devices that got the version have to have applied it before a batch passes."""
_MOST_WAITING: Final = timedelta(days=7)
"""So long a batch may be open without passing, beyond its soak."""
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
    recent: int = 0
    """Of those that got it, the ones that were seen since the batch opened."""
    recent_lost: int = 0
    control: int = 0
    """Devices without it that were seen since the batch opened."""
    control_lost: int = 0
    excused: int = 0
    returned: int = 0
    trouble_known: bool = False
    expected: int | None = None
    """Devices in open batches; `None` while it was not counted."""

    @property
    def lost_percent(self) -> float:
        """How much more devices with it went silent than devices without it; 0 with none of them.

        Of both the same minutes count: in the evening all are closed.
        """
        if not self.control or not self.recent:
            return 0.0
        return 100 * (self.recent_lost / self.recent - self.control_lost / self.control)


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

    def is_soaked(self, now: datetime) -> bool:
        """Whether the batch was open for long enough."""
        return (
            self.batch_opened_at is not None
            and now >= self.batch_opened_at + self.plan.batches[self.batch].soak
        )

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


def opened(rollout: Rollout, now: datetime) -> Rollout:
    """The rollout with its next batch open."""
    batch = rollout.plan.batches[rollout.batch + 1]
    found = replace(
        rollout,
        batch=rollout.batch + 1,
        batch_opened_at=now,
        below=max(rollout.below, batch.percent * BUCKETS // 100),
        open_groups=rollout.open_groups | set(batch.group_ids),
    )
    return in_state(found, State.RUNNING)


# What happens by itself


def broken_limit(rollout: Rollout, counts: Counts, now: datetime) -> tuple[str, str] | None:
    """The limit that is broken, as a word and a sentence.

    A few devices stop nothing at once: when the batch could pass, one is enough.
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
    if (
        counts.control >= least
        and counts.recent_lost >= least
        and counts.lost_percent > health.max_lost_percent
    ):
        return "WENT_SILENT", (
            f"{counts.recent_lost} of {counts.recent} devices went silent after they got it, and"
            f" {counts.control_lost} of {counts.control} without it; the limit is"
            f" {health.max_lost_percent} percent more"
        )
    return None


def missing(rollout: Rollout, counts: Counts) -> tuple[str, str] | None:
    """What a batch that was open for long enough lacks to pass, as a word and a sentence."""
    health = rollout.plan.health
    expected = counts.expected
    if expected is None or counts.served * 100 < health.min_seen_percent * (
        expected - counts.excused
    ):
        return "NOT_ENOUGH_SEEN", (
            f"{counts.served} of {expected or 0} devices got it; {health.min_seen_percent} percent"
            " are asked for"
        )
    if counts.applied * 100 < CONFIRMED_PERCENT * counts.served:
        return "NOT_CONFIRMED", (
            f"{counts.applied} of {counts.served} devices have applied it; {CONFIRMED_PERCENT}"
            " percent are asked for"
        )
    if not counts.trouble_known:
        return "TROUBLE_UNKNOWN", "what devices tell of failures cannot be read"
    return None


def judged(rollout: Rollout, counts: Counts, now: datetime, *, may_open: bool) -> Step | None:
    """What becomes of a rollout by itself; `None` for nothing.

    Args:
        may_open: whether a batch may be opened now; not outside of windows, and in freezes.
    """
    if rollout.state is State.SCHEDULED:
        if now < rollout.starts_at or not may_open:
            return None
        return Step(opened(rollout, now), (Happened.STARTED, Happened.BATCH_OPENED))
    if rollout.state not in {State.RUNNING, State.AWAITING_APPROVAL} or not rollout.has_begun:
        return None
    counted = replace(rollout, counts=counts)
    if broken := broken_limit(rollout, counts, now):
        if rollout.plan.roll_back:
            after = ended(counted, State.ROLLED_BACK, now, *broken)
            return Step(after, (Happened.STOPPED, Happened.ROLLED_BACK))
        return Step(in_state(counted, State.STOPPED, *broken), (Happened.STOPPED,))
    if rollout.state is State.AWAITING_APPROVAL or not rollout.is_soaked(now):
        return None
    if lacks := missing(rollout, counts):
        assert rollout.batch_opened_at is not None
        soak = rollout.plan.batches[rollout.batch].soak
        if now < rollout.batch_opened_at + soak + _MOST_WAITING:
            return None
        return Step(in_state(counted, State.PAUSED, *lacks), (Happened.PAUSED,))
    return _passed(counted, now, may_open=may_open)


def _passed(rollout: Rollout, now: datetime, *, may_open: bool) -> Step | None:
    following = rollout.batch + 1
    if following == len(rollout.plan.batches):
        after = ended(rollout, State.COMPLETED, now, "")
        return Step(after, (Happened.BATCH_PASSED, Happened.COMPLETED))
    if rollout.plan.batches[following].approval and rollout.approved_batch < following:
        return Step(in_state(rollout, State.AWAITING_APPROVAL, "BATCH"), (Happened.BATCH_PASSED,))
    if not may_open:
        return None
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
    if rollout.state not in {State.RUNNING, State.SCHEDULED}:
        raise _not_in(rollout, "it does not run")
    return Step(in_state(rollout, State.PAUSED, "ADMIN", detail), (Happened.PAUSED,))


def resumed(rollout: Rollout, detail: str) -> Step:
    """It goes on where it was paused or stopped."""
    if rollout.state in {State.RUNNING, State.SCHEDULED}:
        return Step(rollout)
    if rollout.state not in {State.PAUSED, State.STOPPED}:
        raise _not_in(rollout, "it is neither paused nor stopped")
    _ask_for_reason(rollout, detail)
    state = State.RUNNING if rollout.has_begun else State.SCHEDULED
    after = in_state(rollout, state, "ADMIN", detail)
    return Step(after, (Happened.RESUMED,), excuses=rollout.state is State.STOPPED)


def advanced(rollout: Rollout, detail: str, now: datetime) -> Step:
    """The next batch is opened at once; behind the last one the rollout is complete."""
    if rollout.state not in {State.RUNNING, State.PAUSED, State.STOPPED}:
        raise _not_in(rollout, "it neither runs nor is paused or stopped")
    _ask_for_reason(rollout, detail)
    following = rollout.batch + 1
    excuses = rollout.state is State.STOPPED
    if following == len(rollout.plan.batches):
        after = ended(rollout, State.COMPLETED, now, "ADMIN", detail)
        return Step(after, (Happened.COMPLETED,), excuses)
    if rollout.plan.batches[following].approval and rollout.approved_batch < following:
        raise failed_precondition(
            "APPROVAL_NEEDED", "the next batch waits for approval once this one has passed"
        )
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
        raise invalid_field("reason", "must be said: the rollout stopped by itself")


def _not_in(rollout: Rollout, why: str) -> DomainError:
    return failed_precondition("ROLLOUT_STATE", f"the rollout is {rollout.state}: {why}")
