"""Puts layers together: for one organisation, or for many in a few statements.

A publish of a tenant above is about thousands of organisations, so what is read and stored of them
is read and stored for many at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Final, TypeAlias
from uuid import UUID

from servicekit.data.postgres import Connection
from servicekit.errors import DomainError
from servicekit.ids import new_id
from servicekit.observability import logs
from servicekit.peers.tenants import TenantDirectory, TenantNode
from servicekit.security.digests import sha256
from services.policy.authoring.filling import (
    OwnValues,
    differs_in_names,
    filled,
    held,
    made_with,
)
from services.policy.authoring.layering import InForce, together
from services.policy.breath import Breath
from services.policy.editions import store
from services.policy.keys.service import KeyRing
from services.policy.layers.below import below
from services.policy.layers.merging import Level, Source
from services.policy.stamps import numbers
from services.policy.stamps import store as stamps_store
from services.policy.stamps.domain import (
    Content,
    Document,
    Part,
    Targets,
    is_same,
    recipe_of,
    versions_of,
)
from services.policy.stamps.numbers import Counter, Wanted
from services.policy.stamps.service import Stamping, Stamps
from services.policy.variables import store as variables_store
from services.policy.vault import Vault

log = logs.get(__name__)

_MOST_MADE: Final = 16
"""Documents that are kept for the next organisation; one can have half a megabyte."""
_LEVELS: Final = {"root": Level.ROOT, "reseller": Level.RESELLER, "org": Level.ORG}

Place: TypeAlias = tuple[UUID, Targets]
"""An organisation, for all of its devices or for those with some targets."""
Frozen: TypeAlias = Callable[[Connection, Collection[UUID]], Awaitable[Set[UUID]]]
"""Those of some organisations that are in a freeze; the transaction sees all tenants."""


@dataclass(frozen=True, slots=True)
class _Making:
    """What is made for a place, with the document that is to be stored."""

    made: store.Made
    document: Document | None = None
    """`None` where nothing is."""
    is_refilled: bool = False
    """Whether it is made with other values of tenants below than before. Numbers do not tell
    whether such a value is the one above, or what it was before."""

    @property
    def is_new(self) -> bool:
        """Whether its number is a new one, whatever was before."""
        return self.is_refilled and self.document is not None and not self.made.problem

    @property
    def wanted(self) -> Wanted:
        """What a number is to stand for."""
        one = self.made
        assert one.content is not None
        return Wanted(one.tenant_id, one.content, one.profile if one.apart else None)


class Maker:
    """Makes editions, in transactions of others."""

    def __init__(
        self,
        stamps: Stamps,
        keys: KeyRing,
        vault: Vault,
        tenants: TenantDirectory,
        frozen: Frozen,
    ) -> None:
        self._stamps = stamps
        self._frozen = frozen
        self._keys = keys
        self._vault = vault
        self._tenants = tenants
        self._made: OrderedDict[str, tuple[Content, Document]] = OrderedDict()
        """What organisations without a version of their own have in common, by its recipe."""

    async def layers(
        self, connection: Connection, tenant_id: UUID, targets: Targets = ()
    ) -> list[InForce]:
        """What is in force for a tenant and those above it, the root's first.

        Args:
            targets: groups and devices of the tenant whose policies count, too, and rollouts whose
                versions count in place of those in force; or a gate whose other policy counts in
                place of all of the tenant.

        Raises:
            DomainError: UNAVAILABLE while not all tenants above are known.
        """
        layers = (await self.for_all(connection, [tenant_id]))[tenant_id]
        if not targets:
            return layers
        other = await store.otherwise(connection, self._vault, tenant_id, targets)
        if other is not None:
            layers = [one for one in layers if one.source.tenant_id != tenant_id]
            source = replace(
                source_of(Level.GATE, other.assigned),
                target_id=other.gate_id,
                target_name=other.alias,
            )
            return [*layers, InForce(source, other.assigned.own)]
        rolled = await store.rolled_out(connection, self._vault, tenant_id, targets)
        if rolled is not None:
            layers = [one for one in layers if one.source.tenant_id != tenant_id]
            level = level_of(self._tenants.whole_line(tenant_id)[-1])
            layers.append(InForce(source_of(level, rolled), rolled.own))
        bound = await store.bound(connection, self._vault, tenant_id, targets)
        return [*layers, *map(_of_target, bound)]

    async def make(self, connection: Connection, places: Sequence[Place]) -> set[UUID]:
        """Stores and stamps what devices are to have; answers the organisations that wait.

        In a freeze nothing is made of a name that an organisation got, unless something else
        changed, too.

        Args:
            connection: of a transaction that sees all tenants.
            places: each once; all devices of an organisation before those with targets.

        Raises:
            DomainError: UNAVAILABLE while not all tenants above are known.
        """
        orgs = {org_id for org_id, _ in places}
        counters: Mapping[UUID, Counter] = await numbers.lock_counters(connection, orgs)
        layers = await self._all_layers(connection, places)
        stored = await store.get_stored(connection, orgs)
        making: list[_Making] = []
        same: list[store.Made] = []
        """Where other values of tenants below changed than those that count."""
        waits: set[UUID] = set()
        frozen: Set[UUID] | None = None
        breath = Breath()
        for place in places:
            await breath.take()
            before, recipe = stored.get(place), recipe_of(named(layers[place]))
            if before is not None and before.recipe == recipe:
                continue
            one = _beginning(place, recipe, layers[place], before)
            is_refilled = one.filled != ("" if before is None else before.filled)
            if before is not None and is_same(before.recipe, recipe):
                if not is_refilled:
                    same.append(replace(one, content=before.content, problem=before.problem))
                    continue
                if differs_in_names(one.filled, before.filled):
                    frozen = await self._frozen(connection, orgs) if frozen is None else frozen
                    if place[0] in frozen:
                        waits.add(place[0])
                        continue
            try:
                fitting = self._fitting(one, layers[place])
                making.append(replace(fitting, is_refilled=is_refilled))
            except DomainError as unfit:
                log.warning("layers do not fit", tenant=str(place[0]), error=unfit.message)
                # What the devices have is looked up, which what is made here may be.
                counters = await self._store(connection, making, stored, counters)
                kept = await self._unfit(connection, one, layers[place], before, unfit.message)
                making = [replace(kept, is_refilled=is_refilled)]
        await self._store(connection, making, stored, counters)
        await _put(connection, same)
        return waits

    async def for_all(
        self, connection: Connection, tenant_ids: Collection[UUID]
    ) -> dict[UUID, list[InForce]]:
        """What is in force for all devices of tenants, the root's first, with their own values."""
        lines = {one: self._tenants.whole_line(one) for one in tenant_ids}
        nodes = {node.id: node for line in lines.values() for node in line}
        assigned = {
            one.tenant_id: InForce(source_of(level_of(nodes[one.tenant_id]), one), one.own)
            for one in await store.assigned(connection, self._vault, [*nodes])
        }
        names = {name for one in assigned.values() if one.own.open for name in one.own.open.names}
        own: dict[UUID, OwnValues] = {}
        if names:
            own = await variables_store.own_values(connection, self._vault, nodes.keys(), names)
        found: dict[UUID, list[InForce]] = {}
        breath = Breath()
        for tenant_id, line in lines.items():
            await breath.take()
            found[tenant_id] = _filled(line, assigned, own)
        return found

    async def _all_layers(
        self, connection: Connection, places: Sequence[Place]
    ) -> dict[Place, list[InForce]]:
        """As `layers`, of many places."""
        of_all = await self.for_all(connection, {org_id for org_id, _ in places})
        several = await store.of_several_versions(
            connection, {one for _, targets in places for one in targets}
        )
        plain = [place for place in places if several.isdisjoint(place[1])]
        pairs = {(org_id, target) for org_id, targets in plain for target in targets}
        bound = await store.bound_to_targets(connection, self._vault, pairs) if pairs else []
        of_org: dict[UUID, list[InForce]] = {}
        for one in bound:
            of_org.setdefault(one.assigned.tenant_id, []).append(_of_target(one))
        found: dict[Place, list[InForce]] = {}
        for org_id, targets in plain:
            mine = [one for one in of_org.get(org_id, ()) if one.source.target_id in targets]
            found[org_id, targets] = [*of_all[org_id], *mine]
        for place in places:
            if place not in found:
                found[place] = await self.layers(connection, *place)
        return found

    def _fitting(self, made: store.Made, layers: Sequence[InForce]) -> _Making:
        """What layers make together.

        Raises:
            DomainError: FAILED_PRECONDITION when devices could not apply that.
        """
        if not layers:
            return _Making(made)
        content, document = self._encoded(made.tenant_id, made.recipe, layers)
        return _Making(replace(made, content=content), document)

    async def _unfit(
        self,
        connection: Connection,
        made: store.Made,
        layers: Sequence[InForce],
        before: store.Stored | None,
        problem: str,
    ) -> _Making:
        """What devices get of layers that do not fit."""
        made = replace(made, problem=problem)
        kept = await self._kept(connection, made.tenant_id, before)
        held = await self._held(connection, made.tenant_id, layers, kept)
        return _Making(made) if held is None else _Making(replace(made, content=held[0]), held[1])

    async def _held(
        self,
        connection: Connection,
        org_id: UUID,
        layers: Sequence[InForce],
        kept: Content | None,
    ) -> tuple[Content, Document] | None:
        """The document of layers that do not fit; `None` where there is nothing to give."""
        had = None
        if kept is not None:
            had = (await stamps_store.documents(connection, self._vault, [kept])).get(kept)
        try:
            body = held(layers, None if had is None else had.body).body
        except DomainError:
            return None if kept is None or had is None else (kept, had)
        if kept is not None and had is not None and body == had.body:
            return kept, had
        # What was kept may have values of tenants below.
        is_filled = any(one.source.filled for one in layers)
        return self._signed(org_id if is_filled else layers[-1].source.tenant_id, body)

    async def _kept(
        self, connection: Connection, org_id: UUID, before: store.Stored | None
    ) -> Content | None:
        """What the devices were to have until now, at least as all of the organisation."""
        if before is not None and before.content is not None:
            return before.content
        org = (await stamps_store.standings(connection, [org_id])).get(org_id)
        return None if org is None or org.want is None else org.want.content

    def _encoded(
        self, org_id: UUID, recipe: str, layers: Sequence[InForce]
    ) -> tuple[Content, Document]:
        """The signed document that layers make; organisations that only inherit share it."""
        key = f"{self._keys.signer.public.id}{recipe}"
        if (found := self._made.get(key)) is not None:
            self._made.move_to_end(key)
            return found
        found = self._signed(self._owner(org_id, layers), together(layers))
        self._made[key] = found
        if len(self._made) > _MOST_MADE:
            self._made.popitem(last=False)
        return found

    def _owner(self, org_id: UUID, layers: Sequence[InForce]) -> UUID:
        """Whose a document is: the lowest tenant's of those that have a say in it."""
        say = {one.source.tenant_id for one in layers} | {one.filled_by for one in layers}
        return [node.id for node in self._tenants.whole_line(org_id) if node.id in say][-1]

    def _signed(self, owner: UUID, body: bytes) -> tuple[Content, Document]:
        signer = self._keys.signer
        return (
            Content(owner, sha256(body)),
            Document(body, signer.sign(body), signer.public.id),
        )

    async def _store(
        self,
        connection: Connection,
        making: Sequence[_Making],
        stored: Mapping[Place, store.Stored],
        counters: Mapping[UUID, Counter],
    ) -> Mapping[UUID, Counter]:
        """Stores what was made, with numbers that stand for it; answers the counters then."""
        ended = {
            (one.made.tenant_id, before.profile)
            for one in making
            if one.made.apart
            and (before := stored.get((one.made.tenant_id, one.made.targets))) is not None
            and (one.is_refilled or _says_else(one.made, before))
        }
        if ended:
            await numbers.end_apart(connection, ended)
        if new := {one.wanted for one in making if one.is_new}:
            await numbers.end_standing(connection, new)
        alone = [
            (one.made.tenant_id, one.made.own_version)
            for one in making
            if one.made.own_version is not None and not one.made.apart
        ]
        published = await stamps_store.stamps(connection, alone) if alone else {}
        rows: list[store.Made] = []
        wanting: list[_Making] = []
        for one in making:
            made = one.made
            own = None if made.apart else published.get((made.tenant_id, made.own_version or 0))
            if own is not None and own.content == made.content and not one.is_new:
                rows.append(made if made.targets else replace(made, content=None))
                continue
            rows.append(made)
            if one.document is not None:
                wanting.append(one)
        if wanting:
            counters = await self._number(connection, wanting, counters)
        await _put(connection, rows)
        return counters

    async def _number(
        self,
        connection: Connection,
        wanting: Sequence[_Making],
        counters: Mapping[UUID, Counter],
    ) -> Mapping[UUID, Counter]:
        """Lets a number stand for each document in its organisation; answers the counters then."""
        documents = {one.wanted.content: one.document for one in wanting if one.document}
        await stamps_store.insert_documents(connection, self._vault, documents)
        stands = await numbers.standing(connection, {one.wanted for one in wanting})
        stamping: dict[Wanted, Stamping] = {}
        shared: set[tuple[UUID, Content]] = set()
        for one in wanting:
            wanted, is_shared = one.wanted, not one.made.targets
            if wanted not in stands:
                before = stamping.get(wanted)
                stamping[wanted] = Stamping(
                    wanted,
                    documents[wanted.content].body,
                    shared=is_shared or (before is not None and before.shared),
                )
            elif is_shared:
                shared.add((wanted.tenant_id, wanted.content))
        if shared:
            await numbers.share(connection, shared)
        if not stamping:
            return counters
        given = await self._stamps.stamp(connection, [*stamping.values()], counters, "layers")
        moved = {one.tenant_id: number for one, number in zip(stamping, given, strict=True)}
        return {
            one: counter._replace(last=moved.get(one, counter.last))
            for one, counter in counters.items()
        }


