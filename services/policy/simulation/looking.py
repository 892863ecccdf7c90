"""One simulation under way: what was read and compared so far, and the time that is left."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, Generic, TypeVar
from uuid import UUID

from servicekit.data.postgres import Database
from servicekit.errors import unavailable
from services.policy.authoring.filling import filled
from services.policy.authoring.layering import InForce, Own, together
from services.policy.authoring.templates import Values
from services.policy.layers.below import Below
from services.policy.layers.merging import Source
from services.policy.simulation import store
from services.policy.simulation.domain import Compared, Notice, Some, Tally, compared
from services.policy.simulation.made import NOTHING, Made, Ran, fold, held
from services.policy.simulation.places import Candidate, Place, Said, Sources, said
from services.policy.stamps.domain import Targets
from services.policy.vault import Vault

_KEPT_CHARACTERS: Final = 8_000_000
"""Of versions that were read; as objects they take some twice as many bytes."""
_KEPT: Final = 8
"""What layers make, and what is different: schools without a policy share it."""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class _Recent(Generic[_Key, _Value]):
    """The values that were last asked for."""

    def __init__(self) -> None:
        self._kept: OrderedDict[_Key, _Value] = OrderedDict()

    def get(self, key: _Key) -> _Value | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: _Key, value: _Value) -> _Value:
        self._kept[key] = value
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return value


class Looking:
    """What is compared so far. No connection is held while it is computed."""

    def __init__(
        self, database: Database, vault: Vault, candidates: Sequence[Candidate], seconds: float
    ) -> None:
        self._database = database
        self._vault = vault
        self.candidates = candidates
        self.tenant_id = candidates[0].tenant_id
        self.tally = Tally(
            {one.policy_id: one.source.policy_name for one in candidates if one.own is not None}
        )
        self._until = asyncio.get_running_loop().time() + seconds
        self._given = {one.policy_id: one.own for one in candidates if one.own is not None}
        self._owns: OrderedDict[tuple[UUID, int], tuple[Own, int]] = OrderedDict()
        self._characters = 0
        self._below: Mapping[UUID, Below] = {}
        self._values: Mapping[UUID, Values] = {}
        """Of the place that is looked at, as that has them."""
        self._folded: _Recent[Said, Made] = _Recent()
        self._compared: _Recent[object, Compared] = _Recent()

    @property
    def is_over(self) -> bool:
        """Whether there is no time for more."""
        return asyncio.get_running_loop().time() > self._until

    async def compare(
        self, place: Place, targets: Targets, version: int | None, some: Some
    ) -> None:
        """Counts what is different for devices.

        Args:
            place: their organisation, or the tenant whose layers all have.
            targets: their groups, and themselves.
            version: what they say they have; `None` where it is about no device. It only counts
                where nothing is in force, now or then.
            some: the devices.
        """
        self._below, self._values = place.below, place.values
        now, then = place.layers_now(targets), place.layers_then(targets)
        if said(now) == said(then):
            return
        if not then:
            # They are told of nothing, and go on with what they have.
            if version != 0:
                self.tally.take(some, then, Compared(warnings=(Notice("ORPHANED"),)))
            return
        has = (said(now), None) if now else ((), (place.tenant_id, version or 0))
        key = (has, said(then))
        found = self._compared.get(key)
        if found is None:
            found, is_shared = await self._compare(place, targets, version or 0)
            if is_shared:
                self._compared.put(key, found)
        edition = tuple((one.whose, one.policy_id, one.version, one.filled) for one in then)
        self.tally.take(some, edition, found)

    async def _compare(self, place: Place, targets: Targets, version: int) -> tuple[Compared, bool]:
        """What is different, and whether it is so wherever the layers are the same."""
        now, then = place.layers_now(targets), place.layers_then(targets)
        after, before = await self._fold(then), await self._fold(now) if now else NOTHING
        is_shared, is_held, is_known = after.fits, not after.fits, True
        if now and not before.fits:
            is_shared = False
            had = await self._to_have(place, place.targets_now(targets), NOTHING)
            before = await self._held(now, had) or NOTHING
        if not now and version:
            document = await self._ran(place.tenant_id, version)
            is_known = document is not None
            if document is not None:
                before = await self._worked(partial(document.made, place.tenant_id))
        if is_held:
            had = await self._to_have(place, place.targets_then(targets), before) if now else None
            after = await self._held(then, had) or before
        policies = self.tally.policies
        found = await self._worked(
            partial(compared, before, after, self.tenant_id, policies, is_held=is_held)
        )
        if not is_known:
            found = Compared(found.differences, (*found.warnings, Notice("ORPHANED_BEFORE")))
        return found, is_shared

    async def check_fits(self, place: Place, layers: Sources) -> None:
        """Raises what a publish raises where layers do not fit."""
        self._below, self._values = place.below, place.values
        layered = await self._layers(layers)
        await self._worked(lambda: together(layered))

    async def _fold(self, layers: Sources) -> Made:
        found = self._folded.get(said(layers))
        if found is None:
            layered = await self._layers(layers)
            found = self._folded.put(said(layers), await self._worked(partial(fold, layered)))
        return found

    async def _held(self, layers: Sources, had: Made | None) -> Made | None:
        layered = await self._layers(layers)
        return await self._worked(partial(held, layered, had))

    async def _to_have(self, place: Place, targets: Targets, before: Made) -> Made | None:
        """What devices are to have where layers do not fit, as far as it was made."""
        async with self._database.system_transaction("a document may be of above") as connection:
            body = await store.to_have(connection, self._vault, place.tenant_id, targets)
        if body is None:
            return None
        if body == before.body:
            return before
        return await self._worked(partial(Ran(body).made, place.tenant_id))

    async def _ran(self, org_id: UUID, version: int) -> Ran | None:
        async with self._database.system_transaction("a document may be of above") as connection:
            return await store.ran(connection, self._vault, org_id, version)

    async def _layers(self, sources: Sources) -> list[InForce]:
        """Layers with what they say; versions never change."""
        have = {said([one]): own for one in sources if (own := self._own(one)) is not None}
        missing = {(one.tenant_id, one.version) for one in sources if said([one]) not in have}
        read: dict[tuple[UUID, int], Own] = {}
        if missing:
            async with self._database.system_transaction(
                "layers are of the tenants above"
            ) as connection:
                found = await store.layers_of(connection, self._vault, sorted(missing))
            for key, text in found:
                read[key] = await self._worked(partial(Own.read, text))
                self._keep(key, read[key], len(text))
        layers: list[InForce] = []
        for one in sources:
            own = have.get(said([one])) or read.get((one.tenant_id, one.version))
            if own is None:
                raise unavailable("a policy was deleted meanwhile; try again")
            layer = InForce(one, own)
            if one.filled:
                layer = await self._worked(
                    partial(filled, layer, self._below[one.tenant_id], self._values)
                )
            layers.append(layer)
        return layers

    def _own(self, source: Source) -> Own | None:
        if not source.version:
            return None if source.policy_id is None else self._given.get(source.policy_id)
        key = (source.tenant_id, source.version)
        if key not in self._owns:
            return None
        self._owns.move_to_end(key)
        return self._owns[key][0]

    def _keep(self, key: tuple[UUID, int], own: Own, characters: int) -> None:
        self._owns[key] = own, characters
        self._characters += characters
        while self._characters > _KEPT_CHARACTERS and len(self._owns) > 1:
            _, (_, less) = self._owns.popitem(last=False)
            self._characters -= less

    async def _worked(self, work: Callable[[], _Value]) -> _Value:
        """Does something, then lets others work for as long."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        done = work()
        await asyncio.sleep(loop.time() - began)
        return done
