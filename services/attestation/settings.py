"""Attestation's settings."""

from __future__ import annotations

from pydantic import Field

from servicekit.settings import ServiceSettings


class AttestationSettings(ServiceSettings):
    """The settings of the attestation service."""

    waiting_attestations: int = Field(
        default=512,
        ge=1,
        description="Attestations that are worked on or wait for it; further ones are refused with"
        " a delay.",
    )
    attestation_stale_days: int = Field(
        default=14,
        ge=1,
        le=400,
        description="Days after which the evidence of a device is shown as stale.",
    )
