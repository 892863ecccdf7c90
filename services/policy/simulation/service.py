"""Simulates a publish or a withdrawal on the devices that there are; nothing is written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID

from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import DomainError, FieldViolation, invalid, invalid_field, not_found
from servicekit.ids import new_id
from servicekit.peers.tenants import TenantDirectory, TenantNode
from services.policy.authoring import store as authoring_store
from services.policy.authoring.domain import (
    Policy,
    check_merging,
    compile_policy,
    not_publishable,
    standing_of,
)
from services.policy.authoring.filling import OwnValues
from services.policy.authoring.layering import Own, own_of
from services.policy.authoring.secret_values import complete, restore
from services.policy.authoring.templates import NO_VALUES, Values, references
from services.policy.breath import Breath
from services.policy.editions.making import level_of
from services.policy.layers.below import Below, below
from services.policy.layers.merging import Merging, Source
from services.policy.simulation import store
from services.policy.simulation.domain import MOST_SAMPLED, Notice, Some, Tally
from services.policy.simulation.looking import Looking
from services.policy.simulation.places import Candidate, Place
from services.policy.simulation.turns import Turns
from services.policy.stamps import store as stamps_store
from services.policy.stamps.domain import Standing, Targets
from services.policy.targets.domain import (
    MOST_BOUND,
    MOST_PROFILES,
    PolicyTargets,
    check_targets,
    of_no_organisation,
    still_everywhere,
    too_many_bound,
)
from services.policy.targets.service import Seats, check_there
from services.policy.variables import store as variables_store
from services.policy.variables.values import ValuesInUse
from services.policy.vault import Vault
from services.policy.versions import Version

_SECONDS: Final = 5.0
"""So long it is looked at devices; of the others nothing is said then."""
_ORGS_AT_ONCE: Final = 100
_BOUND_AT_ONCE: Final = 2_000
"""Groups and devices with policies of the organisations that are looked at at once, unless it is
one organisation."""


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


@dataclass(frozen=True, slots=True)
class _Read:
    """What there is of what is asked."""

    tenant_id: UUID
    policy: Policy | None
    in_force: Version | None
    candidate: Candidate
    """As for a withdrawal."""
    values: Values = NO_VALUES
    """Of the references of the policy, as it is stored or asked for."""


class Simulations:
    """The use cases around what would change."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        tenants: TenantDirectory,
        seats: Seats,
        values: ValuesInUse,
    ) -> None:
        self._database = database
        self._vault = vault
        self._tenants = tenants
        self._seats = seats
        self._values = values
        self._turns = Turns()

    async def simulate(self, call: Call, asked: Asked) -> Tally:
        """What devices would get otherwise, and how many of them.

        Raises:
            DomainError: as a publish would, or a withdrawal; RESOURCE_EXHAUSTED when another one of
                the caller's tenant is under way.
        """
        _check(asked)
        async with self._turns.turn(UUID(call.caller.tenant_id)):
            scope = await self._tenants.query_scope(call.caller)
            if asked.policy_id is None:
                assert asked.org_id is not None
                await self._tenants.require(call.caller, asked.org_id, to_add=True)
            if asked.targets:
                await self._seats.ask()
            is_fresh = await self._seats.fresh()
            async with self._database.transaction(scope) as connection:
                read = await self._read(connection, scope, asked)
            candidate = read.candidate
            if not asked.withdraw:
                candidate = replace(candidate, own=_own(read, asked))
            tally = await self._tallied([candidate])
        if not is_fresh:
            tally.warnings.add(Notice("STALE"), Some(tally.devices))
        return tally

    async def tallied(self, candidates: Sequence[Candidate]) -> Tally:
        """What policies of one tenant would change together.

        Args:
            candidates: at least one.

        Raises:
            DomainError: FAILED_PRECONDITION when devices could not apply one with those above it;
                RESOURCE_EXHAUSTED when another simulation of the tenant is under way.
        """
        async with self._turns.turn(candidates[0].tenant_id):
            return await self._tallied(candidates)

    async def _read(self, connection: Connection, scope: Scope, asked: Asked) -> _Read:
        policy: Policy | None = None
        if asked.policy_id is not None:
            policy = await authoring_store.get_policy(
                connection, self._vault, scope, asked.policy_id
            )
            if policy is None:
                raise not_found("policy", asked.policy_id)
        tenant_id = asked.org_id if policy is None else policy.tenant_id
        assert tenant_id is not None
        if asked.org_id not in {None, tenant_id}:
            raise invalid_field("orgId", "must be the policy's")
        source = Source(
            level_of(self._tenants.whole_line(tenant_id)[-1]),
            tenant_id,
            new_id() if policy is None else policy.id,
            "" if policy is None else policy.name,
        )
        if asked.withdraw:
            # A target may be gone; the withdrawal works all the same.
            return _Read(tenant_id, policy, None, Candidate(source, None, PolicyTargets(), {}))
        stored = PolicyTargets() if policy is None else policy.targets
        targets = stored if asked.targets is None else asked.targets
        if targets:
            node = self._tenants.known(tenant_id)
            if node is None or node.kind != "org":
                raise of_no_organisation()
        if policy is not None and policy.in_force and bool(targets) != bool(stored):
            raise still_everywhere()
        groups = await check_there(connection, tenant_id, targets, to_keep=False)
        bundle = asked.bundle if asked.has_bundle or policy is None else json.loads(policy.authored)
        values = await self._values(connection, tenant_id, references(bundle), to_keep=False)
        return _Read(
            tenant_id,
            policy,
            await authoring_store.get_in_force(connection, self._vault, tenant_id),
            Candidate(source, None, targets, groups),
            values,
        )

    async def _tallied(self, candidates: Sequence[Candidate]) -> Tally:
        looking = Looking(self._database, self._vault, candidates, _SECONDS)
        tenant_id = looking.tenant_id
        async with self._database.system_transaction(
            "layers are of the tenants above"
        ) as connection:
            here = (await self._places(connection, [tenant_id], candidates))[tenant_id]
            orgs = [one.id for one in self._tenants.subtree(tenant_id) if one.kind == "org"]
            bound = await store.count_bound(connection, orgs)
        for one in candidates:
            await _check_fits(looking, here, one)
        if here.bound > MOST_BOUND and any(one.own and one.targets for one in candidates):
            raise too_many_bound()
        # Also where no device is: what all would get, and those in one group.
        await looking.compare(here, (), None, Some())
        complete = True
        for some in _batches(orgs, bound):
            complete = complete and await self._look(looking, some)
        for target in dict.fromkeys(id_ for one in candidates for id_ in one.targets.ids):
            if looking.is_over:
                complete = False
                break
            await looking.compare(here, (target,), None, Some())
        looking.tally.complete = complete
        looking.tally.finish()
        return looking.tally

    async def _look(self, looking: Looking, org_ids: Sequence[UUID]) -> bool:
        """Counts the devices of organisations; answers whether there was time for all."""
        if looking.is_over:
            return False
        pending = 0
        found: dict[UUID, dict[tuple[Targets, int], Some]] = {one: {} for one in org_ids}
        async with self._database.system_transaction(
            "layers are of the tenants above"
        ) as connection:
            places = await self._places(connection, org_ids, looking.candidates)
            standings = await stamps_store.standings(connection, org_ids)
            own = {device_id for place in places.values() for device_id in place.own}
            breath = Breath()
            async for alike in store.alike(connection, org_ids, own):
                await breath.take()
                place = places[alike.tenant_id]
                targets = place.targets(
                    alike.group_ids if alike.own is None else (*alike.group_ids, alike.own)
                )
                if alike.gate is not None:
                    if place.layers_now(targets) != place.layers_then(targets):
                        gated = Some(alike.devices, alike.sample)
                        looking.tally.warnings.add(Notice("RESTRICTED"), gated)
                    targets = (alike.gate,)
                if self._is_pending(standings, place, targets, alike.version):
                    pending += alike.devices
                # What they have only counts where nothing is in force, now or then.
                both = place.layers_now(targets) and place.layers_then(targets)
                key = targets, -1 if both else alike.version
                some = found[alike.tenant_id].get(key, Some())
                found[alike.tenant_id][key] = Some(
                    some.devices + alike.devices, (*some.sample, *alike.sample)[:MOST_SAMPLED]
                )
        looking.tally.pending += pending
        for org_id, devices in found.items():
            if not await self._compare(looking, places[org_id], devices):
                return False
        return True

    def _is_pending(
        self, standings: Mapping[UUID, Standing], place: Place, targets: Targets, version: int
    ) -> bool:
        """Whether devices do not have what they are to have now."""
        now = place.targets_now(targets)
        standing = standings[place.tenant_id]
        want = (self._seats.standing(place.tenant_id, now) if now else standing).want
        return want is not None and version not in want.versions

    async def _compare(
        self, looking: Looking, place: Place, devices: Mapping[tuple[Targets, int], Some]
    ) -> bool:
        """Compares what is different for an organisation; answers whether there was time."""
        tally = looking.tally
        sets = {targets for targets, _ in devices}
        changed = {one for one in {*sets, ()} if place.layers_now(one) != place.layers_then(one)}
        tally.made += len({place.targets_then(one) for one in changed})
        then = {place.targets_then(one) for one in sets} - {()}
        left_out = {*sorted(then)[MOST_PROFILES:]}
        for (targets, version), some in devices.items():
            if looking.is_over:
                return False
            tally.concern(place.layers_then(targets), some.devices)
            if place.targets_then(targets) in left_out:
                tally.warnings.add(Notice("TOO_MANY_SETS"), some)
                continue
            await looking.compare(place, targets, version, some)
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
        found = await store.in_force(connection, levels.keys(), tenant_ids)
        now = {
            tenant_id: replace(source, level=levels[tenant_id])
            for tenant_id, source in found.of_tenants.items()
        }
        then = now
        for one in candidates:
            then = one.in_force(then)
        leaves = {**found.leaves, **{one.key: one.leaves for one in candidates}}
        names = {name for key in leaves for name in leaves[key]}
        own: dict[UUID, OwnValues] = {}
        if names:
            own = await variables_store.own_values(connection, self._vault, levels.keys(), names)

        values = {tenant_id: some.values for tenant_id, some in own.items()}
        places: dict[UUID, Place] = {}
        breath = Breath()
        for tenant_id, line in lines.items():
            await breath.take()
            under = _under(line, own) if names else {}
            bound = bound_then = found.bound.get(tenant_id, {})
            gates = gates_then = found.gates.get(tenant_id, {})
            for one in candidates:
                if one.tenant_id == tenant_id:
                    bound_then = one.bound(bound_then)
                    gates_then = one.gates(gates_then)
            places[tenant_id] = Place(
                tenant_id,
                _filled(line, now, leaves, under),
                _filled(line, then, leaves, under),
                bound,
                bound_then,
                gates,
                gates_then,
                under,
                values,
            )
        return places


