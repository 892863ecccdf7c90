"""Events as lists have them, and what lists ask for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Final
from uuid import UUID

from servicekit.rpc.pagination import Page, TimePosition

RECEIVED_ORDER: Final = "receivedAt desc"
"""The order of receipt, as a request names it."""


class EventOrder(Enum):
    """What a list is ordered by, newest first. The value is the column."""

    OCCURRED = "occurred_at"
    RECEIVED = "received_at"


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event of a device. `payload` is JSON text, or `None`.

    `occurred_at` is what the device said. When its clock was off, lists have the event where it was
    received; `listed_at` is that time.
    """

    id: UUID
    tenant_id: UUID
    device_id: UUID
    type: str
    severity: str
    message: str
    payload: str | None
    occurred_at: datetime
    received_at: datetime
    listed_at: datetime

    @property
    def clock_off(self) -> bool:
        """Whether the device's clock was off when it happened."""
        return self.listed_at != self.occurred_at

    def position(self, order: EventOrder) -> TimePosition:
        """Where it stands in a list."""
        at = self.received_at if order is EventOrder.RECEIVED else self.listed_at
        return TimePosition(at, self.id)


EventPage = Page[StoredEvent, TimePosition]


@dataclass(frozen=True, slots=True)
class QuarantinedEvent:
    """A quarantined event; of its content the beginning, and how many bytes it has."""

    id: UUID
    tenant_id: UUID
    device_id: UUID
    reason: str
    content: str
    content_bytes: int
    received_at: datetime


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events to list."""

    device_id: UUID | None = None
    type: str = ""
    severity: str = ""
    search: str = ""
    occurred_from: datetime | None = None
    occurred_before: datetime | None = None
    received_from: datetime | None = None
    received_before: datetime | None = None
    as_of: str | None = None
    """Only what was committed in this snapshot of the database."""
    order: EventOrder = EventOrder.OCCURRED
