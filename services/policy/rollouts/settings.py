"""How tenants publish: their time zone, whether two people agree, days without, default plans."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Final
from uuid import UUID
from zoneinfo import ZoneInfo

from contract.access import Role
from contract.events.policy import FreezeSnapshot, PolicySettingsSnapshot
from servicekit.call import Caller
from servicekit.errors import failed_precondition, invalid_field
from servicekit.etags import etag_of
from servicekit.times import zone_of
from services.policy.rollouts.plans import NOW, Plan

MOST_FREEZES: Final = 50
UTC_NAME: Final = "UTC"


@dataclass(frozen=True, slots=True)
class Freeze:
    """Days on which devices get nothing new, both of them included."""

    name: str
    first: date
    last: date

    def stored(self) -> dict[str, str]:
        """As JSON."""
        return {"name": self.name, "first": str(self.first), "last": str(self.last)}

    @classmethod
    def read(cls, stored: Mapping[str, str]) -> Freeze:
        """What `stored` made."""
        return cls(
            stored["name"],
            date.fromisoformat(stored["first"]),
            date.fromisoformat(stored["last"]),
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """What a tenant says of publishing; it counts for the tenants below, too."""

    tenant_id: UUID
    time_zone: str = ""
    """Empty for that of the tenant above."""
    require_approval: bool = False
    freezes: tuple[Freeze, ...] = ()
    default_plan: Plan | None = None
    """Of publishes of organisations' policies that name none."""
    updated_at: datetime | None = field(default=None, compare=False)

    @property
    def etag(self) -> str:
        """Changes with every change."""
        return etag_of(
            self.tenant_id,
            self.time_zone,
            self.require_approval,
            *(part for one in self.freezes for part in one.stored().values()),
            *(() if self.default_plan is None else (self.default_plan.text(),)),
        )

    def loosens(self, before: Settings, today: date) -> bool:
        """Whether a second person, or a day of a freeze that is to come, is not asked for any
        more."""
        gone = any(
            not any(new.first <= old.first and old.last <= new.last for new in self.freezes)
            for old in before.freezes
            if old.last >= today
        )
        return (before.require_approval and not self.require_approval) or gone

    def snapshot(self) -> PolicySettingsSnapshot:
        """The settings as events have them."""
        return PolicySettingsSnapshot(
            time_zone=self.time_zone,
            require_approval=self.require_approval,
            freezes=tuple(
                FreezeSnapshot(name=one.name, first_day=str(one.first), last_day=str(one.last))
                for one in self.freezes
            ),
            default_plan=None
            if self.default_plan is None
            else json.loads(self.default_plan.text()),
        )


@dataclass(frozen=True, slots=True)
class InEffect:
    """What counts for an organisation, of all tenants from the root to it."""

    zone: ZoneInfo
    require_approval: bool
    freezes: tuple[Freeze, ...]
    default_plan: Plan | None = None
    default_plan_of: UUID | None = None
    """The tenant that says it."""

    @classmethod
    def of(cls, line: Sequence[Settings]) -> InEffect:
        """What counts of what tenants say, the root first."""
        names = [one.time_zone for one in line if one.time_zone]
        zone = zone_of(names[-1] if names else UTC_NAME) or ZoneInfo(UTC_NAME)
        planned = [one for one in line if one.default_plan is not None]
        return cls(
            zone,
            any(one.require_approval for one in line),
            tuple(freeze for one in line for freeze in one.freezes),
            planned[-1].default_plan if planned else None,
            planned[-1].tenant_id if planned else None,
        )

    def plan(self, asked: Plan | None, *, at_once: bool = False) -> Plan | None:
        """How a version of an organisation's policy comes to devices; `None` for to all at once.

        Args:
            asked: what the publish says.
            at_once: whether the default plan does not count for it.
        """
        if asked is not None:
            return asked
        if self.default_plan is not None and not at_once:
            return self.default_plan
        return NOW if self.require_approval else None

    def freeze(self, now: datetime) -> Freeze | None:
        """The freeze that counts at a time."""
        today = now.astimezone(self.zone).date()
        return next((one for one in self.freezes if one.first <= today <= one.last), None)

    def check(self, now: datetime) -> None:
        """Refuses to publish in a freeze.

        Raises:
            DomainError: FAILED_PRECONDITION.
        """
        if found := self.freeze(now):
            raise failed_precondition(
                "POLICIES_FROZEN",
                f"{found.name}: nothing is published from {found.first} to {found.last}; save a"
                " draft, or publish it with `urgent`",
            )


def checked_freezes(freezes: Sequence[tuple[str, str, str]]) -> tuple[Freeze, ...]:
    """Freezes by their names and days.

    Raises:
        DomainError: INVALID_ARGUMENT with the field.
    """
    if len(freezes) > MOST_FREEZES:
        raise invalid_field("freezes", f"must have at most {MOST_FREEZES} items")
    found: list[Freeze] = []
    for index, (name, first, last) in enumerate(freezes):
        where = f"freezes[{index}]"
        if not name:
            raise invalid_field(f"{where}.name", "is required")
        one = Freeze(name, _day(first, f"{where}.firstDay"), _day(last, f"{where}.lastDay"))
        if one.last < one.first:
            raise invalid_field(f"{where}.lastDay", "must not be before firstDay")
        found.append(one)
    return tuple(found)


def _day(text: str, field_name: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise invalid_field(field_name, "must be a day such as 2027-06-03") from None


def may_decide_alone(caller: Caller, tenant_id: UUID) -> bool:
    """Whether a caller may do without the second person that a tenant asks for."""
    is_above = caller.tenant_id != str(tenant_id)
    return caller.token is None and (caller.role is Role.OWNER or is_above)
