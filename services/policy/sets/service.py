"""Plans, applies and exports sets of policies.

Applying is one transaction of the use cases that administrators have. A plan is the same one, ended
without a commit, so that it says what applying does, and is refused where that is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from uuid import UUID

from contract.events.policy import AppliedPolicySet, PolicySetApplied
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import aborted, invalid_field
from servicekit.feeds.changes import Changes
from servicekit.ids import new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from services.policy.authoring import store as authoring_store
from services.policy.authoring.domain import Policy, check_merging, same_json
from services.policy.authoring.layering import Own, own_of_version
from services.policy.authoring.publishing import Publishing
from services.policy.authoring.service import Change, New, PolicyService
from services.policy.editions.making import level_of
from services.policy.layers.merging import Level, Source
from services.policy.sets import store
from services.policy.sets.domain import (
    MOST_KNOWN,
    Action,
    Entry,
    Member,
    Plan,
    Step,
    aliases,
    at,
    check_entries,
    for_single_devices,
    not_a_draft,
    not_adopted,
    not_exportable,
    of_another_set,
    plan_of,
)
from services.policy.sets.variables import ApplyingVariables, Named, exported
from services.policy.simulation.domain import Tally
from services.policy.simulation.places import Candidate
from services.policy.simulation.service import Simulations
from services.policy.targets.domain import Group, PolicyTargets, of_no_organisation
from services.policy.targets.service import Seats
from services.policy.targets.store import known_groups, write_groups
from services.policy.variables.service import Variables
from services.policy.vault import Vault


@dataclass(frozen=True, slots=True)
class Asked:
    """A set, and what is to be done with it."""

    tenant_id: UUID
    name: str
    entries: tuple[Entry, ...]
    prune: bool = False
    adopt: bool = False
    validate_only: bool = False
    expected_sha256: str = ""
    planned_groups: frozenset[str] = frozenset()
    """Groups that are made before the set is applied."""
    renamed_groups: Mapping[str, UUID] = field(default_factory=dict)
    named: Named = field(default_factory=Named)
    """Groups that get these aliases before."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A policy as a set would have it."""

    entry: Entry
    policy: Policy
    set_name: str


_CAREFUL: Final = Publishing(keeps_rollouts=True)
"""Rollouts that somebody began are left to them."""


class _PlanOnlyError(Exception):
    """Ends the transaction of a plan without a commit."""


