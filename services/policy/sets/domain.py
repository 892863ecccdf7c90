"""Sets of policies: what they name, and what applying one does."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final
from uuid import UUID

from servicekit.errors import (
    DomainError,
    FieldViolation,
    failed_precondition,
    invalid,
    invalid_field,
)
from servicekit.security.digests import sha256_hex
from services.policy.authoring.domain import Policy
from services.policy.authoring.secret_values import REDACTED, hide
from services.policy.layers.merging import Merging
from services.policy.variables.domain import Variable

MOST_POLICIES: Final = 200
"""Of one set."""
MOST_KNOWN: Final = 2_000
"""Policies of a tenant among which a set finds its own."""
_NO_ALIAS: Final = re.compile(r"[^a-z0-9]+")
_MAX_ALIAS: Final = 63


class Action(Enum):
    """What becomes of a policy."""

    CREATE = "CREATE"
    UPDATE = "UPDATE"
    RESTORE = "RESTORE"
    """Somebody changed it since the set was applied; it becomes what the set says."""
    ADOPT = "ADOPT"
    """It belongs to the set from now on, as it is."""
    DELETE = "DELETE"
    UNCHANGED = "UNCHANGED"
    LEFT = "LEFT"
    """The set does not name it any more; it would be deleted with `prune`."""
    OTHER = "OTHER"
    """It is not of this set, and left alone."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A policy as a set has it."""

    alias: str
    name: str
    description: str
    bundle: Any = field(repr=False)
    merging: Merging
    groups: tuple[str, ...]
    """Aliases of groups; none for all devices."""
    draft: bool
    renamed_from: str


@dataclass(frozen=True, slots=True)
class Member:
    """Which set a policy belongs to, under which alias, and its revision when it was applied."""

    policy_id: UUID
    alias: str
    set_name: str
    revision: int


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of one policy; `before` is `None` for a new one, `after` for one that goes."""

    action: Action
    alias: str
    before: Policy | None
    after: Policy | None
    changed: tuple[str, ...] = ()
    """The members of the set's entry that are not as they were."""
    publishes: bool = False
    awaits_approval: bool = False
    """Whether what is published waits for a second person."""
    set_name: str = ""
    """The set that another policy belongs to; empty for none."""
    groups: tuple[str, ...] = ()
    """The aliases of the groups that it is for."""

    @property
    def policy(self) -> Policy:
        """The policy, as it is in the end."""
        found = self.after or self.before
        assert found is not None
        return found

    @property
    def does_something(self) -> bool:
        """Whether anything is written."""
        return self.publishes or self.action not in {
            Action.UNCHANGED,
            Action.LEFT,
            Action.OTHER,
        }


@dataclass(frozen=True, slots=True)
class VariableStep:
    """What becomes of one variable; `before` is `None` for a new one, `after` for one that goes."""

    action: Action
    before: Variable | None
    after: Variable | None

    @property
    def variable(self) -> Variable:
        """The variable, as it is in the end."""
        found = self.after or self.before
        assert found is not None
        return found

    @property
    def does_something(self) -> bool:
        """Whether anything is written."""
        return self.action not in {Action.UNCHANGED, Action.LEFT, Action.OTHER}


@dataclass(frozen=True, slots=True)
class Plan:
    """What applying a set does."""

    steps: tuple[Step, ...]
    sha256: str
    variables: tuple[VariableStep, ...] = ()

    @property
    def does_something(self) -> bool:
        """Whether anything is written."""
        return any(step.does_something for step in self.steps) or any(
            step.does_something for step in self.variables
        )


def plan_of(
    tenant_id: UUID, set_name: str, steps: Sequence[Step], variables: Sequence[VariableStep] = ()
) -> Plan:
    """A plan with its digest, which is another one as soon as a policy is changed otherwise.

    Secrets are not in it: a digest would let readers try out guesses.
    """
    said = [
        [
            step.action.value,
            step.alias,
            step.changed,
            step.publishes,
            None if step.before is None else [str(step.before.id), step.before.revision],
            _said(step.after),
            step.groups,
        ]
        for step in steps
        if step.does_something
    ]
    named = [
        [
            one.action.value,
            one.variable.name,
            None if one.before is None else [str(one.before.id), one.before.revision],
            None if one.after is None else [one.after.value, one.after.overridable],
        ]
        for one in variables
        if one.does_something
    ]
    text = json.dumps([str(tenant_id), set_name, said, named], ensure_ascii=False, sort_keys=True)
    return Plan(tuple(steps), sha256_hex(text.encode()), tuple(variables))


