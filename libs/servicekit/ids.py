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


def given_id(text: str) -> UUID | None:
    """An id of a request whose rules were checked; `None` when it is not given."""
    return UUID(text) if text else None


def now() -> datetime:
    """The present time, in UTC."""
    return datetime.now(UTC)
