"""The metrics that every service has (Prometheus)."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

CALLS = Counter("evergreen_calls_total", "Calls by outcome.", ["rpc", "code"])
CALL_SECONDS = Histogram(
    "evergreen_call_seconds",
    "Time to answer a call.",
    ["rpc"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2.5, 10),
)
IN_FLIGHT = Gauge("evergreen_calls_in_flight", "Calls that are being served.")
