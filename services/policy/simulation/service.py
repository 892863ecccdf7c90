"""Simulates a publish or a withdrawal on the devices that there are; nothing is written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID

from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import DomainError, invalid_field, not_found
from servicekit.ids import new_id
from servicekit.peers.tenants import TenantDirectory
from services.policy.authoring import store as authoring_store
from services.policy.authoring.domain import (
    Policy,
    check_merging,
    compile_policy,
    not_publishable,
    standing_of,
)
from services.policy.authoring.layering import InForce, Own, encoded, folded, own_of
from services.policy.authoring.secret_values import complete, restore
from services.policy.editions import store as editions_store
from services.policy.editions.service import level_of, named, source_of
from services.policy.layers.merging import Folded, Level, Merging, Source
from services.policy.simulation import store
from services.policy.simulation.domain import MOST_SAMPLED, Compared, Profile, Tally, compared
from services.policy.simulation.places import Candidate, Place, Rank, device_rank, group_rank
from services.policy.stamps import store as stamps_store
from services.policy.stamps.domain import Targets
from services.policy.targets.domain import (
    PolicyTargets,
    check_targets,
    of_no_organisation,
    still_everywhere,
)
from services.policy.targets.service import Seats, check_there
from services.policy.targets.store import known_groups

_SECONDS: Final = 5.0
"""So long it is looked at devices; of the others nothing is said then."""
_ORGS_AT_ONCE: Final = 100


@dataclass(frozen=True, slots=True)
class Asked:
    """What would be done. A new policy is of `org_id`; `None` leaves what is stored."""

    policy_id: UUID | None = None
    org_id: UUID | None = None
    bundle: Any = field(default=None, repr=False)
    has_bundle: bool = False
    merging: Merging | None = None
    targets: PolicyTargets | None = None
    withdraw: bool = False


class Simulations:
    """The use cases around what would change."""

    def __init__(self, database: Database, tenants: TenantDirectory, seats: Seats) -> None:
        self._database = database
        self._tenants = tenants
        self._seats = seats

    async def simulate(self, call: Call, asked: Asked) -> Tally:
        """What devices would get otherwise, and how many of them.

        Raises:
            DomainError: as a publish would, or a withdrawal.
        """
        if asked.merging is not None:
            check_merging(asked.merging)
        if asked.targets is not None:
            check_targets(asked.targets)
        scope = await self._tenants.query_scope(call.caller)
        if asked.policy_id is None:
            if asked.org_id is None or not asked.has_bundle or asked.withdraw:
                raise invalid_field("policyId", "is required, or orgId with a bundle")
            await self._tenants.require(call.caller, asked.org_id)
        await self._seats.fresh()
        async with self._database.transaction(scope) as connection:
            candidate = await self._candidate(connection, scope, asked)
        async with self._database.system_transaction(
            "layers are of the tenants above"
        ) as connection:
            return await self.tallied(connection, [candidate])

    async def _candidate(self, connection: Connection, scope: Scope, asked: Asked) -> Candidate:
        """The policy as a publish would put it in force."""
        policy: Policy | None = None
        if asked.policy_id is not None:
            policy = await authoring_store.get_policy(connection, scope, asked.policy_id)
            if policy is None:
                raise not_found("policy", asked.policy_id)
        tenant_id = asked.org_id if policy is None else policy.tenant_id
        assert tenant_id is not None
        if asked.org_id not in {None, tenant_id}:
            raise invalid_field("orgId", "must be the policy's")
        targets = await self._targets(connection, tenant_id, policy, asked)
        return Candidate(
            Source(
                level_of(self._tenants.whole_line(tenant_id)[-1]),
                tenant_id,
                new_id() if policy is None else policy.id,
                "" if policy is None else policy.name,
            ),
            None if asked.withdraw else await _own(connection, tenant_id, policy, asked),
            targets,
            await known_groups(connection, tenant_id, targets.group_ids),
        )

    async def _targets(
        self, connection: Connection, tenant_id: UUID, policy: Policy | None, asked: Asked
    ) -> PolicyTargets:
        stored = PolicyTargets() if policy is None else policy.targets
        targets = stored if asked.targets is None else asked.targets
        if targets:
            node = self._tenants.known(tenant_id)
            if node is None or node.kind != "org":
                raise of_no_organisation()
        if policy is not None and policy.in_force and bool(targets) != bool(stored):
            raise still_everywhere()
        await check_there(connection, tenant_id, targets)
        return targets

    async def tallied(self, connection: Connection, candidates: Sequence[Candidate]) -> Tally:
        """What policies of one tenant would change together.

        Args:
            connection: that sees all rows.
            candidates: at least one.

        Raises:
            DomainError: FAILED_PRECONDITION when devices could not apply one with those above.
        """
        looking = _Looking(candidates)
        tenant_id = looking.tenant_id
        # Also where no device is: what all would get, and those in one group.
        here = (await self._places(connection, [tenant_id], candidates))[tenant_id]
        for one in candidates:
            _check_fits(here, one)
        looking.compare(here.profile((), 0, ()))
        for target in dict.fromkeys(id_ for one in candidates for id_ in one.targets.ids):
            looking.compare(here.profile((target,), 0, ()))
        orgs = [one.id for one in self._tenants.subtree(tenant_id) if one.kind == "org"]
        for start in range(0, len(orgs), _ORGS_AT_ONCE):
            some = orgs[start : start + _ORGS_AT_ONCE]
            if not await self._look(connection, looking, some):
                looking.tally.complete = False
                break
        looking.tally.finish()
        return looking.tally

    async def _look(
        self, connection: Connection, looking: _Looking, org_ids: Sequence[UUID]
    ) -> bool:
        """Counts the devices of organisations; answers whether there was time for all."""
        if looking.is_over:
            return False
        places = await self._places(connection, org_ids, looking.candidates)
        own = {
            rank[2] for place in places.values() for rank in (*place.bound_now, *place.bound_then)
        }
        standings = await stamps_store.standings(connection, org_ids)
        profiles: dict[tuple[UUID, Targets], tuple[int, tuple[UUID, ...]]] = {}
        for alike in await store.alike(connection, org_ids, own):
            place = places[alike.tenant_id]
            targets = place.targets(alike.group_ids, alike.own)
            now = place.targets_now(targets)
            standing = standings[alike.tenant_id]
            want = (self._seats.standing(alike.tenant_id, now) if now else standing).want
            if want is not None and alike.version not in want.versions:
                looking.tally.pending += alike.devices
            count, sample = profiles.get((alike.tenant_id, targets), (0, ()))
            profiles[alike.tenant_id, targets] = (
                count + alike.devices,
                (*sample, *alike.sample)[:MOST_SAMPLED],
            )
        for (tenant_id, targets), (count, sample) in profiles.items():
            # Polls are answered in between.
            await asyncio.sleep(0)
            if looking.is_over:
                return False
            looking.compare(places[tenant_id].profile(targets, count, sample))
        return True

    async def _places(
        self,
        connection: Connection,
        tenant_ids: Sequence[UUID],
        candidates: Sequence[Candidate],
    ) -> dict[UUID, Place]:
        """What is in force for tenants now, and what would be then."""
        lines = {one: self._tenants.whole_line(one) for one in tenant_ids}
        levels = {node.id: level_of(node) for line in lines.values() for node in line}
        assigned = {
            one.tenant_id: InForce(source_of(levels[one.tenant_id], one), one.own)
            for one in await editions_store.assigned(connection, sorted(levels))
        }
        then = assigned
        for one in candidates:
            then = one.in_force(then)
        targets = await store.bound_targets(connection, tenant_ids)
        found: dict[UUID, Place] = {}
        for tenant_id, line in lines.items():
            ids = [node.id for node in line]
            bound: dict[Rank, InForce] = {}
            if tenant_id in targets:
                bound = await _bound(connection, tenant_id, targets[tenant_id])
            bound_then = bound
            for candidate in candidates:
                if candidate.tenant_id == tenant_id:
                    bound_then = candidate.bound(bound_then)
            found[tenant_id] = Place(
                [assigned[one] for one in ids if one in assigned],
                [then[one] for one in ids if one in then],
                bound,
                bound_then,
            )
        return found


class _Looking:
    """What is compared so far, with all that was compared once."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.candidates = candidates
        self.tenant_id = candidates[0].tenant_id
        self.tally = Tally(
            {one.policy_id: one.source.policy_name for one in candidates if one.own is not None}
        )
        self._until = asyncio.get_running_loop().time() + _SECONDS
        self._compared: dict[object, Compared] = {}

    @property
    def is_over(self) -> bool:
        """Whether there is no time for more."""
        return asyncio.get_running_loop().time() > self._until

    def compare(self, profile: Profile) -> None:
        """Counts the devices of a profile, and what is different for them."""
        self.tally.devices += profile.devices
        now, then = tuple(named(profile.now)), tuple(named(profile.then))
        if now == then:
            return
        if (now, then) not in self._compared:
            self._compared[now, then] = compared(
                profile, self.tenant_id, self.tally.policies, then, _fits
            )
        self.tally.take(profile, self._compared[now, then])


