"""What devices get, and when their tokens change."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from servicekit.call import Caller
from servicekit.errors import DomainError, unauthenticated
from services.policy.stamps.domain import Edition, Standing

LAPSED_TOKEN_LIFE = timedelta(days=90)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a poll is answered with: a policy, if it can be had, or else "not modified"."""

    edition: Edition | None = None
    """What the device gets; if `None`, the very content that it has, as it was signed then."""
    has: int = 0
    """The version that the device names; 0 for none."""
    version: int = 0
    """The number under which it gets it; 0 when there is none above `has`, and one has to be
    drawn."""
    new_token: bool = False
    """Whether its token is to be replaced, which it only takes together with a policy."""
    only_with_token: bool = False
    """Whether it needs no policy, unless a new token has to travel with one."""
    fulfils_sync: bool = False
    """Whether an administrator asked for this answer."""


UNCHANGED = Decision()
"""The device has everything that it needs; nearly every poll is answered so."""


def decide(device: Caller, has: int, org: Standing, asked: bool, now: datetime) -> Decision:
    """Decides a poll. This is the whole rule; nothing else looks at versions or lives of tokens.

    Contents are compared, not numbers: a device that has what it is to have is left alone, under
    whatever number that stands for it, and any other one gets it under a number above its own.
    Where nothing is in force, where the device may keep what a rollout brought it, and where it
    names a number that nobody gave out yet, it gets what it has, and that only to carry a token or
    because it was asked for. A restricted device does not: the number that it names may stand for
    what is kept from it.

    Args:
        device: who polls, with the life of its token.
        has: the version that it names; 0 for none.
        org: how it stands with its organisation.
        asked: whether an administrator wants it to apply its policy again.
        now: the time of the poll.

    Raises:
        DomainError: UNAUTHENTICATED when its token expired too long ago.
    """
    due = rotation_due(device.issued_at, device.expires_at, now)
    if due or device.issued_at is None:
        # A token that lapsed is past half of its life; nearly none is.
        check_lapsed(device.expires_at, now)
    want = org.want
    holds = want is not None and has in want.versions
    if want is not None and not holds and has not in org.keeps:
        if want.newest > has:
            return Decision(want, has, want.newest, due, fulfils_sync=asked)
        if has <= org.last:
            return Decision(want, has, 0, due, fulfils_sync=asked)
    if has == 0 or not (due or asked) or (org.restricted and not holds):
        return UNCHANGED
    held = want if holds else None
    return Decision(held, has, has, due, only_with_token=not asked, fulfils_sync=asked)


def rotation_due(issued_at: datetime | None, expires_at: datetime | None, now: datetime) -> bool:
    """Whether a device's token is past half of its life, or past all of it."""
    if issued_at is None or expires_at is None:
        return False
    return now >= issued_at + (expires_at - issued_at) / 2


def check_lapsed(expires_at: datetime | None, now: datetime) -> None:
    """Refuses a token that expired too long ago. Raises `DomainError` (UNAUTHENTICATED)."""
    if expires_at is not None and now > expires_at + LAPSED_TOKEN_LIFE:
        raise lapsed()


def lapsed() -> DomainError:
    """The device was away for too long; an administrator has to let it enroll again."""
    return unauthenticated(
        "TOKEN_EXPIRED", "the device token expired too long ago; enroll the device again"
    )
