"""What is in force for an organisation now, and what would be then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias
from uuid import UUID

from services.policy.authoring.layering import InForce, Own
from services.policy.layers.merging import Level, Source
from services.policy.simulation.domain import Profile
from services.policy.stamps.domain import Targets
from services.policy.targets.domain import Group, PolicyTargets

Rank: TypeAlias = tuple[bool, int, UUID]
"""Where a group or a device stands among such, the weakest first, as `WEAKEST_FIRST` has it."""


def group_rank(group_id: UUID, priority: int) -> Rank:
    """Where a group stands."""
    return False, priority, group_id


def device_rank(device_id: UUID) -> Rank:
    """Where a device stands."""
    return True, 0, device_id


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
    def policy_id(self) -> UUID:
        """The policy; a new one's is made up."""
        assert self.source.policy_id is not None
        return self.source.policy_id

    def is_of(self, layer: InForce) -> bool:
        """Whether a layer is the same policy's."""
        return layer.source.policy_id == self.source.policy_id

    def in_force(self, now: Mapping[UUID, InForce]) -> dict[UUID, InForce]:
        """The layers of tenants as they would be."""
        then = dict(now)
        if self.own is not None and not self.targets:
            then[self.tenant_id] = InForce(self.source, self.own)
        elif self.tenant_id in then and self.is_of(then[self.tenant_id]):
            del then[self.tenant_id]
        return then

    def bound(self, now: Mapping[Rank, InForce]) -> dict[Rank, InForce]:
        """The layers of groups and devices as they would be."""
        then = {rank: layer for rank, layer in now.items() if not self.is_of(layer)}
        if self.own is None:
            return then
        for group in self.groups.values():
            source = replace(
                self.source, level=Level.GROUP, target_id=group.id, target_name=group.alias
            )
            then[group_rank(group.id, group.priority)] = InForce(source, self.own)
        for device_id in self.targets.device_ids:
            source = replace(self.source, level=Level.DEVICE, target_id=device_id)
            then[device_rank(device_id)] = InForce(source, self.own)
        return then


@dataclass(frozen=True, slots=True)
class Place:
    """An organisation's layers now and then: of tenants, and of its groups and devices."""

    now: Sequence[InForce]
    then: Sequence[InForce]
    bound_now: Mapping[Rank, InForce]
    bound_then: Mapping[Rank, InForce]

    def targets(self, group_ids: Iterable[UUID], own: UUID | None) -> Targets:
        """Those of a device's groups, and itself, that have a policy now or then; sorted."""
        wanted = {*group_ids, own}
        return tuple(
            sorted({rank[2] for rank in (*self.bound_now, *self.bound_then) if rank[2] in wanted})
        )

    def targets_now(self, targets: Targets) -> Targets:
        """Those that have a policy now."""
        known = {rank[2] for rank in self.bound_now}
        return tuple(one for one in targets if one in known)

    def profile(self, targets: Targets, devices: int, sample: tuple[UUID, ...]) -> Profile:
        """Devices for which some targets count."""
        return Profile(
            [*self.now, *_of(self.bound_now, targets)],
            [*self.then, *_of(self.bound_then, targets)],
            devices,
            sample,
        )


def _of(bound: Mapping[Rank, InForce], targets: Targets) -> list[InForce]:
    return [bound[rank] for rank in sorted(bound) if rank[2] in targets]
