"""What of calls is counted, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from servicekit.observability.metrics import CallMetrics, Outcomes


def test_calls_and_their_times() -> None:
    """Counts by RPC and outcome; times in buckets that hold all that took no longer."""
    registry = CollectorRegistry()
    calls = CallMetrics(registry)
    calls.note("/a", "OK", 0.001)
    calls.note("/a", "OK", 0.0011)
    calls.note("/a", "NOT_FOUND", 60)
    calls.note("/b", "OK", 0.3)
    calls.in_flight += 2

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    assert value("evergreen_calls_total", rpc="/a", code="OK") == 2
    assert value("evergreen_calls_total", rpc="/a", code="NOT_FOUND") == 1
    assert value("evergreen_calls_in_flight") == 2
    buckets = "evergreen_call_seconds_bucket"
    assert value(buckets, rpc="/a", le="0.001") == 1
    assert value(buckets, rpc="/a", le="0.0025") == 2
    assert value(buckets, rpc="/a", le="10.0") == 2
    assert value(buckets, rpc="/a", le="+Inf") == 3
    assert value("evergreen_call_seconds_count", rpc="/a") == 3
    assert value("evergreen_call_seconds_sum", rpc="/b") == 0.3


def test_outcomes() -> None:
    """A counter by outcome."""
    registry = CollectorRegistry()
    polls = Outcomes(registry, "polls", "Polls.")
    polls.note("delivered")
    polls.note("not_modified", 3)
    assert registry.get_sample_value("polls_total", {"outcome": "delivered"}) == 1
    assert registry.get_sample_value("polls_total", {"outcome": "not_modified"}) == 3
