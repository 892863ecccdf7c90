"""What is counted of evidence."""

from __future__ import annotations

from typing import Final

from prometheus_client import REGISTRY

from servicekit.observability.metrics import Outcomes

EVIDENCE: Final = Outcomes(
    REGISTRY, "evergreen_attestation_evidence", "Evidence of boots, by its verdict."
)
FAILURES: Final = Outcomes(
    REGISTRY, "evergreen_attestation_failures", "Evidence that failed, by the reason."
)
