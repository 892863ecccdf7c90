"""Alerts on what holds now: forwarders, witnesses, backups, certificates."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar
from uuid import UUID

from servicekit.security.certificates import first_end, first_end_of, last_end_of
from services.audit.alerts.domain import (
    BACKUP_TOO_OLD,
    CERTIFICATE_ENDS,
    FORWARDER_FAILING,
    WITNESS_AWAY,
    Finding,
    Rule,
)
from services.audit.alerts.level_store import Failing, Pem
from services.audit.tree.witnesses import Away

T = TypeVar("T", Failing, Pem)

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


def witnesses(
    away: Sequence[Away], opened: Collection[str], rule: Rule, at: datetime
) -> list[Finding]:
    """Witnesses that have signed nothing for too long; told again after a day and a week.

    A process does not know what was before it: an alert that is open stays so until the witness
    signs, also when another process looks since.

    Args:
        away: those that do not sign.
        opened: what there are open alerts of.
        rule: what counts.
        at: the time.
    """
    least = timedelta(hours=rule.of(WITNESS_AWAY, "hours"))
    return [
        Finding(
            f"witnesses/{one.name}",
            {"name": one.name, "reason": one.reason},
            sum(at - one.since >= long for long in (_DAY, _WEEK)),
        )
        for one in away
        if at - one.since >= least or f"witnesses/{one.name}" in opened
    ]


def backups(newest: datetime | None, rule: Rule, at: datetime) -> list[Finding]:
    """Whether the newest backup is too old; nothing before the first one."""
    if newest is None or at - newest <= timedelta(hours=rule.of(BACKUP_TOO_OLD, "hours")):
        return []
    return [Finding("", {"hours": int((at - newest).total_seconds() // 3600)})]


@dataclass(frozen=True, slots=True)
class Ending:
    """When something's certificates end."""

    subject: str
    at: datetime
    name: str = ""
    """Of a forwarder."""


def ends_of_files(files: Mapping[str, Path]) -> list[Ending]:
    """When certificates in files end, by what they are of; what cannot be read is left out."""
    ends = []
    for name, file in sorted(files.items()):
        with contextlib.suppress(OSError, ValueError):
            ends.append(Ending(name, first_end(file)))
    return ends


def end_of(pem: Pem) -> Ending:
    """When the certificates of a forwarder end.

    Of those that it trusts the last one counts: a target is known as long as one of them is good.

    Raises:
        ValueError: they cannot be read.
    """
    ends = [last_end_of(_ascii(pem.ca))] if pem.ca else []
    ends += [first_end_of(_ascii(pem.own))] if pem.own else []
    return Ending(f"forwarders/{pem.id}", min(ends), pem.name)


def _ascii(pem: str) -> bytes:
    # What is not ASCII is a remark between certificates.
    return pem.encode("ascii", "ignore")


def certificates(ends: Sequence[Ending], rule: Rule, at: datetime) -> list[Finding]:
    """Certificates that end soon; told again a week before."""
    days = timedelta(days=rule.of(CERTIFICATE_ENDS, "days"))
    return [
        Finding(
            end.subject,
            {"date": end.at.date().isoformat()} | ({"name": end.name} if end.name else {}),
            int(end.at - at <= _WEEK < days),
        )
        for end in ends
        if end.at - at <= days
    ]


def by_tenant(found: Sequence[T]) -> Mapping[UUID, list[T]]:
    """What is found of forwarders, by their tenant."""
    tenants: dict[UUID, list[T]] = {}
    for one in found:
        tenants.setdefault(one.tenant_id, []).append(one)
    return tenants
