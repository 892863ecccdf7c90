"""What policy counts (Prometheus)."""

from __future__ import annotations

from typing import Final

from prometheus_client import REGISTRY

from servicekit.observability.metrics import Outcomes

POLLS: Final = Outcomes(
    REGISTRY, "evergreen_policy_polls", "Policy polls of released agents, by what they were told."
)
