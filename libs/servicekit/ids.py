"""Identifiers and time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

from uuid_utils.compat import uuid7

Clock = Callable[[], datetime]
"""Answers the present time, in UTC; tests inject their own."""


def new_id() -> UUID:
    """A UUIDv7 (RFC 9562): unique, and ordered by the time it was made."""
    return uuid7()


def now() -> datetime:
    """The present time, in UTC."""
    return datetime.now(UTC)
