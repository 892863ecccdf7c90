"""Settings of services that have keys which can be rotated."""

from __future__ import annotations

from pydantic import Field

from servicekit.settings import ServiceSettings


class KeySettings(ServiceSettings):
    """The settings of a service with a key ring."""

    key_lead_seconds: int = Field(
        default=60,
        ge=10,
        le=86400,
        description="How long a new key is published before it signs. The gateway asks for keys"
        " every 5 s, other replicas of the service read them every 4 s.",
    )
