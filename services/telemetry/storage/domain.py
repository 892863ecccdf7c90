"""How much of the disk a device and its organisation may fill: of what is stored on a day (UTC)."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, time, timedelta
from enum import Enum
from typing import Final

from servicekit.errors import Code, DomainError

OVERHEAD: Final = 256
"""Bytes that a row takes beside its texts, with its part of the indexes."""
_SPREAD_SECONDS: Final = 900.0


class What(Enum):
    """What is counted, by whom."""

    DEVICE_EVENTS = "device_events"
    DEVICE_STATES = "device_states"
    TENANT_EVENTS = "tenant_events"
    TENANT_STATES = "tenant_states"


_NAMES: Final = {
    What.DEVICE_EVENTS: "device stored {} bytes of events today",
    What.DEVICE_STATES: "device stored {} bytes of states today",
    What.TENANT_EVENTS: "organisation's devices stored {} bytes of events today",
    What.TENANT_STATES: "organisation's devices stored {} bytes of states today",
}


def day_of(moment: datetime) -> date:
    """The day that a moment counts for."""
    return moment.astimezone(UTC).date()


def refused(what: What, limit: int, moment: datetime) -> DomainError:
    """A budget is used up. What is refused is taken when the next day has begun.

    A batch is taken whole when the budget is not used up yet, however large it is: so each batch
    that a body can hold is taken sooner or later.
    """
    again = datetime.combine(day_of(moment) + timedelta(days=1), time(), UTC)
    # Not all that were refused come back in the same moment.
    spread = random.uniform(1, _SPREAD_SECONDS)  # noqa: S311 - not a secret
    return DomainError(
        Code.RESOURCE_EXHAUSTED,
        "STORAGE_BUDGET_USED",
        f"the {_NAMES[what].format(limit)}, which is the limit; send it again after"
        f" {again:%Y-%m-%dT%H:%MZ}",
        metadata={"limit": f"{what.value}_a_day", "bytes": str(limit)},
        retry_after=(again - moment).total_seconds() + spread,
    )