async def _put(connection: Connection, rows: Sequence[store.Made]) -> None:
    if orgs := [one for one in rows if not one.targets]:
        await store.put(connection, orgs)
    if profiles := [one for one in rows if one.targets]:
        await store.put_profiles(connection, profiles)


def _beginning(
    place: Place, recipe: str, layers: Sequence[InForce], before: store.Stored | None
) -> store.Made:
    """What is known of a place before its document is made."""
    org_id, targets = place
    profile = None
    if targets:
        profile = new_id() if before is None else before.profile
    return store.Made(
        tenant_id=org_id,
        recipe=recipe,
        content=None,
        own_version=next(
            (one.source.version for one in layers if one.source.whose == org_id), None
        ),
        targets=targets,
        profile=profile,
        apart=bool(targets) and _says_secrets(layers, org_id),
        filled=made_with(layers),
    )


def _filled(
    line: Sequence[TenantNode],
    assigned: Mapping[UUID, InForce],
    own: Mapping[UUID, OwnValues],
) -> list[InForce]:
    """The layers of a line, with the values that tenants below have of their own."""
    values = {node.id: own[node.id].values for node in line if node.id in own}
    changes = {node.id: own[node.id].changes for node in line if node.id in own}
    found: list[InForce] = []
    for at, node in enumerate(line):
        if node.id in assigned:
            under = below(line[at + 1 :], changes.get)
            found.append(filled(assigned[node.id], under, values))
    return found


