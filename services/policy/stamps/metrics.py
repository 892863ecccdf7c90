"""What is counted of stamps (Prometheus)."""

from __future__ import annotations

from typing import Final

from prometheus_client import REGISTRY

from servicekit.observability.metrics import Outcomes

DRAWS: Final = Outcomes(
    REGISTRY,
    "evergreen_policy_draws",
    "Numbers that devices needed above their own, by what became of it.",
)