def _said(policy: Policy | None) -> Any:
    if policy is None:
        return None
    return [
        policy.name,
        policy.description,
        hide(json.loads(policy.authored), REDACTED),
        policy.merging.stored(),
    ]


def check_entries(entries: Sequence[Entry]) -> None:
    """Refuses what is in a set twice, and two policies that would take each other's place.

    Raises:
        DomainError: INVALID_ARGUMENT with the field.
    """
    if len(entries) > MOST_POLICIES:
        raise invalid_field("policies", f"must be at most {MOST_POLICIES}")
    aliases: set[str] = set()
    targets: set[str] = set()
    for index, entry in enumerate(entries):
        where = f"policies[{index}]"
        for field_name, name in (("alias", entry.alias), ("renamedFrom", entry.renamed_from)):
            if name in aliases:
                raise invalid_field(f"{where}.{field_name}", "is in the set twice")
            aliases |= {name} - {""}
        if entry.draft:
            continue
        for group in entry.groups or ("",):
            if group in targets:
                whom = f"the group {group}" if group else "all devices"
                raise invalid_field(
                    f"{where}.groups", f"another policy of the set is for {whom}, too"
                )
            targets.add(group)


@contextmanager
def at(index: int) -> Iterator[None]:
    """Names the entry in errors of what is done with it."""
    where = f"policies[{index}]"
    try:
        yield
    except DomainError as error:
        if not error.violations:
            raise
        found = [
            FieldViolation(f"{where}.{_in_entry(one.field)}", one.rule) for one in error.violations
        ]
        named = invalid(*found)
        named.code, named.reason = error.code, error.reason
        raise named from error


def _in_entry(field_name: str) -> str:
    return field_name.replace("targets.groupIds", "groups").replace("targets", "groups")


def aliases(policies: Sequence[Policy], members: Mapping[UUID, Member]) -> dict[UUID, str]:
    """The aliases of policies, oldest first; a proposal for each that belongs to no set."""
    found = {id_: member.alias for id_, member in members.items()}
    taken = set(found.values())
    for policy in policies:
        if policy.id not in found:
            found[policy.id] = _proposed(policy.name, taken)
            taken.add(found[policy.id])
    return found


def _proposed(name: str, taken: Collection[str]) -> str:
    base = _NO_ALIAS.sub("-", name.lower()).strip("-")[: _MAX_ALIAS - 4].strip("-")
    base = base or "policy"
    number, alias = 1, base
    while alias in taken:
        number += 1
        alias = f"{base}-{number}"
    return alias


def of_another_set(alias: str, set_name: str) -> DomainError:
    """A policy belongs to one set."""
    return failed_precondition(
        "POLICY_OF_ANOTHER_SET",
        f"the policy {alias} belongs to the set {set_name}; take it out of that one, or adopt it",
    )


def not_adopted(alias: str, name: str) -> DomainError:
    """Nobody's policy is changed only if that was said."""
    return failed_precondition(
        "POLICY_NOT_ADOPTED",
        f"a policy is called {name} and belongs to no set: adopt it, or give {alias} another name",
    )


def not_a_draft(name: str) -> DomainError:
    """Devices would keep what the set says that they do not get."""
    return invalid_field("draft", f"{name} is in force or on its way: withdraw it, or leave it out")


def for_single_devices(alias: str) -> DomainError:
    """A set would take a policy from its devices."""
    return failed_precondition(
        "POLICY_OF_DEVICES",
        f"the policy {alias} is for single devices, which no set has: take them out of its targets",
    )


def not_exportable(reasons: Sequence[str]) -> DomainError:
    """Files would give devices something else than what is in force."""
    return failed_precondition("NOT_EXPORTABLE", "; ".join(reasons))


def renamed(entry: Entry) -> Entry:
    """The entry with a name where it has none."""
    return entry if entry.name else replace(entry, name=entry.alias)
