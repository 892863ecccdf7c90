"""Audit's settings."""

from __future__ import annotations

from servicekit.settings import ServiceSettings


class AuditSettings(ServiceSettings):
    """The settings of the audit service; it needs the master key, for the key of checkpoints."""
