"""What `evergreen doctor` finds, read for a test."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from cli.doctor.finding import Check, Finding, findings

_OF_THE_MACHINE: Final = ("DISK_", "CLOCK_NOT_SYNCHRONISED", "BACKUP_NONE")


def wrong(said: dict[str, Any]) -> list[dict[str, Any]]:
    """Findings of the product; a test machine may have a full disk, its own clock, no backup."""
    return [f for f in said["findings"] if not f["code"].startswith(_OF_THE_MACHINE)]


def by_status(said: dict[str, Any], status: str) -> dict[str, dict[str, Any]]:
    """The checks with a status, by name."""
    return {check["name"]: check for check in said["checks"] if check["status"] == status}


def codes(found: Iterable[Finding]) -> list[str]:
    """The codes of findings, each of which says what is wrong and what to do."""
    found = list(found)
    assert all(finding.what and finding.fix for finding in found)
    return [finding.code for finding in found]


def told(checks: Iterable[Check]) -> list[str]:
    """The codes of what checks found; each check says what it saw, or why it did not look."""
    checks = list(checks)
    assert all(check.findings or check.seen or check.skipped for check in checks)
    return codes(findings(checks))


def status(checks: Iterable[Check]) -> dict[str, str]:
    """The status of each check, by name."""
    return {check.name: check.status for check in checks}
