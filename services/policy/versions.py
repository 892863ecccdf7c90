"""Versions of an organisation's policy: numbers that only grow."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from services.policy.keys.signing import Statement

MAX_VERSION = 10**18 - 1
# A device may name any version. What it says can move an organisation's counter only this far,
# so that no device can use the counter up: a thousand million jumps remain. It is more than the
# numbers that a restore leaves out.
MAX_JUMP = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Version:
    """A published version: what was authored, the exact bytes, and their two signatures."""

    tenant_id: UUID
    version: int
    policy_id: UUID
    authored: str = field(repr=False)
    document: bytes = field(repr=False)
    signature: bytes
    statement: Statement = field(repr=False)
    rollback_of: int | None
    published_at: datetime
    published_by: str
    layer: str | None = field(default=None, repr=False)
    """What it sets by itself, as `layering.Own` writes it; `None` of the last release."""
    inherits: bool = False
    """Whether `document` has something of layers above."""
    targets: str | None = None
    """The groups and devices that it was published for, as they are stored; `None` for all."""
    leaves: frozenset[str] = frozenset()
    """What it leaves to tenants below, as it is stored beside `layer`, which has it when it is
    read."""


def parse_version(text: str) -> int:
    """The version that a device names; 0 for none, and for what was never a version."""
    if text.isascii() and text.isdecimal() and len(text) <= 18:
        return int(text)
    return 0


def next_version(last: int, highest_reported: int) -> int:
    """The version of the next publish: above all that were published and all that devices have.

    Devices have higher versions than the database when it was restored from a backup; a lower
    version would never reach them. `highest_reported` is what devices say, up to `MAX_JUMP` above
    the last version.
    """
    version = max(last, min(highest_reported, last + MAX_JUMP)) + 1
    if version > MAX_VERSION:
        raise OverflowError("an organisation has used up its versions")
    return version