def _says_else(made: store.Made, before: store.Stored) -> bool:
    """Whether an organisation itself says something else to some of its devices than before."""
    whose = {made.tenant_id, *made.targets}
    return versions_of(before.recipe, whose) != versions_of(made.recipe, whose)


def _says_secrets(layers: Sequence[InForce], org_id: UUID) -> bool:
    """Whether tenants above an organisation have a say in networks, which have secrets."""
    return any(one.source.tenant_id != org_id and one.own.says_networks for one in layers)


def _of_target(bound: store.Bound) -> InForce:
    """The layer of a group or a device."""
    source = source_of(Level.DEVICE if bound.is_device else Level.GROUP, bound.assigned)
    named_ = replace(source, target_id=bound.target_id, target_name=bound.alias)
    return InForce(named_, bound.assigned.own)


def source_of(level: Level, one: store.Assigned) -> Source:
    """A version in force as a layer's source."""
    return Source(level, one.tenant_id, one.policy_id, one.policy_name, one.version)


def level_of(node: TenantNode) -> Level:
    """Where a tenant's policies stand among layers."""
    return _LEVELS[node.kind]


def named(layers: Sequence[InForce]) -> list[Part]:
    """Layers as `recipe_of` takes them."""
    found: list[Part] = []
    for one in layers:
        source = one.source
        assert source.policy_id is not None
        found.append(Part(source.whose, source.policy_id, source.version, source.filled))
    return found
