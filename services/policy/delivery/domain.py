"""What devices get, and when their tokens change."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property

from servicekit.call import Caller
from servicekit.errors import DomainError, unauthenticated
from services.policy.authoring.agent_rules import fails
from services.policy.authoring.document import parse_document
from services.policy.keys.signing import Statement, envelope_head

LAPSED_TOKEN_LIFE = timedelta(days=90)


@dataclass(frozen=True, eq=False)
class Bundle:
    """What devices get of a version, kept in memory; equal only to itself."""

    version: int
    document: bytes = field(repr=False)
    signature: bytes
    statement: Statement = field(repr=False)

    def is_news_to(self, has: int) -> bool:
        """Whether a device that names this version has other, older content."""
        return self.version > has

    def is_held_by(self, has: int) -> bool:
        """Whether a device that names this version has this very content."""
        return self.version == has

    @cached_property
    def _head(self) -> bytes:
        return envelope_head(str(self.version), self.signature, self.document)

    @cached_property
    def fails(self) -> bool:
        """Whether the released agent ends with an error when it applies this version."""
        return fails(parse_document(json.loads(self.document)))

    @cached_property
    def envelope(self) -> bytes:
        """The released agent's ENVELOPE."""
        return self._head + b"}"

    def envelope_with(self, device_token: str) -> bytes:
        """The ENVELOPE with a new token for one device."""
        return self._head + b',"device_token":' + json.dumps(device_token).encode() + b"}"


@dataclass(frozen=True, slots=True)
class Decision:
    """What a poll is answered with: a policy, if it can be had, or else "not modified"."""

    bundle: Bundle | None = None
    """What the device gets; if `None`, the very content that it has, as it was signed then."""
    has: int = 0
    """The version that the device names; 0 for none."""
    new_token: bool = False
    """Whether its token is to be replaced, which it only takes together with a policy."""
    only_with_token: bool = False
    """Whether it needs no policy, unless a new token has to travel with one."""
    fulfils_sync: bool = False
    """Whether an administrator asked for this answer."""


UNCHANGED = Decision()
"""The device has everything that it needs; nearly every poll is answered so."""


def decide(device: Caller, has: int, want: Bundle | None, asked: bool, now: datetime) -> Decision:
    """Decides a poll. This is the whole rule; nothing else looks at versions or lives of tokens.

    A device never gets an older content than it has, whatever the database says. Where nothing is
    in force, or an older version than it has, it gets what it has, and that only to carry a token
    or because it was asked for.

    Args:
        device: who polls, with the life of its token.
        has: the version that it names; 0 for none.
        want: what is in force for it.
        asked: whether an administrator wants it to apply its policy again.
        now: the time of the poll.

    Raises:
        DomainError: UNAUTHENTICATED when its token expired too long ago.
    """
    due = rotation_due(device.issued_at, device.expires_at, now)
    if due or device.issued_at is None:
        # A token that lapsed is past half of its life; nearly none is.
        check_lapsed(device.expires_at, now)
    if want is not None and want.is_news_to(has):
        return Decision(want, has, due, fulfils_sync=asked)
    if has == 0 or not (due or asked):
        return UNCHANGED
    held = want if want is not None and want.is_held_by(has) else None
    return Decision(held, has, due, only_with_token=not asked, fulfils_sync=asked)


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