class PolicySets:
    """The use cases around sets of policies."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        outbox: Outbox,
        tenants: TenantDirectory,
        changes: Changes,
        policies: PolicyService,
        variables: Variables,
        simulations: Simulations,
        seats: Seats,
    ) -> None:
        self._variables = variables
        self._database = database
        self._vault = vault
        self._outbox = outbox
        self._tenants = tenants
        self._changes = changes
        self._policies = policies
        self._simulations = simulations
        self._seats = seats

    async def apply(self, call: Call, asked: Asked) -> tuple[Plan, Tally | None]:
        """Makes a tenant's policies what a set says, all of them or none.

        Answers what it did, or with `validate_only` what it would do, and for how many devices.

        Raises:
            DomainError: INVALID_ARGUMENT with the entry's field; ABORTED when the plan is not the
                expected one; what the use cases of policies raise.
        """
        tenant = await self._tenants.require(call.caller, asked.tenant_id, to_add=True)
        check_entries(asked.entries)
        asked.named.check()
        for index, entry in enumerate(asked.entries):
            with at(index):
                check_merging(entry.merging)
                if entry.groups and tenant.kind != "org":
                    raise of_no_organisation()
        if any(entry.groups for entry in asked.entries):
            await self._seats.ask()
        applying = _Applying(self._policies, self._variables, self._vault, call, asked)
        try:
            async with self._database.transaction(Scope.of(tenant.id)) as connection:
                plan = await applying.run(connection)
                if asked.expected_sha256 not in {"", plan.sha256}:
                    raise aborted(
                        "PLAN_OUTDATED",
                        "something changed since the plan was made; make it once more",
                    )
                if asked.validate_only:
                    raise _PlanOnlyError
                if plan.does_something:
                    await self._tell(connection, asked, plan)
        except _PlanOnlyError:
            return plan, await self._simulated(applying)
        if plan.does_something:
            await self._changes.catch_up()
        return plan, None

    async def export(self, call: Call, tenant_id: UUID | None) -> tuple[list[Exported], Named]:
        """All policies of a tenant but those of single devices, as a set would have them; and its
        variables, with the names of its secrets.

        Raises:
            DomainError: FAILED_PRECONDITION with the names of policies that files cannot say, as
                they have unpublished changes, or are for a group that was deleted.
        """
        asked = tenant_id or UUID(call.caller.tenant_id)
        tenant = await self._tenants.require(call.caller, asked)
        found: list[Exported] = []
        reasons: list[str] = []
        async with self._database.transaction(Scope.of(tenant.id)) as connection:
            named_values = await exported(connection, tenant.id)
            members = await store.members(connection, tenant.id)
            known = await _all(connection, self._vault, tenant.id)
            named = aliases(known, members)
            for one in known:
                if one.targets.device_ids:
                    continue
                policy = await authoring_store.get_policy(
                    connection, self._vault, Scope.of(tenant.id), one.id
                )
                if policy is None:
                    continue
                member = members.get(policy.id)
                is_used = policy.in_force or policy.rollout_id is not None
                if (
                    is_used
                    and policy.changed_since_publish
                    and not await self._policies.is_on_its_way(connection, policy)
                ):
                    reasons.append(f"{policy.name} has unpublished changes: publish or undo them")
                groups = await store.aliases_of(connection, tenant.id, policy.targets.group_ids)
                entry = Entry(
                    named[policy.id],
                    policy.name,
                    policy.description or "",
                    json.loads(policy.authored),
                    policy.merging,
                    tuple(groups[id_] for id_ in policy.targets.group_ids if id_ in groups),
                    draft=not is_used,
                    renamed_from="",
                )
                if len(groups) < len(policy.targets.group_ids):
                    reasons.append(
                        f"{policy.name} is for a group that was deleted: change its targets"
                    )
                found.append(Exported(entry, policy, "" if member is None else member.set_name))
        if reasons:
            raise not_exportable(reasons)
        return found, named_values

    async def _simulated(self, applying: _Applying) -> Tally | None:
        if not applying.candidates:
            return None
        node = self._tenants.whole_line(applying.asked.tenant_id)[-1]
        candidates = [
            replace(one, source=replace(one.source, level=level_of(node)))
            for one in applying.candidates
        ]
        return await self._simulations.tallied(candidates)

    async def _tell(self, connection: Connection, asked: Asked, plan: Plan) -> None:
        def count(*actions: Action) -> int:
            return sum(step.action in actions for step in plan.steps)

        event = PolicySetApplied(
            id=asked.tenant_id,
            after=AppliedPolicySet(
                name=asked.name,
                plan_sha256=plan.sha256,
                created=count(Action.CREATE),
                updated=count(Action.UPDATE, Action.RESTORE, Action.ADOPT),
                deleted=count(Action.DELETE),
                published=sum(step.publishes for step in plan.steps),
            ),
        )
        await self._outbox.append(connection, CloudEvent(event, asked.tenant_id))


class _Applying:
    """One transaction in which a set is applied; what is published by it is in `candidates`."""

    def __init__(
        self,
        policies: PolicyService,
        variables: Variables,
        vault: Vault,
        call: Call,
        asked: Asked,
    ) -> None:
        self._variables = ApplyingVariables(
            variables,
            call,
            asked.tenant_id,
            asked.named,
            set_name=asked.name,
            adopt=asked.adopt,
        )
        self._vault = vault
        self._policies = policies
        self._call = call
        self.asked = asked
        self._scope = Scope.of(asked.tenant_id)
        self.candidates: list[Candidate] = []

    async def run(self, connection: Connection) -> Plan:
        """Does everything."""
        asked = self.asked
        await store.hold(connection, asked.tenant_id)
        members = await store.members(connection, asked.tenant_id)
        known = {one.id: one for one in await _all(connection, self._vault, asked.tenant_id)}
        found = self._found(known, members)
        leaving = [
            member.policy_id
            for member in members.values()
            if member.set_name == asked.name and member.policy_id not in found.values()
        ]
        # All at once and in one order: a publish waits for no other call that waits for it.
        locked: dict[UUID, Policy] = {}
        users = await self._variables.find(connection)
        for id_ in sorted({*found.values(), *leaving, *users}):
            policy = await authoring_store.get_policy(
                connection, self._vault, self._scope, id_, for_update=True
            )
            if policy is not None:
                locked[id_] = policy
        groups = await self._groups(connection)
        variables = await self._variables.put(connection)
        steps: list[Step] = []
        for index, entry in enumerate(asked.entries):
            with at(index):
                before = locked.get(found[entry.alias]) if entry.alias in found else None
                steps.append(
                    await self._entry(
                        connection, entry, before, members, self._targets(entry, groups)
                    )
                )
        for id_ in leaving:
            if id_ in locked:
                steps.append(await self._leaving(connection, locked[id_], members[id_].alias))
        touched = {*found.values(), *leaving}
        for id_, policy in known.items():
            if id_ not in touched:
                member = members.get(id_)
                alias, name = ("", "") if member is None else (member.alias, member.set_name)
                steps.append(Step(Action.OTHER, alias, policy, policy, set_name=name))
        variables += await self._variables.end(connection, prune=asked.prune)
        return plan_of(asked.tenant_id, asked.name, steps, variables)

    def _found(
        self, known: Mapping[UUID, Policy], members: Mapping[UUID, Member]
    ) -> dict[str, UUID]:
        """The policies that entries mean, by alias of the entry."""
        by_alias = {member.alias: member for member in members.values()}
        proposed = aliases([*known.values()], members)
        found: dict[str, UUID] = {}
        for index, entry in enumerate(self.asked.entries):
            member = by_alias.get(entry.alias) or by_alias.get(entry.renamed_from)
            if member is not None:
                if member.set_name != self.asked.name and not self.asked.adopt:
                    raise of_another_set(member.alias, member.set_name)
                found[entry.alias] = member.policy_id
                continue
            free = [
                one for one in known.values() if one.name == entry.name and one.id not in members
            ]
            if not free:
                continue
            if not self.asked.adopt:
                raise not_adopted(entry.alias, entry.name)
            # Of several those that an export tells apart.
            free = [one for one in free if proposed[one.id] == entry.alias] or free
            if len(free) > 1:
                raise invalid_field(
                    f"policies[{index}].name", "several policies that belong to no set have it"
                )
            if free[0].id in found.values():
                raise invalid_field(f"policies[{index}].name", "is in the set twice")
            found[entry.alias] = free[0].id
        return found

    async def _groups(self, connection: Connection) -> dict[str, UUID]:
        """The groups of the set by alias. A plan has those that come until it is applied, too."""
        asked = self.asked
        aliases = {alias for entry in asked.entries for alias in entry.groups}
        groups = await store.groups_by_alias(connection, asked.tenant_id, aliases)
        if not asked.validate_only:
            return groups
        renamed = asked.renamed_groups
        known = await known_groups(connection, asked.tenant_id, renamed.values())
        # What has an alias now may have another one then.
        groups = {alias: id_ for alias, id_ in groups.items() if id_ not in known}
        groups |= {alias: id_ for alias, id_ in renamed.items() if id_ in known}
        coming = {
            alias: new_id()
            for alias in sorted(aliases & asked.planned_groups)
            if alias not in groups
        }
        # They end with the plan's transaction: until then a publish finds them.
        await write_groups(
            connection,
            [
                Group(id_, asked.tenant_id, alias, alias, 1, deleted=False)
                for alias, id_ in coming.items()
            ],
        )
        return groups | coming

    def _targets(self, entry: Entry, groups: Mapping[str, UUID]) -> PolicyTargets:
        missing = [alias for alias in entry.groups if alias not in groups]
        if missing:
            raise invalid_field("groups", f"no group has the alias {missing[0]}")
        return PolicyTargets(tuple(groups[alias] for alias in entry.groups))

    async def _entry(
        self,
        connection: Connection,
        entry: Entry,
        before: Policy | None,
        members: Mapping[UUID, Member],
        targets: PolicyTargets,
    ) -> Step:
        publish = not entry.draft
        if before is None:
            after = await self._policies.created(
                connection,
                self._call,
                New(
                    self.asked.tenant_id,
                    entry.name,
                    entry.description or None,
                    entry.bundle,
                    entry.merging,
                    targets,
                ),
                publish=publish,
                publishing=_CAREFUL,
            )
            published, action = publish, Action.CREATE
            changed: tuple[str, ...] = ()
        else:
            if before.targets.device_ids:
                raise for_single_devices(entry.alias)
            if entry.draft and (before.in_force or before.rollout_id is not None):
                raise not_a_draft(before.name)
            after, published = await self._policies.updated(
                connection,
                self._call,
                before,
                Change(
                    name=entry.name,
                    # One that is empty is none.
                    description=None
                    if entry.description == (before.description or "")
                    else entry.description,
                    bundle=entry.bundle,
                    has_bundle=True,
                    publish=publish,
                    merging=entry.merging,
                    targets=targets,
                ),
                _CAREFUL,
            )
            member = members.get(before.id)
            changed = _differs(before, after, member, entry)
            action = _action(before, member, self.asked.name, changed)
        if action is not Action.UNCHANGED or published:
            await store.put(
                connection,
                self.asked.tenant_id,
                Member(after.id, entry.alias, self.asked.name, after.revision),
            )
        if published:
            await self._is_candidate(connection, after)
        return Step(
            action,
            entry.alias,
            before,
            after,
            changed,
            published,
            awaits_approval=published and await self._policies.awaits_approval(connection, after),
            groups=entry.groups,
        )

    async def _leaving(self, connection: Connection, policy: Policy, alias: str) -> Step:
        if not self.asked.prune:
            return Step(Action.LEFT, alias, policy, policy, set_name=self.asked.name)
        if policy.in_force:
            await self._is_candidate(connection, policy, withdrawn=True)
        await self._policies.deleted(connection, policy)
        return Step(Action.DELETE, alias, policy, None)

    async def _is_candidate(
        self, connection: Connection, policy: Policy, *, withdrawn: bool = False
    ) -> None:
        if not self.asked.validate_only:
            return
        own: Own | None = None
        if not withdrawn:
            version = await self._policies.coming(connection, policy)
            assert version is not None
            own = own_of_version(version)
        self.candidates.append(
            Candidate(
                Source(Level.ORG, policy.tenant_id, policy.id, policy.name),
                own,
                policy.targets,
                await known_groups(connection, policy.tenant_id, policy.targets.group_ids),
            )
        )


def _differs(before: Policy, after: Policy, member: Member | None, entry: Entry) -> tuple[str, ...]:
    found = {
        "alias": member is not None and member.alias != entry.alias,
        "name": before.name != after.name,
        "description": (before.description or "") != (after.description or ""),
        "bundle": not same_json(before.authored, after.authored),
        "merging": before.merging.stored() != after.merging.stored(),
        "groups": before.targets != after.targets,
    }
    return tuple(name for name, is_other in found.items() if is_other)


def _action(before: Policy, member: Member | None, set_name: str, changed: Sequence[str]) -> Action:
    if member is None or member.set_name != set_name:
        return Action.UPDATE if changed else Action.ADOPT
    if not changed:
        return Action.UNCHANGED
    return Action.UPDATE if member.revision == before.revision else Action.RESTORE


async def _all(connection: Connection, vault: Vault, tenant_id: UUID) -> list[Policy]:
    """A tenant's policies, without bundles."""
    page = await authoring_store.list_policies(
        connection, vault, Scope.of(tenant_id), None, MOST_KNOWN
    )
    return list(page.items)
