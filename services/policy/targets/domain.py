"""What a policy of an organisation may be for, beside all of its devices."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from servicekit.errors import Code, DomainError, failed_precondition, invalid_field

MOST_TARGETS: Final = 100
"""Of one policy."""
MOST_BOUND: Final = 2_000
"""Groups and devices of an organisation with policies of their own."""
MOST_PROFILES: Final = 2_000
"""Sets of policies of groups and devices in one organisation that are put together."""


@dataclass(frozen=True, slots=True)
class PolicyTargets:
    """The groups and devices that a policy is for; none for all devices of its tenant."""

    group_ids: tuple[UUID, ...] = ()
    device_ids: tuple[UUID, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.group_ids or self.device_ids)

    @property
    def ids(self) -> tuple[UUID, ...]:
        """All of them."""
        return (*self.group_ids, *self.device_ids)

    def without(self, gone: Collection[UUID]) -> PolicyTargets:
        """The same without some of them."""
        return PolicyTargets(
            tuple(one for one in self.group_ids if one not in gone),
            tuple(one for one in self.device_ids if one not in gone),
        )

    def stored(self) -> dict[str, list[str]]:
        """As JSON; empty for a policy of all devices."""
        found = {"groupIds": self.group_ids, "deviceIds": self.device_ids}
        return {name: [*map(str, ids)] for name, ids in found.items() if ids}

    def text(self) -> str | None:
        """As it is stored."""
        return json.dumps(self.stored()) if self else None

    @classmethod
    def read(cls, text: str | None) -> PolicyTargets:
        """What `text` wrote."""
        stored: Mapping[str, list[str]] = json.loads(text) if text else {}
        return cls(
            tuple(map(UUID, stored.get("groupIds", ()))),
            tuple(map(UUID, stored.get("deviceIds", ()))),
        )


@dataclass(frozen=True, slots=True)
class Group:
    """A group as the registry has it."""

    id: UUID
    tenant_id: UUID
    name: str
    alias: str
    priority: int
    deleted: bool


def check_targets(targets: PolicyTargets) -> None:
    """Refuses a list that is too long or names something twice.

    Raises:
        DomainError: INVALID_ARGUMENT with the field.
    """
    for field, ids in (("groupIds", targets.group_ids), ("deviceIds", targets.device_ids)):
        if len(ids) > MOST_TARGETS:
            raise invalid_field(f"targets.{field}", f"must have at most {MOST_TARGETS} items")
        for index, one in enumerate(ids):
            if one in ids[:index]:
                raise invalid_field(f"targets.{field}[{index}]", "is in the list twice")


def not_there(field: str, index: int, what: str) -> DomainError:
    """A target that the policy's organisation does not have."""
    return invalid_field(f"targets.{field}[{index}]", f"is no {what} of the organisation")


def of_no_organisation() -> DomainError:
    """Groups and devices belong to organisations."""
    return invalid_field("targets", "only a policy of an organisation is for groups or devices")


def still_everywhere() -> DomainError:
    """A policy changes sides only while no device gets it."""
    return DomainError(
        Code.FAILED_PRECONDITION,
        "POLICY_IN_FORCE",
        "the policy is in force; withdraw it before it is for groups or devices instead of all"
        " devices, or the other way round",
    )


def too_many_bound() -> DomainError:
    """An organisation with as many policies of groups and devices as there may be."""
    return failed_precondition(
        "TOO_MANY_TARGETS",
        f"an organisation has policies for at most {MOST_BOUND} groups and devices; use groups",
    )
