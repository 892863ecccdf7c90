"""What is counted of rollouts (Prometheus)."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge

ROLLOUTS: Final = Gauge(
    "evergreen_policy_rollouts", "Rollouts that are not at their end, by their state.", ["state"]
)
DEVICES: Final = Gauge(
    "evergreen_policy_rollout_devices",
    "Devices of rollouts that this process looked at last, by what was seen of them.",
    ["state"],
)
FAILED: Final = Counter(
    "evergreen_policy_rollout_looks_failed_total", "Looks at rollouts that failed."
)
