"""What one page of the fleet's list is to show."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from servicekit.data.postgres import Scope
from services.telemetry.inventory.domain import DeviceFilter, DevicePage, NamePosition

SCAN: Final = 10_000
"""Devices that a page reads at most when it looks for something that no index finds."""


@dataclass(frozen=True, slots=True)
class DeviceQuery:
    """The next devices of a scope that a filter lets through, by name.

    Args:
        after: behind which one; `None` for the first page.
        limit: how many.
        online_since: a device that was heard of since then is online.
        at: the time as of which devices fall short of what is asked of their boots.
        scan: how many devices may be read for it.
    """

    scope: Scope
    wanted: DeviceFilter
    after: NamePosition | None
    limit: int
    online_since: datetime
    at: datetime
    scan: int = SCAN

    def is_answered(self, page: DevicePage) -> bool:
        """Whether the page is full, or the list's last one."""
        return page.after is None or len(page.items) == self.limit

    def rest(self, page: DevicePage) -> DeviceQuery:
        """What is still to be found behind a page that is not full."""
        return replace(self, after=page.after, limit=self.limit - len(page.items))
