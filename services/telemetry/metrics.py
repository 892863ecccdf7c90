"""What telemetry counts (Prometheus)."""

from __future__ import annotations

from prometheus_client import Counter

EVENTS = Counter(
    "evergreen_device_events_total",
    "Events that devices sent, by what became of them.",
    ["outcome"],
)
STATES = Counter(
    "evergreen_device_states_total",
    "States that devices sent, by what became of them.",
    ["outcome"],
)
