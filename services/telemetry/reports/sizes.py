"""How many bytes of a storage budget reports count."""

from __future__ import annotations

from collections.abc import Iterable

from services.telemetry.reports.events import NewEvent
from services.telemetry.reports.state import State
from services.telemetry.storage.domain import OVERHEAD


def size_of_events(events: Iterable[NewEvent]) -> int:
    """Bytes that events count."""
    size = 0
    for event in events:
        size += OVERHEAD + len(event.event_id) + len(event.type) + len(event.message)
        if (payload := event.payload) is not None:
            size += len(payload) if payload.isascii() else len(payload.encode())
    return size


def size_of_state(state: State) -> int:
    """Bytes that a state counts."""
    apps = state.installed_apps
    return OVERHEAD + len(apps or "") + len(state.update_status) + len(state.last_error)
