"""Groups as code: what a set says is planned, and applied in one transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final
from uuid import UUID

from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import (
    DomainError,
    FieldViolation,
    aborted,
    failed_precondition,
    invalid,
    invalid_field,
)
from servicekit.peers.tenants import TenantDirectory
from servicekit.security.digests import sha256_hex
from services.enrollment.groups import devices as group_devices
from services.enrollment.groups import membership, set_store, store
from services.enrollment.groups.catch_up import CatchUp
from services.enrollment.groups.domain import MOST_GROUPS, Group, has_policies
from services.enrollment.groups.policies import GroupPolicies
from services.enrollment.groups.service import Groups, New, Wanted

MOST_ENTRIES: Final = 200
"""Of one set."""


class Action(Enum):
    """What becomes of a group."""

    CREATE = "CREATE"
    UPDATE = "UPDATE"
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
    """A group as a set has it; `filter` is `None` where members are listed."""

    alias: str
    name: str
    description: str
    priority: int
    """0 for any."""
    filter: str | None
    renamed_from: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A set, and what is to be done with it."""

    org_id: UUID
    name: str
    entries: tuple[Entry, ...]
    prune: bool = False
    adopt: bool = False
    validate_only: bool = False
    expected_sha256: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of one group; `before` is `None` for a new one, `after` for one that goes."""

    action: Action
    before: Group | None
    after: Group | None
    changed: tuple[str, ...] = ()
    joins: int = 0
    """Devices that come into it; of a plan alone."""
    leaves: int = 0
    """Devices that leave it; of a plan alone."""
    set_name: str = ""
    """The set that another group belongs to; empty for none."""

    @property
    def group(self) -> Group:
        """The group, as it is in the end."""
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


class _PlanOnlyError(Exception):
    """Ends the transaction of a plan without a commit."""


class GroupSets:
    """The use cases around sets of groups."""

    def __init__(
        self,
        database: Database,
        tenants: TenantDirectory,
        groups: Groups,
        policies: GroupPolicies,
        catch_up: CatchUp,
    ) -> None:
        self._database = database
        self._tenants = tenants
        self._groups = groups
        self._policies = policies
        self._catch_up = catch_up

    async def apply(self, call: Call, asked: Asked) -> Plan:
        """Makes an organisation's groups what a set says, all of them or none.

        With `validate_only` it says what would be done, and writes nothing. A tenant above
        organisations has no groups: its sets have policies alone.

        Raises:
            DomainError: INVALID_ARGUMENT with the entry's field; ABORTED when the plan is not the
                expected one; what the use cases of groups raise.
        """
        require = self._tenants.require_org if asked.entries else self._tenants.require
        org = await require(call.caller, asked.org_id, to_add=True)
        _check(asked.entries)
        free = await self._without_policies(org.id, asked) if asked.prune else frozenset()
        try:
            async with self._database.transaction(self._tenants.scope(org.id)) as connection:
                plan = await self._run(connection, call, asked, free)
                if asked.expected_sha256 not in {"", plan.sha256}:
                    raise aborted(
                        "PLAN_OUTDATED",
                        "something changed since the plan was made; make it once more",
                    )
                if asked.validate_only:
                    raise _PlanOnlyError
        except _PlanOnlyError:
            return await self._counted(org.id, plan)
        # Also for groups that went.
        if any(step.does_something for step in plan.steps):
            self._catch_up.wake()
        return plan

    async def _counted(self, org_id: UUID, plan: Plan) -> Plan:
        """A plan with how many devices it moves; counted without the lock that enrolments need."""
        steps: list[Step] = []
        async with self._database.transaction(self._tenants.scope(org_id)) as connection:
            for step in plan.steps:
                is_new = step.action is Action.CREATE
                filter_ = step.group.filter
                if step.action is Action.DELETE:
                    counts = await store.count_members(connection, [step.group])
                    steps.append(replace(step, leaves=counts[step.group.id][0]))
                elif filter_ is not None and (is_new or "filter" in step.changed):
                    id_ = None if is_new else step.group.id
                    found, _ = await group_devices.preview(connection, org_id, filter_, id_, 0)
                    steps.append(replace(step, joins=found["joins"], leaves=found["leaves"]))
                else:
                    steps.append(step)
        return replace(plan, steps=tuple(steps))

    async def _without_policies(self, org_id: UUID, asked: Asked) -> frozenset[UUID]:
        """The groups that the set does not name any more, if no policy is in force for them.

        In a plan also others: the set's policies may go before.
        """
        async with self._database.transaction(self._tenants.scope(org_id)) as connection:
            members = await set_store.members(connection, org_id)
            known = await _all(connection, org_id)
        kept = {one.alias for one in asked.entries} | {one.renamed_from for one in asked.entries}
        found: set[UUID] = set()
        for group in known:
            if members.get(group.id) == asked.name and group.alias not in kept:
                if not asked.validate_only and (
                    names := await self._policies.names(org_id, group.id)
                ):
                    raise has_policies(names)
                found.add(group.id)
        return frozenset(found)

    async def _run(
        self, connection: Connection, call: Call, asked: Asked, free: frozenset[UUID]
    ) -> Plan:
        await membership.hold_alone(connection, asked.org_id)
        members = await set_store.members(connection, asked.org_id)
        known = await _all(connection, asked.org_id)
        found = _found(asked, known, members)
        moving = [
            group.id
            for entry in asked.entries
            if (group := found.get(entry.alias)) and entry.priority not in {0, group.priority}
        ]
        # So that two groups can change places.
        await set_store.park(connection, moving)
        made: dict[int, Step] = {}
        # New ones come behind all others, once those have their places.
        for index, entry in sorted(
            enumerate(asked.entries), key=lambda one: one[1].alias not in found
        ):
            before = found.get(entry.alias)
            made[index] = await self._entry(connection, index, entry, before, asked, members)
        steps = [made[index] for index in sorted(made)]
        meant = {group.id for group in found.values()}
        for group in known:
            if group.id in meant:
                continue
            set_name = members.get(group.id, "")
            if set_name != asked.name:
                steps.append(Step(Action.OTHER, group, group, set_name=set_name))
            elif asked.prune and group.id in free:
                await self._groups.deleted(connection, call, group, later=True)
                steps.append(Step(Action.DELETE, group, None))
            else:
                steps.append(Step(Action.LEFT, group, group, set_name=set_name))
        return Plan(tuple(steps), _digest(asked, steps))

    async def _entry(
        self,
        connection: Connection,
        index: int,
        entry: Entry,
        before: Group | None,
        asked: Asked,
        members: Mapping[UUID, str],
    ) -> Step:
        try:
            if before is None:
                after = await self._groups.created(
                    connection,
                    New(
                        asked.org_id,
                        entry.name,
                        entry.alias,
                        entry.description,
                        entry.priority,
                        entry.filter,
                    ),
                    later=True,
                )
                step = Step(Action.CREATE, None, after)
            else:
                if (entry.filter is None) != before.is_listed:
                    raise invalid_field(
                        "filter", "a group has a filter, or listed members, from its beginning"
                    )
                after = await self._groups.updated(
                    connection,
                    before,
                    Wanted(
                        entry.name,
                        entry.alias,
                        entry.description,
                        entry.priority or None,
                        entry.filter,
                    ),
                    later=True,
                )
                step = _step(before, after, is_new=members.get(before.id) != asked.name)
        except DomainError as error:
            raise _at(index, error) from error
        if step.does_something:
            await set_store.put(connection, asked.org_id, step.group.id, asked.name)
        return step


def _check(entries: Sequence[Entry]) -> None:
    seen: set[str] = set()
    priorities: set[int] = set()
    for index, entry in enumerate(entries):
        for name, alias in (("alias", entry.alias), ("renamedFrom", entry.renamed_from)):
            if alias in seen:
                raise invalid_field(f"groups[{index}].{name}", "is in the set twice")
            seen |= {alias} - {""}
        if entry.priority in priorities:
            raise invalid_field(f"groups[{index}].priority", "is in the set twice")
        priorities |= {entry.priority} - {0}


def _found(asked: Asked, known: Sequence[Group], members: Mapping[UUID, str]) -> dict[str, Group]:
    """The groups that entries mean, by alias of the entry."""
    by_alias = {group.alias: group for group in known}
    found: dict[str, Group] = {}
    for entry in asked.entries:
        group = by_alias.get(entry.alias) or by_alias.get(entry.renamed_from)
        if group is None:
            continue
        set_name = members.get(group.id, "")
        if set_name != asked.name and not asked.adopt:
            whose = f"belongs to the set {set_name}" if set_name else "belongs to no set"
            raise failed_precondition(
                "GROUP_NOT_ADOPTED",
                f"the group {group.alias} {whose}: adopt it, or give another alias",
            )
        found[entry.alias] = group
    return found


def _step(before: Group, after: Group, *, is_new: bool) -> Step:
    changed = tuple(
        name
        for name in ("alias", "name", "description", "priority", "filter")
        if getattr(before, name) != getattr(after, name)
    )
    if changed:
        return Step(Action.UPDATE, before, after, changed)
    return Step(Action.ADOPT if is_new else Action.UNCHANGED, before, after)


def _digest(asked: Asked, steps: Sequence[Step]) -> str:
    said = [
        [
            step.action.value,
            None if step.before is None else [str(step.before.id), step.before.revision],
            [
                step.group.alias,
                step.group.name,
                step.group.description,
                step.group.priority,
                step.group.filter,
            ],
        ]
        for step in steps
        if step.does_something
    ]
    text = json.dumps([str(asked.org_id), asked.name, said], ensure_ascii=False)
    return sha256_hex(text.encode())


def _at(index: int, error: DomainError) -> DomainError:
    """Names the entry in an error of what is done with it."""
    if not error.violations:
        return error
    named = invalid(
        *(FieldViolation(f"groups[{index}].{one.field}", one.rule) for one in error.violations)
    )
    named.code, named.reason = error.code, error.reason
    return named


async def _all(connection: Connection, org_id: UUID) -> list[Group]:
    page = await store.list_groups(connection, Scope.of(org_id), "", None, MOST_GROUPS)
    return list(page.items)
