"""The kinds of alerts, what can be said of them, and what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

from servicekit.errors import invalid_field
from servicekit.etags import etag_of
from servicekit.times import format_rfc3339, parse_rfc3339

MOST_OPEN: Final = 1_000
"""Open alerts of a kind and tenant; further ones are raised when there is room."""
MOST_FAILED: Final = 10_000
"""Devices of a tenant of which it is known that they fail their check."""
MOST_EMAILS: Final = 10
LASTS: Final = timedelta(minutes=15)
"""So long a condition must not hold until its alert is resolved, so that none flickers."""
KEPT: Final = timedelta(days=400)
"""So long a resolved alert is kept."""
WINDOW: Final = timedelta(hours=1)
"""In which refusals are counted."""
OLDEST: Final = timedelta(days=7)
"""What happened before, and is recorded only now, is not counted."""
DIGEST_EVERY: Final = timedelta(days=1)
MOST_LINES: Final = 20
"""Alerts that a mail names."""

DEVICES_NOT_SEEN: Final = "devices-not-seen"
ATTESTATION_FAILED: Final = "attestation-failed"
ENROLLMENTS_REFUSED: Final = "enrollments-refused"
LOGINS_REFUSED: Final = "logins-refused"
POLICY_BEHIND: Final = "policy-behind"
FORWARDER_FAILING: Final = "forwarder-failing"
BACKUP_TOO_OLD: Final = "backup-too-old"
CERTIFICATE_ENDS: Final = "certificate-ends"
WITNESS_AWAY: Final = "witness-away"


@dataclass(frozen=True, slots=True)
class Bound:
    """A threshold: what counts when nothing is said, and what may be said."""

    default: int
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of alert."""

    name: str
    about: str
    whose: Literal["organisation", "any", "root"]
    """Which tenants have such alerts."""
    thresholds: Mapping[str, Bound] = field(default_factory=dict)


_PERCENT: Final = Bound(10, 0, 100)
KINDS: Final[Mapping[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind(
            DEVICES_NOT_SEEN,
            "More than `percent` of an organisation's devices in use, and more than `count`, have"
            " not called for `days` days.",
            "organisation",
            {"percent": _PERCENT, "count": Bound(5, 0, 1_000_000), "days": Bound(7, 1, 365)},
        ),
        Kind(
            POLICY_BEHIND,
            "More than `percent` of an organisation's devices in use, and more than `count`, do not"
            " have what is in force `hours` hours after it was published.",
            "organisation",
            {
                "percent": Bound(20, 0, 100),
                "count": Bound(5, 0, 1_000_000),
                "hours": Bound(48, 1, 8_760),
            },
        ),
        Kind(
            ATTESTATION_FAILED,
            "The verdict over a device's boots is FAILED, and was a better one before.",
            "organisation",
        ),
        Kind(
            ENROLLMENTS_REFUSED,
            "More than `count` enrollments were refused within an hour.",
            "organisation",
            {"count": Bound(10, 1, 1_000_000)},
        ),
        Kind(
            LOGINS_REFUSED,
            "Within an hour more than `count` logins of a user failed, or more than `total` of a"
            " tenant; of addresses that no user has, in the root tenant.",
            "any",
            {"count": Bound(20, 1, 1_000_000), "total": Bound(200, 1, 1_000_000)},
        ),
        Kind(
            FORWARDER_FAILING,
            "A forwarder has delivered nothing for `minutes` minutes; told again after a day and"
            " after a week.",
            "any",
            {"minutes": Bound(15, 1, 10_080)},
        ),
        Kind(
            BACKUP_TOO_OLD,
            "The newest good backup was begun more than `hours` hours ago. Nothing is said before"
            " the first backup.",
            "root",
            {"hours": Bound(26, 1, 8_760)},
        ),
        Kind(
            CERTIFICATE_ENDS,
            "A certificate that a forwarder uses ends within `days` days, and again within 7; in"
            " the root tenant, also those of the audit service and of its CA.",
            "any",
            {"days": Bound(21, 1, 365)},
        ),
        Kind(
            WITNESS_AWAY,
            "A witness of the audit log has signed nothing for `hours` hours; told again after a"
            " day and after a week.",
            "root",
            {"hours": Bound(2, 1, 8_760)},
        ),
    )
}


def kinds_of(tenant_kind: str) -> Sequence[Kind]:
    """The kinds that a tenant of a kind can say something of: its own, and of those below it."""
    return [kind for kind in KINDS.values() if kind.whose != "root" or tenant_kind == "root"]


@dataclass(frozen=True, slots=True)
class Rule:
    """What is said of a kind; of thresholds only those that are said."""

    enabled: bool = True
    thresholds: Mapping[str, int] = field(default_factory=dict)
    paused_until: datetime | None = None

    def of(self, kind: str, name: str) -> int:
        """The threshold that counts."""
        return self.thresholds.get(name, KINDS[kind].thresholds[name].default)

    def is_paused(self, at: datetime) -> bool:
        """Whether nothing is raised now, and no mail tells of it."""
        return self.paused_until is not None and at < self.paused_until

    def counts(self, at: datetime) -> bool:
        """Whether anything of it is raised now."""
        return self.enabled and not self.is_paused(at)

    def json(self) -> Mapping[str, Any]:
        """As it is stored and told."""
        paused = {"pausedUntil": format_rfc3339(self.paused_until)} if self.paused_until else {}
        return {
            "enabled": self.enabled,
            "thresholds": dict(sorted(self.thresholds.items())),
            **paused,
        }

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Rule:
        """What `json` wrote."""
        paused = stored.get("pausedUntil")
        return cls(
            bool(stored["enabled"]),
            {str(name): int(value) for name, value in stored["thresholds"].items()},
            parse_rfc3339(paused) if paused else None,
        )


