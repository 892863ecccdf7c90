"""What is in force for an organisation now, and what would be then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias
from uuid import UUID

from services.policy.authoring.layering import Own
from services.policy.authoring.templates import Values
from services.policy.layers.below import Below
from services.policy.layers.merging import Level, Source
from services.policy.stamps.domain import Targets
from services.policy.targets.domain import Group, PolicyTargets

Rank: TypeAlias = tuple[bool, int, UUID]
"""Where a group or a device stands among such, the weakest first, as `WEAKEST_FIRST` has it."""
Sources: TypeAlias = tuple[Source, ...]
"""Layers without what they say, the root's first."""
Said: TypeAlias = tuple[tuple[Level, UUID, UUID | None, int, str], ...]
"""Names what layers say, for whichever groups and devices they are."""


def group_rank(group_id: UUID, priority: int) -> Rank:
    """Where a group stands."""
    return False, priority, group_id


def device_rank(device_id: UUID) -> Rank:
    """Where a device stands."""
    return True, 0, device_id


def said(layers: Sequence[Source]) -> Said:
    """Names what layers say."""
    return tuple(
        (one.level, one.tenant_id, one.policy_id, one.version, one.filled) for one in layers
    )


@dataclass(frozen=True, slots=True)
class Candidate:
    """The policy as it would be in force; `own` is `None` for a withdrawal."""

    source: Source
    """No published version has its number, 0."""
    own: Own | None
    targets: PolicyTargets
    groups: Mapping[UUID, Group]
    """Those of the targets."""

    @property
    def tenant_id(self) -> UUID:
        """Whose policy it is."""
        return self.source.tenant_id

    @property
    def key(self) -> tuple[UUID, int]:
        """Its tenant and number."""
        return self.tenant_id, self.source.version

    @property
    def leaves(self) -> frozenset[str]:
        """What it leaves to tenants below, where it is for all devices."""
        if self.own is None or self.own.open is None or self.targets:
            return frozenset()
        return self.own.open.names

    @property
    def policy_id(self) -> UUID:
        """The policy; a new one's is made up."""
        assert self.source.policy_id is not None
        return self.source.policy_id

    def is_of(self, layer: Source) -> bool:
        """Whether a layer is the same policy's."""
        return layer.policy_id == self.source.policy_id

    def in_force(self, now: Mapping[UUID, Source]) -> dict[UUID, Source]:
        """The layers of tenants as they would be."""
        then = dict(now)
        if self.own is not None and not self.targets:
            then[self.tenant_id] = self.source
        elif self.tenant_id in then and self.is_of(then[self.tenant_id]):
            del then[self.tenant_id]
        return then

    def gates(self, now: Mapping[UUID, Source]) -> dict[UUID, Source]:
        """The layers of devices that fall short of gates as they would be."""
        return {
            gate_id: replace(
                self.source,
                level=Level.GATE,
                target_id=gate_id,
                target_name=layer.target_name,
            )
            if self.own is not None and self.is_of(layer)
            else layer
            for gate_id, layer in now.items()
        }

    def bound(self, now: Mapping[Rank, Source]) -> dict[Rank, Source]:
        """The layers of groups and devices as they would be."""
        then = {rank: layer for rank, layer in now.items() if not self.is_of(layer)}
        if self.own is None:
            return then
        for group in self.groups.values():
            then[group_rank(group.id, group.priority)] = replace(
                self.source, level=Level.GROUP, target_id=group.id, target_name=group.alias
            )
        for device_id in self.targets.device_ids:
            then[device_rank(device_id)] = replace(
                self.source, level=Level.DEVICE, target_id=device_id
            )
        return then


class Place:
    """An organisation's layers now and then: of tenants, and of its groups and devices.

    Of devices that fall short of an enforced gate the only target is the gate.

    Args:
        below: the tenants below each one that leaves something to them, by its id.
        values: what tenants have of their own in place of that.
    """

    def __init__(
        self,
        tenant_id: UUID,
        now: Iterable[Source],
        then: Iterable[Source],
        bound_now: Mapping[Rank, Source],
        bound_then: Mapping[Rank, Source],
        gates_now: Mapping[UUID, Source],
        gates_then: Mapping[UUID, Source],
        below: Mapping[UUID, Below],
        values: Mapping[UUID, Values],
    ) -> None:
        self.tenant_id = tenant_id
        self.below = below
        self.values = values
        self.now: Sources = tuple(now)
        self.then: Sources = tuple(then)
        self._now = {rank[2]: (rank, layer) for rank, layer in bound_now.items()}
        self._then = {rank[2]: (rank, layer) for rank, layer in bound_then.items()}
        self._gates_now = gates_now
        self._gates_then = gates_then

    @property
    def bound(self) -> int:
        """For how many groups and devices something would be in force."""
        return len(self._then)

    @property
    def own(self) -> set[UUID]:
        """The devices with a policy of their own, now or then."""
        both = (*self._now.values(), *self._then.values())
        return {rank[2] for rank, _ in both if rank[0]}

    def targets(self, ids: Iterable[UUID]) -> Targets:
        """Those of a device's groups, and itself, that have a policy now or then; sorted."""
        return tuple(sorted(one for one in {*ids} if one in self._now or one in self._then))

    def targets_now(self, targets: Targets) -> Targets:
        """Those that have a policy now."""
        return tuple(one for one in targets if one in self._now or one in self._gates_now)

    def targets_then(self, targets: Targets) -> Targets:
        """Those that would have a policy."""
        return tuple(one for one in targets if one in self._then or one in self._gates_then)

    def layers_now(self, targets: Targets) -> Sources:
        """What makes a device's policy now."""
        if gate := [self._gates_now[one] for one in targets if one in self._gates_now]:
            return (*self._above(self.now), *gate)
        return (*self.now, *_of(self._now, targets))

    def layers_then(self, targets: Targets) -> Sources:
        """What would make it."""
        if gate := [self._gates_then[one] for one in targets if one in self._gates_then]:
            return (*self._above(self.then), *gate)
        return (*self.then, *_of(self._then, targets))

    def _above(self, layers: Sources) -> Sources:
        return tuple(one for one in layers if one.tenant_id != self.tenant_id)


def _of(bound: Mapping[UUID, tuple[Rank, Source]], targets: Targets) -> list[Source]:
    found = [bound[one] for one in targets if one in bound]
    return [layer for _, layer in sorted(found, key=lambda one: one[0])]
