"""How large a run is: `quick` for a developer's loop, `default`, and `full` for a release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes of a run. Times are in seconds."""

    name: str
    minutes: float
    """About how long it takes, to tell the person who waits."""
    devices: int
    """Devices that call, each with a token of its own."""
    connections: int
    """Connections that saturating rounds keep busy."""
    rounds: int
    seconds: float
    """Of each round of the fleet mix."""
    paced_seconds: float
    each_call: float = 0.0
    """Of each round of a single device call; 0 leaves them out."""
    ingest_seconds: float = 0.0
    small: tuple[int, int] = (0, 0)
    """Devices and stored events before the growth."""
    large: tuple[int, int] = (0, 0)
    """Devices and stored events after it; 0 leaves growth out."""
    queries: int = 0
    """How often each query of the console is asked, on the large database."""


PLANS: Final = {
    plan.name: plan
    for plan in (
        Plan("quick", 2, devices=5_000, connections=64, rounds=6, seconds=3, paced_seconds=6),
        Plan(
            "default",
            12,
            devices=20_000,
            connections=64,
            rounds=5,
            seconds=6,
            paced_seconds=40,
            each_call=5,
            ingest_seconds=15,
            small=(1_000, 100_000),
            large=(100_000, 1_000_000),
            queries=40,
        ),
        Plan(
            "full",
            45,
            devices=20_000,
            connections=64,
            rounds=6,
            seconds=8,
            paced_seconds=60,
            each_call=8,
            ingest_seconds=60,
            small=(1_000, 100_000),
            large=(1_000_000, 50_000_000),
            queries=100,
        ),
    )
}

PACED_SHARE: Final = 0.6
"""Paced rounds offer so much of what saturating ones got through."""
INGEST_EVENTS_PER_SECOND: Final = 10_000
TARGET_CALLS_PER_SECOND: Final = 4_100
"""What 200,000 devices send."""