@dataclass(frozen=True, slots=True)
class Rules:
    """What a tenant has said of alerts."""

    tenant_id: UUID
    """Who has said it; for a tenant without words of its own, one above it."""
    rules: Mapping[str, Rule] = field(default_factory=dict)
    emails: tuple[str, ...] = ()
    roles: tuple[str, ...] = ("Owner",)
    revision: int = 0
    """0 where nobody has said anything."""
    updated_at: datetime | None = None
    updated_by: str = ""

    def rule(self, kind: str) -> Rule:
        """The rule of a kind."""
        return self.rules.get(kind, Rule())

    def etag_for(self, tenant_id: UUID) -> str:
        """Changes with what counts for a tenant."""
        said = {name: rule.json() for name, rule in sorted(self.rules.items())}
        return etag_of(
            tenant_id,
            self.tenant_id,
            self.revision,
            self.updated_at,
            said,
            self.emails,
            self.roles,
        )

    @classmethod
    def nothing(cls, tenant_id: UUID) -> Rules:
        """Of a tenant that is archived: no alerts, and nobody is told."""
        return cls(tenant_id, {kind: Rule(enabled=False) for kind in KINDS}, (), ())


@dataclass(frozen=True, slots=True)
class RuleChange:
    """What a request says of a kind; `None` stays as it is."""

    kind: str
    enabled: bool | None
    thresholds: Mapping[str, int]
    paused_until: datetime | None
    resume: bool


def changed(
    before: Rules, tenant_kind: str, changes: Sequence[RuleChange], at: datetime
) -> Mapping[str, Rule]:
    """The rules with changes.

    Args:
        before: the rules.
        tenant_kind: `root`, `reseller` or `org`.
        changes: of kinds.
        at: the time.

    Raises:
        DomainError: INVALID_ARGUMENT with the field.
    """
    known = {kind.name: kind for kind in kinds_of(tenant_kind)}
    rules = dict(before.rules)
    named: set[str] = set()
    for index, change in enumerate(changes):
        kind = known.get(change.kind)
        if kind is None:
            raise invalid_field(f"rules[{index}].kind", f"must be one of {', '.join(known)}")
        if kind.name in named:
            raise invalid_field(f"rules[{index}].kind", "must be named once")
        named.add(kind.name)
        if change.paused_until is not None and change.resume:
            raise invalid_field(f"rules[{index}].resume", "must not be given with pausedUntil")
        if change.paused_until is not None and change.paused_until <= at:
            raise invalid_field(f"rules[{index}].pausedUntil", "must be in the future")
        rule = rules.get(kind.name, Rule())
        thresholds = dict(rule.thresholds)
        for name, value in change.thresholds.items():
            bound = kind.thresholds.get(name)
            field_name = f"rules[{index}].thresholds.{name}"
            if bound is None:
                takes = ", ".join(kind.thresholds) or "none"
                raise invalid_field(field_name, f"is none of {kind.name}, which takes {takes}")
            if not bound.least <= value <= bound.most:
                raise invalid_field(field_name, f"must be {bound.least} to {bound.most}")
            thresholds[name] = value
        paused = None if change.resume else change.paused_until or rule.paused_until
        enabled = rule.enabled if change.enabled is None else change.enabled
        rules[kind.name] = replace(
            rule, enabled=enabled, thresholds=thresholds, paused_until=paused
        )
    return rules


@dataclass(frozen=True, slots=True)
class Finding:
    """A condition that holds."""

    subject: str
    facts: Mapping[str, Any]
    step: int = 0
    """How often people are to be told that it lasts."""


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert, open or resolved."""

    id: UUID
    tenant_id: UUID
    kind: str
    subject: str
    facts: Mapping[str, Any]
    raised_at: datetime
    step: int = 0
    ended_since: datetime | None = None
    resolved_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What became of an alert: it was raised, it lasts, or it is resolved."""

    alert: Alert
    what: Literal["raised", "lasts", "resolved"]


def is_many(number: int, of: int, percent: int, count: int) -> bool:
    """Whether it is more than a number and more than a part."""
    return number > count and number * 100 > of * percent


@dataclass(frozen=True, slots=True)
class Happened:
    """Something that is counted."""

    at: datetime
    subject: str
    amount: int = 1
    is_new: bool = True
    """Whether it was not counted before."""


def peaks(happened: Sequence[Happened]) -> Mapping[str, int]:
    """The most within an hour that has something new: for each subject, and under "" for all.

    What is recorded late belongs to hours that were counted before, and counts in them.

    Args:
        happened: what happened, in the order of time.
    """
    most: dict[str, int] = {}
    sums: dict[str, int] = {}
    newest: dict[str, datetime] = {}
    first = 0
    for one in happened:
        while happened[first].at <= one.at - WINDOW:
            gone = happened[first]
            for key in dict.fromkeys((gone.subject, "")):
                sums[key] -= gone.amount
            first += 1
        # Something without a subject counts once.
        for key in dict.fromkeys((one.subject, "")):
            sums[key] = sums.get(key, 0) + one.amount
            if one.is_new:
                newest[key] = one.at
            if key in newest and newest[key] > one.at - WINDOW:
                most[key] = max(most.get(key, 0), sums[key])
    return most
