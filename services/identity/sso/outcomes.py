"""What came of logins and logouts with providers, counted."""

from __future__ import annotations

from typing import Final

from prometheus_client import REGISTRY

from servicekit.observability.metrics import Outcomes

LOGINS: Final = Outcomes(
    REGISTRY,
    "evergreen_sso_logins",
    "Logins with single sign-on: ok, refused (no role, say), wrong (a token or a state is not"
    " taken), cancelled or away.",
)
LOGOUTS: Final = Outcomes(
    REGISTRY, "evergreen_sso_logouts", "Back-channel logouts of providers: ok, refused or away."
)
