"""The rule of a poll, against the two steps that it was before it became one function."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.call import Caller, CallerKind
from servicekit.errors import DomainError
from services.policy.delivery.domain import UNCHANGED, Bundle, check_lapsed, decide, rotation_due
from services.policy.keys.signing import Statement

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
LIFE = timedelta(days=400)


def bundle(version: int) -> Bundle:
    return Bundle(version, b"{}", b"signature", Statement(b"", b"", "key"))


BUNDLES = {version: bundle(version) for version in range(1, 8)}
versions = st.integers(0, 7)
ages = st.one_of(
    st.none(),
    st.sampled_from([timedelta(0), LIFE / 2, LIFE, LIFE + timedelta(days=90)]),
    st.timedeltas(timedelta(0), LIFE + timedelta(days=100)),
)


@dataclass(frozen=True)
class Poll:
    """A poll, and what the world would say if it were asked."""

    device: Caller
    has: int
    want: Bundle | None
    asked: bool
    former: bool
    """Whether the version that the device names can be read."""
    identity: bool
    """Whether a new token can be had."""


@dataclass(frozen=True)
class Outcome:
    """What became of it."""

    version: int | None = None
    token: bool = False
    tried_token: bool = False
    read_former: bool = False
    served: bool = False


@st.composite
def polls(draw: st.DrawFn) -> Poll:
    age = draw(ages)
    issued = None if age is None else NOW - age
    expires = None if issued is None else issued + LIFE
    device = Caller(
        CallerKind.DEVICE,
        id=str(UUID(int=1)),
        tenant_id=str(UUID(int=2)),
        token_version=1,
        issued_at=issued if draw(st.booleans()) else None,
        expires_at=expires if draw(st.booleans()) else None,
    )
    want = BUNDLES.get(draw(versions))
    return Poll(
        device, draw(versions), want, draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    )


def decided(poll: Poll) -> Outcome:
    """What the service makes of a decision (`Delivery.deliver`)."""
    decision = decide(poll.device, poll.has, poll.want, poll.asked, NOW)
    if decision is UNCHANGED:
        return Outcome()
    read = decision.bundle is None
    found = decision.bundle or (BUNDLES.get(decision.has) if poll.former else None)
    if found is None:
        return Outcome(read_former=read)
    token = decision.new_token and poll.identity
    if not token and decision.only_with_token:
        return Outcome(tried_token=decision.new_token, read_former=read)
    return Outcome(found.version, token, decision.new_token, read, decision.fulfils_sync)


def before(poll: Poll) -> Outcome:
    """As `is_unchanged` and `pull` had it until 0.1.0, statement by statement."""
    device, has, wanted = poll.device, poll.has, poll.asked
    check_lapsed(device.expires_at, NOW)
    due = rotation_due(device.issued_at, device.expires_at, NOW)
    in_force = poll.want
    if (in_force is None or in_force.version <= has) and not wanted and not due:
        return Outcome()
    found = in_force
    if found is not None and (found.version < has or (found.version == has and not wanted)):
        found = None
    read = False
    if found is None and (due or wanted):
        if has == 0 or (in_force is not None and in_force.version == has):
            found = in_force if has else None
        else:
            read = True
            found = BUNDLES.get(has) if poll.former else None
    if found is None:
        return Outcome(read_former=read)
    token = due and poll.identity
    if not token and not wanted and found.version == has:
        return Outcome(tried_token=due, read_former=read)
    return Outcome(found.version, token, due, read, wanted)


@given(polls())
def test_a_poll_is_decided_as_it_was_in_two_steps(poll: Poll) -> None:
    """The same answer, with the same questions to the database and to identity."""
    try:
        expected = before(poll)
    except DomainError as lapsed:
        with pytest.raises(DomainError) as refused:
            decide(poll.device, poll.has, poll.want, poll.asked, NOW)
        assert refused.value.reason == lapsed.reason == "TOKEN_EXPIRED"
    else:
        assert decided(poll) == expected


@given(polls())
def test_no_device_gets_an_older_version(poll: Poll) -> None:
    """Never a lower version than it has, and never the one that it has without a reason."""
    try:
        decision = decide(poll.device, poll.has, poll.want, poll.asked, NOW)
    except DomainError:
        return
    if decision.bundle is not None:
        assert decision.bundle.version >= poll.has
    if decision is not UNCHANGED and not (decision.new_token or decision.fulfils_sync):
        assert decision.bundle is not None
        assert decision.bundle.version > poll.has


@given(polls())
def test_a_satisfied_device_is_told_so(poll: Poll) -> None:
    """Whoever holds what is in force, with a young token and no wish, is answered "unchanged"."""
    young = Caller(
        CallerKind.DEVICE,
        issued_at=NOW - timedelta(days=1),
        expires_at=NOW - timedelta(days=1) + LIFE,
    )
    has = poll.want.version if poll.want else poll.has
    assert decide(young, has, poll.want, False, NOW) is UNCHANGED
