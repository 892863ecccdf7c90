"""What `evergreen doctor --json` says, read for a test."""

from __future__ import annotations

from typing import Any, Final

_OF_THE_MACHINE: Final = ("DISK_", "CLOCK_NOT_SYNCHRONISED", "BACKUP_NONE")


def wrong(said: dict[str, Any]) -> list[dict[str, Any]]:
    """Findings of the product; a test machine may have a full disk, its own clock, no backup."""
    return [f for f in said["findings"] if not f["code"].startswith(_OF_THE_MACHINE)]


def by_status(said: dict[str, Any], status: str) -> dict[str, dict[str, Any]]:
    """The checks with a status, by name."""
    return {check["name"]: check for check in said["checks"] if check["status"] == status}
