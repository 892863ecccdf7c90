"""What rollouts mean for the devices of an organisation, in memory.

Which devices are in open batches follows from their ids. Devices with the same groups that the same
rollouts reach share what they are to have.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Final, Protocol
from uuid import UUID

from services.policy.stamps.domain import NOTHING, Rolling, Stage, Standing, Targets

_NO_KIND: Final[tuple[tuple[UUID, ...], UUID | None]] = ((), None)


class Place(Protocol):
    """Where a device sits: its groups, and itself where it has a policy of its own."""

    group_ids: tuple[UUID, ...]
    device_id: UUID | None
    restricted: Standing | None
    """How it stands with it where it falls short of an enforced gate: no rollout is for it."""


class Standings(Protocol):
    """How it stands with devices."""

    def targets(
        self,
        tenant_id: UUID,
        device_id: UUID | None,
        group_ids: Collection[UUID] | None,
        rollouts: Collection[Rolling] = (),
    ) -> Targets:
        """Whose policies count for a device, beside those of tenants."""

    def standing(self, tenant_id: UUID, targets: Targets) -> Standing:
        """How it stands with the devices for which some targets' policies count."""

    def seat_of(self, device_id: UUID) -> Place | None:
        """Where a device sits."""


@dataclass(slots=True)
class _Kind:
    """Devices with the same groups."""

    group_ids: tuple[UUID, ...]
    device_id: UUID | None
    rollouts: tuple[Rolling, ...]
    standings: dict[tuple[UUID, ...], Standing] = field(default_factory=dict)
    """By the rollouts that reach them."""


class Staging:
    """The rollouts of an organisation, as of one moment."""

    def __init__(
        self,
        seats: Standings,
        tenant_id: UUID,
        rollouts: Sequence[Rolling],
        orgs: Mapping[str, Standing],
    ) -> None:
        self._seats = seats
        self._tenant_id = tenant_id
        self._rollouts = rollouts
        self._orgs = orgs
        self._kinds: dict[tuple[tuple[UUID, ...], UUID | None], _Kind] = {}

    def choose(
        self, device_id: str, seat: Place | None, without: Collection[UUID] = ()
    ) -> Standing:
        """How it stands with a device: with the versions of the rollouts that reach it.

        While what they bring is not put together, it is as without them.

        Args:
            without: rollouts that bring the device nothing for now.
        """
        if seat is not None and seat.restricted is not None:
            return seat.restricted
        kind = self._kind(_NO_KIND if seat is None else (seat.group_ids, seat.device_id))
        reach = tuple(
            one.id
            for one in kind.rollouts
            if one.serves and one.reaches(device_id, kind.group_ids) and one.id not in without
        )
        found = kind.standings.get(reach)
        if found is None:
            found = self._standing(kind, [one for one in kind.rollouts if one.id in reach])
            kind.standings[reach] = found
        return found

    def targets(self, device_id: UUID, targets: Targets) -> Targets:
        """Whose policies count for a device, with the rollouts that bring it something."""
        seat = self._seats.seat_of(device_id)
        stage = self.choose(str(device_id), seat).stage
        brings = () if stage is None else stage.brings
        rollouts = [one for one in self._rollouts if one.id in brings]
        group_ids = () if seat is None else seat.group_ids
        more = self._seats.targets(self._tenant_id, device_id, group_ids, rollouts)
        return tuple(sorted({*targets, *more})) if rollouts else targets

    def in_use(self, seats: Iterable[Place]) -> set[Targets]:
        """The sets of targets, with rollouts among them, that devices have or are to have."""
        free = (seat for seat in seats if seat.restricted is None)
        kinds = {_NO_KIND, *((seat.group_ids, seat.device_id) for seat in free)}
        return {
            self._seats.targets(self._tenant_id, key[1], key[0], rollouts)
            for key in kinds
            for rollouts in _together(self._kind(key).rollouts)
        }

    def _kind(self, key: tuple[tuple[UUID, ...], UUID | None]) -> _Kind:
        kind = self._kinds.get(key)
        if kind is None:
            concerned = tuple(one for one in self._rollouts if one.concerns(*key))
            kind = self._kinds[key] = _Kind(*key, concerned)
        return kind

    def _standing(self, kind: _Kind, reach: Sequence[Rolling]) -> Standing:
        found = self._made(kind, reach)
        if reach and found.want is None:
            found, reach = self._made(kind, ()), ()
        if not kind.rollouts:
            return found
        keeps: set[int] = set()
        for one in kind.rollouts:
            # Of two for the same devices they are to have the one that reaches them.
            if (one.serves or one.holds) and not any(one.meets(other) for other in reach):
                kept = self._made(kind, [*reach, one])
                keeps.update(() if kept.want is None else kept.want.versions)
        watching = tuple(one.id for one in kind.rollouts if one.watches)
        brings = tuple(one.id for one in reach)
        paced = {one.id: one.max_per_minute for one in reach if one.max_per_minute}
        stage = Stage(watching, brings, paced) if watching else None
        return replace(found, keeps=frozenset(keeps), stage=stage)

    def _made(self, kind: _Kind, rollouts: Collection[Rolling]) -> Standing:
        targets = self._seats.targets(self._tenant_id, kind.device_id, kind.group_ids, rollouts)
        if targets:
            return self._seats.standing(self._tenant_id, targets)
        return self._orgs.get(str(self._tenant_id), NOTHING)


def _together(rollouts: Sequence[Rolling]) -> Iterator[tuple[Rolling, ...]]:
    """The rollouts that a device can have at the same time."""
    live = [one for one in rollouts if one.serves or one.holds]
    for size in range(1, len(live) + 1):
        for some in combinations(live, size):
            if not any(one.meets(other) for one, other in combinations(some, 2)):
                yield some