def _under(line: Sequence[TenantNode], own: Mapping[UUID, OwnValues]) -> dict[UUID, Below]:
    """The tenants below each of a line."""
    found: dict[UUID, Below] = {}
    changes = {node.id: own[node.id].changes for node in line if node.id in own}
    for at, node in enumerate(line):
        found[node.id] = below(line[at + 1 :], changes.get)
    return found


def _filled(
    line: Sequence[TenantNode],
    layers: Mapping[UUID, Source],
    leaves: Mapping[tuple[UUID, int], frozenset[str]],
    under: Mapping[UUID, Below],
) -> Iterator[Source]:
    """The layers of a line, each with which values of tenants below are in it."""
    for node in line:
        if node.id in layers:
            layer = layers[node.id]
            left = leaves.get((node.id, layer.version), frozenset())
            yield replace(layer, filled=under[node.id].mark(left)) if left else layer


def _check(asked: Asked) -> None:
    """Refuses what contradicts itself."""
    if asked.merging is not None:
        check_merging(asked.merging)
    if asked.targets is not None:
        check_targets(asked.targets)
    if asked.policy_id is None and (asked.org_id is None or not asked.has_bundle or asked.withdraw):
        raise invalid_field("policyId", "is required, or orgId with a bundle")
    given = {
        "bundle": asked.has_bundle,
        "merging": asked.merging is not None,
        "targets": asked.targets is not None,
    }
    if asked.withdraw and any(given.values()):
        rule = "must not be given for a withdrawal"
        raise invalid(*(FieldViolation(name, rule) for name, is_given in given.items() if is_given))


