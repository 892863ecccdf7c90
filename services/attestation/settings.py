"""Attestation's settings."""

from __future__ import annotations

from servicekit.settings import ServiceSettings


class AttestationSettings(ServiceSettings):
    """The settings of the attestation service."""
