"""What telemetry counts (Prometheus)."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

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
STATES_MENDED = Counter(
    "evergreen_device_states_mended_total",
    "States of which a field could not be stored as it was sent, and was changed, by the field.",
    ["field"],
)
QUEUE_WAIT = Histogram(
    "evergreen_queue_wait_seconds",
    "How long devices waited for a place to tell their queued states, by whether they got one.",
    ["outcome"],
    buckets=(0.1, 0.5, 1.0, 2.0, 4.0),
)
EVENTS_OLDEST = Gauge(
    "evergreen_device_events_oldest_seconds",
    "How long the oldest event of a device has waited to be published; 0 without any.",
)
EVENTS_EXPIRED = Counter(
    "evergreen_device_events_expired_total",
    "Events that were deleted one by one because their tenants keep them no longer.",
)
EVENTS_UNTIL = Gauge(
    "evergreen_device_events_until_timestamp_seconds",
    "Until when there are partitions for events.",
)
STORED = Counter(
    "evergreen_storage_bytes_total",
    "Bytes that devices had stored, as their budgets count them, by what they are; what went into"
    " quarantine is a part of the events.",
    ["what"],
)
STORAGE_REFUSED = Counter(
    "evergreen_storage_refused_total",
    "Calls of devices that were refused because a storage budget of the day is used, by whose.",
    ["what"],
)
STORAGE_USED = Gauge(
    "evergreen_storage_used_ratio",
    "The share of its storage budget that the device, or the organisation, with the most has used"
    " today.",
    ["what"],
)
QUARANTINE_DROPPED = Counter(
    "evergreen_quarantine_dropped_total",
    "Quarantined events that were deleted because the quarantine of their device, or of its"
    " organisation, was full.",
)