def _own(read: _Read, asked: Asked) -> Own:
    """What the policy sets by itself, compiled as a publish does."""
    policy, in_force = read.policy, read.in_force
    stored = None if policy is None else json.loads(policy.authored)
    bundle = restore(asked.bundle, stored, "bundle") if asked.has_bundle else stored
    known = [] if in_force is None else [json.loads(in_force.authored)]
    bundle = complete(bundle, *([] if stored is None else [stored]), *known)
    try:
        document = compile_policy(bundle, standing_of(in_force), values=read.values)
    except DomainError as broken:
        if asked.has_bundle:
            raise
        raise not_publishable(broken) from broken
    merging = asked.merging
    if merging is None:
        merging = Merging() if policy is None else policy.merging
    return own_of(bundle, document, merging, read.values)


async def _check_fits(looking: Looking, here: Place, candidate: Candidate) -> None:
    """Refuses what a publish refuses: a policy that fits to nothing above it."""
    if candidate.own is None:
        return
    above = tuple(
        one for one in here.now if candidate.targets or one.tenant_id != candidate.tenant_id
    )
    if above:
        await looking.check_fits(here, (*above, candidate.source))


def _batches(orgs: Sequence[UUID], bound: Mapping[UUID, int]) -> Iterator[list[UUID]]:
    """Organisations that are read at once."""
    batch: list[UUID] = []
    count = 0
    for org in orgs:
        count += bound.get(org, 0)
        if batch and (len(batch) == _ORGS_AT_ONCE or count > _BOUND_AT_ONCE):
            yield batch
            batch, count = [], bound.get(org, 0)
        batch.append(org)
    if batch:
        yield batch
