"""The rule of a poll, against the two steps that it was before it became one function."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.call import Caller, CallerKind
from servicekit.errors import DomainError
from services.policy.delivery.domain import UNCHANGED, check_lapsed, decide, rotation_due
from services.policy.stamps.domain import Content, Edition, Standing

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
LIFE = timedelta(days=400)


ORG = UUID(int=2)
A, B = (Content(ORG, digest * 32) for digest in (b"a", b"b"))
versions = st.integers(0, 7)


def in_force(version: int) -> Standing:
    """An organisation whose last publish has this number, as every one has without groups."""
    return Standing(Edition.of(A, (version,)) if version else None, version)


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
    want: int
    """The version in force; 0 for none."""
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
        tenant_id=str(ORG),
        token_version=1,
        issued_at=issued if draw(st.booleans()) else None,
        expires_at=expires if draw(st.booleans()) else None,
    )
    return Poll(
        device,
        draw(versions),
        draw(versions),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.booleans()),
    )


def decided(poll: Poll) -> Outcome:
    """What the service makes of a decision (`Delivery.deliver`)."""
    decision = decide(poll.device, poll.has, in_force(poll.want), poll.asked, NOW)
    if decision is UNCHANGED:
        return Outcome()
    assert decision.version, "numbers are drawn for groups alone"
    read = decision.edition is None
    if read and not poll.former:
        return Outcome(read_former=True)
    token = decision.new_token and poll.identity
    if not token and decision.only_with_token:
        return Outcome(tried_token=decision.new_token, read_former=read)
    return Outcome(decision.version, token, decision.new_token, read, decision.fulfils_sync)


def before(poll: Poll) -> Outcome:
    """As `is_unchanged` and `pull` had it until 0.1.0, statement by statement."""
    device, has, wanted = poll.device, poll.has, poll.asked
    check_lapsed(device.expires_at, NOW)
    due = rotation_due(device.issued_at, device.expires_at, NOW)
    version = poll.want
    if version <= has and not wanted and not due:
        return Outcome()
    found = version or None
    if found is not None and (found < has or (found == has and not wanted)):
        found = None
    read = False
    if found is None and (due or wanted):
        if has == 0 or (version and version == has):
            found = version if has else None
        else:
            read = True
            found = has if poll.former else None
    if found is None:
        return Outcome(read_former=read)
    token = due and poll.identity
    if not token and not wanted and found == has:
        return Outcome(tried_token=due, read_former=read)
    return Outcome(found, token, due, read, wanted)


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


@st.composite
def organisations(draw: st.DrawFn) -> Standing:
    """An organisation whose numbers were published and drawn in any order."""
    contents = draw(st.lists(st.sampled_from([A, B, None]), max_size=7))
    numbers = {
        content: [i for i, c in enumerate(contents, 1) if c is content] for content in (A, B)
    }
    want = draw(st.sampled_from([A, B, None]))
    stands = tuple(numbers.get(want, ())) if want is not None else ()
    return Standing(
        Edition.of(want, stands) if want is not None and stands else None, len(contents)
    )


@given(polls(), organisations())
def test_no_device_gets_an_older_version(poll: Poll, org: Standing) -> None:
    """Never a lower number than it has, and never the one that it has without a reason."""
    try:
        decision = decide(poll.device, poll.has, org, poll.asked, NOW)
    except DomainError:
        return
    if decision is UNCHANGED:
        return
    draws = decision.edition is not None and decision.version == 0
    assert draws or decision.version >= poll.has
    if draws:
        assert org.want is not None
        assert org.want.newest < poll.has <= org.last
    elif decision.version == poll.has:
        assert decision.new_token or decision.fulfils_sync
        assert decision.edition is None or poll.has in decision.edition.versions


@given(polls(), organisations())
def test_a_satisfied_device_is_told_so(poll: Poll, org: Standing) -> None:
    """Whatever number stands for what it has, with a young token and no wish it is left alone."""
    young = Caller(
        CallerKind.DEVICE,
        issued_at=NOW - timedelta(days=1),
        expires_at=NOW - timedelta(days=1) + LIFE,
    )
    for has in org.want.versions if org.want else (poll.has,):
        assert decide(young, has, org, False, NOW) is UNCHANGED


@given(st.integers(8, 10**18 - 1), organisations())
def test_what_nobody_gave_out_is_left_alone(has: int, org: Standing) -> None:
    """A liar, or a device from after the backup that was restored: the next publish is above it."""
    assert decide(Caller(CallerKind.DEVICE), has, org, False, NOW) is UNCHANGED


@given(polls(), organisations())
def test_a_restricted_device_gets_the_other_policy_or_nothing(poll: Poll, org: Standing) -> None:
    """Whatever number it names: that may stand for what is kept from it."""
    try:
        decision = decide(poll.device, poll.has, replace(org, restricted=True), poll.asked, NOW)
    except DomainError:
        return
    assert decision is UNCHANGED or decision.edition is not None
