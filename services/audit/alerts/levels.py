"""Alerts on what the database and files say now: forwarders, backups, certificates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final
from uuid import UUID

from servicekit.security.certificates import first_end, first_end_of
from services.audit.alerts.domain import (
    BACKUP_TOO_OLD,
    CERTIFICATE_ENDS,
    FORWARDER_FAILING,
    Finding,
    Rule,
)
from services.audit.alerts.store import Failing, Pem

_DAY: Final = timedelta(days=1)
_WEEK: Final = timedelta(days=7)


def failing(found: Sequence[Failing], rule: Rule, at: datetime) -> list[Finding]:
    """Forwarders of a tenant that have failed for too long; told again after a day and a week."""
    least = timedelta(minutes=rule.of(FORWARDER_FAILING, "minutes"))
    return [
        Finding(
            f"forwarders/{one.id}",
            {"name": one.name},
            sum(at - one.since >= long for long in (_DAY, _WEEK)),
        )
        for one in found
        if at - one.since >= least
    ]


def backups(newest: datetime | None, rule: Rule, at: datetime) -> list[Finding]:
    """Whether the newest backup is too old; nothing before the first one."""
    if newest is None or at - newest <= timedelta(hours=rule.of(BACKUP_TOO_OLD, "hours")):
        return []
    return [Finding("", {"hours": int((at - newest).total_seconds() // 3600)})]


def ends_of(files: Mapping[str, Path], pems: Sequence[Pem]) -> Mapping[str, datetime]:
    """When certificates end, by what they are of; what cannot be read is left out."""
    ends: dict[str, datetime] = {}
    for name, file in files.items():
        try:
            ends[name] = first_end(file)
        except (OSError, ValueError):
            continue
    for pem in pems:
        try:
            end = first_end_of(pem.text.encode())
        except ValueError:
            continue
        name = f"forwarders/{pem.id}"
        ends[name] = min(end, ends.get(name, end))
    return ends


def certificates(ends: Mapping[str, datetime], rule: Rule, at: datetime) -> list[Finding]:
    """Certificates that end soon; told again a week before."""
    days = timedelta(days=rule.of(CERTIFICATE_ENDS, "days"))
    return [
        Finding(name, {"date": end.date().isoformat()}, int(end - at <= _WEEK < days))
        for name, end in sorted(ends.items())
        if end - at <= days
    ]


def by_tenant(found: Sequence[Failing]) -> Mapping[UUID, list[Failing]]:
    """Forwarders by their tenant."""
    tenants: dict[UUID, list[Failing]] = {}
    for one in found:
        tenants.setdefault(one.tenant_id, []).append(one)
    return tenants