async def _own(connection: Connection, tenant_id: UUID, policy: Policy | None, asked: Asked) -> Own:
    """What the policy sets by itself, compiled as a publish does."""
    stored = None if policy is None else json.loads(policy.authored)
    bundle = restore(asked.bundle, stored, "bundle") if asked.has_bundle else stored
    in_force = await authoring_store.get_in_force(connection, tenant_id)
    known = [] if in_force is None else [json.loads(in_force.authored)]
    bundle = complete(bundle, *([] if stored is None else [stored]), *known)
    try:
        document = compile_policy(bundle, standing_of(in_force))
    except DomainError as broken:
        if asked.has_bundle:
            raise
        raise not_publishable(broken) from broken
    merging = asked.merging
    if merging is None:
        merging = Merging() if policy is None else policy.merging
    return own_of(bundle, document, merging)


async def _bound(
    connection: Connection, tenant_id: UUID, priorities: Mapping[UUID, int]
) -> dict[Rank, InForce]:
    """What is in force for groups and devices of an organisation, by where they stand."""
    found: dict[Rank, InForce] = {}
    for one in await editions_store.bound(connection, tenant_id, priorities.keys()):
        level = Level.DEVICE if one.is_device else Level.GROUP
        source = replace(
            source_of(level, one.assigned), target_id=one.target_id, target_name=one.alias
        )
        rank = (
            device_rank(one.target_id)
            if one.is_device
            else group_rank(one.target_id, priorities[one.target_id])
        )
        found[rank] = InForce(source, one.assigned.own)
    return found


def _check_fits(here: Place, candidate: Candidate) -> None:
    """Refuses what a publish refuses: a policy that fits to nothing above it."""
    if candidate.own is None:
        return
    above = [
        one for one in here.now if candidate.targets or one.source.tenant_id != candidate.tenant_id
    ]
    if above:
        encoded(folded([*above, InForce(candidate.source, candidate.own)]))


def _fits(found: Folded) -> bool:
    try:
        encoded(found)
    except DomainError:
        return False
    return True
