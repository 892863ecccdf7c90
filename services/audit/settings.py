"""Audit's settings."""

from __future__ import annotations

from servicekit.keys.settings import KeySettings


class AuditSettings(KeySettings):
    """The settings of the audit service; it needs the master key, for the key of checkpoints."""
