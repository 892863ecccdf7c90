"""Which devices have policies of groups or of their own, and what they are to have, in memory.

A device of no group, without a policy of its own, that pins the first key has no entry here: it is
to have what its organisation says. Devices with the same groups share what they are to have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Final, TypeAlias, TypeVar
from uuid import UUID
from weakref import WeakValueDictionary

from evergreen.v1 import enrollment_pb2, enrollment_pb2_grpc
from servicekit.data.postgres import Connection, Database
from servicekit.data.quarantine import place, readable, write_readable
from servicekit.errors import unavailable
from servicekit.feeds.changes import Changes
from servicekit.feeds.feed import ANSWER_SECONDS, Cursor, Follower, asking
from servicekit.observability import logs
from servicekit.peers.devices import DeviceAccess
from servicekit.peers.tenants import TenantDirectory, TenantNode
from services.policy.freshness import Freshness
from services.policy.keys.service import KeyRing
from services.policy.layers.below import Below, below
from services.policy.stamps.domain import (
    Known,
    Part,
    Rolling,
    Standing,
    Targets,
    is_made_of,
    recipe_of,
    versions_of,
)
from services.policy.stamps.service import Stamps
from services.policy.targets import store
from services.policy.targets.domain import Group, PolicyTargets, not_there
from services.policy.targets.places import Places
from services.policy.targets.staging import Staging

log = logs.get(__name__)

T = TypeVar("T")

_GROUPS: Final = place("policy", "follow_groups")
_NOTHING: Final = Known()


Ending: TypeAlias = Callable[[Connection, Sequence[UUID]], Awaitable[None]]
"""Ends what is in force for groups and devices that are deleted."""


class Groups:
    """The groups of the registry, kept in policy's own schema. Its feed is run by the service."""

    def __init__(
        self,
        database: Database,
        registry: enrollment_pb2_grpc.EnrollmentInternalServiceAsyncStub,
        tenants: TenantDirectory,
        end: Ending,
        wait_seconds: int,
    ) -> None:
        self._database = database
        self._registry = registry
        self._tenants = tenants
        self._end = end
        self.follower = Follower(
            "device groups",
            self._fetch,
            asking(
                registry.ListGroupChanges,
                enrollment_pb2.ListGroupChangesRequest(),
                "groups",
                seconds=wait_seconds,
            ),
        )

    async def load(self) -> None:
        """Goes on where the feed was left."""
        async with self._database.system_transaction("the feed tells of all tenants") as connection:
            self.follower.start_at(await store.groups_cursor(connection))

    async def policies_of(self, tenant_id: UUID, group_id: UUID) -> list[tuple[UUID, str]]:
        """The policies that are in force for a group, with their names."""
        async with self._database.system_transaction("a service asks") as connection:
            return await store.policies_of(connection, tenant_id, group_id)

    async def _fetch(self, cursor: str) -> tuple[str, bool]:
        page = await self._registry.ListGroupChanges(
            enrollment_pb2.ListGroupChangesRequest(cursor=cursor), timeout=ANSWER_SECONDS
        )
        found = readable(_GROUPS, page.groups, _group, lambda group: group.group_id)
        groups = {one.id: one for one in found if not self._tenants.is_going(one.tenant_id)}
        if page.groups:
            await self._store([*groups.values()], page.next_cursor)
        return page.next_cursor, page.more

    async def _store(self, groups: Sequence[Group], cursor: str) -> None:
        async def write(some: Sequence[Group]) -> None:
            async with self._database.system_transaction(
                "the feed tells of all tenants"
            ) as connection:
                await store.write_groups(connection, some)
                await self._end(connection, [one.id for one in some if one.deleted])
                # Only all of them bring the feed on.
                if len(some) == len(groups):
                    await store.write_groups_cursor(connection, cursor)

        if not await write_readable(_GROUPS, groups, write, lambda group: group.id):
            # What is left out is not told once more.
            async with self._database.system_transaction(
                "the feed tells of all tenants"
            ) as connection:
                await store.write_groups_cursor(connection, cursor)


def _group(change: enrollment_pb2.GroupChange) -> Group:
    return Group(
        id=UUID(change.group_id),
        tenant_id=UUID(change.tenant_id),
        name=change.name,
        alias=change.alias,
        priority=change.priority,
        deleted=change.deleted,
    )


class Seat:
    """Where devices with the same groups and the same key sit; one with a policy of its own sits
    alone, and those that fall short of a gate sit apart from those that do not."""

    __slots__ = (
        "__weakref__",
        "device_id",
        "gate_id",
        "group_ids",
        "key_id",
        "restricted",
        "standing",
        "targets",
        "tenant_id",
    )

    def __init__(
        self,
        tenant_id: UUID,
        group_ids: tuple[UUID, ...],
        device_id: UUID | None,
        key_id: str = "",
        gate_id: UUID | None = None,
    ) -> None:
        self.key_id = key_id
        """The key that they pin; empty for the first one of the installation."""
        self.tenant_id = tenant_id
        self.group_ids = group_ids
        self.device_id = device_id
        self.gate_id = gate_id
        self.targets: Targets = ()
        self.standing: Standing | None = None
        """How it stands with them; `None` for as with all devices of the organisation."""
        self.restricted: Standing | None = None
        """The same where the gate is enforced."""


_Key: TypeAlias = tuple[UUID, tuple[UUID, ...], UUID | None, str, UUID | None]


class Seats:
    """The seats of devices. Its feed is run by the service."""

    def __init__(
        self,
        database: Database,
        changes: Changes,
        stamps: Stamps,
        tenants: TenantDirectory,
        devices: DeviceAccess,
        groups: Groups,
        keys: KeyRing,
    ) -> None:
        self._database = database
        self._keys = keys
        self._stamps = stamps
        self._known = stamps.known
        self._tenants = tenants
        self._devices = devices
        self._groups = groups
        self._of: Places[Seat] = Places()
        self._seats: WeakValueDictionary[_Key, Seat] = WeakValueDictionary()
        self._gate_of: dict[UUID, UUID] = {}
        """The gates that devices fall short of."""
        self._in_org: dict[UUID, WeakValueDictionary[int, Seat]] = {}
        self._own: dict[UUID, frozenset[UUID]] = {}
        """The devices of organisations with policies of their own."""
        self._with_targets: set[UUID] = set()
        self._moved: set[UUID] = set()
        self._staged: dict[str, Staging] = {}
        self._forgets = 0
        self._freshness = Freshness("device registry")
        self.follower = changes.follower("groups of devices", self._fetch)
        self.restrictions = changes.follower("restricted devices", self._fetch_restrictions)
        stamps.on_change.append(self.settle)
        devices.on_deleted.append(self.forget)

    @property
    def of(self) -> Places[Seat]:
        """The seats of devices by their ids, and what they reported; always the same object."""
        return self._of

    def seat_of(self, device_id: UUID) -> Seat | None:
        """Where a device sits; `None` for where all of its organisation do."""
        return self._of.get(str(device_id))

    @property
    def staged(self) -> Mapping[str, Staging]:
        """What rollouts mean for the devices of organisations, by their ids; always the same
        mapping."""
        return self._staged

    def matter(self, tenant_id: UUID) -> bool:
        """Whether an organisation has policies of groups or devices, or an enforced gate."""
        return tenant_id in self._with_targets

    def key_of(self, device_id: str) -> str:
        """The id of the key that a device pins."""
        seat = self._of.get(device_id)
        return (seat.key_id if seat is not None else "") or self._keys.first_id

    async def fresh(self) -> bool:
        """Reads what the registry tells; callers share a reading. Answers whether it could."""
        return await self._freshness.ask(self._refresh)

    async def _refresh(self) -> None:
        await asyncio.gather(self._devices.follower.refresh(), self._groups.follower.refresh())
        await asyncio.gather(
            self.follower.refresh(),
            self.restrictions.refresh(),
            self._stamps.follower.refresh(),
        )

    async def ask(self) -> None:
        """Reads what the registry tells of groups and devices.

        Raises:
            DomainError: UNAVAILABLE.
        """
        try:
            await asyncio.gather(self._devices.follower.refresh(), self._groups.follower.refresh())
        except Exception as error:
            raise unavailable("the device registry is not available; try again") from error

    def targets(
        self,
        tenant_id: UUID,
        device_id: UUID | None,
        group_ids: Collection[UUID] | None,
        rollouts: Collection[Rolling] = (),
    ) -> Targets:
        """Whose policies count for a device, beside those of tenants.

        Args:
            group_ids: its groups; `None` for those that are known here.
            rollouts: whose versions it is to have, or has.
        """
        if group_ids is None:
            seat = self._of.get(str(device_id))
            group_ids = () if seat is None else seat.group_ids
        known = self._known.get(tenant_id, _NOTHING)
        if known.gates and device_id is not None and not rollouts:
            gate = self._gate_of.get(device_id)
            if gate is not None and gate in known.gates:
                return (gate,)
        found = {one for one in {*group_ids, device_id} if one is not None and one in known.place}
        for rolling in rollouts:
            found.add(rolling.id)
            found.update(
                one
                for one in rolling.targets
                if one in known.order and (one in group_ids or one == device_id)
            )
        return tuple(sorted(found))

    def with_rollouts(self, tenant_id: UUID, device_id: UUID, targets: Targets) -> Targets:
        """Whose policies count for a device, with the rollouts that bring it something."""
        staged = self._staged.get(str(tenant_id))
        return targets if staged is None else staged.targets(device_id, targets)

    def standing(self, tenant_id: UUID, targets: Targets) -> Standing:
        """How it stands with the devices for which some targets' policies count.

        What was put together of other versions of the organisation than those in force is not to
        be delivered any more. A change above it counts once it is put together, as for all.
        """
        known = self._known.get(tenant_id, _NOTHING)
        restricted = known.gate_among(targets) is not None
        found = known.profiles.get(targets)
        if found is not None:
            now = {(one.target_id, one.version) for one in known.bound_to(targets)}
            if (assigned := known.assigned_to(targets)) is not None:
                now.add((tenant_id, assigned[1]))
            if versions_of(found.recipe, {tenant_id, *targets}) == now:
                return replace(found, restricted=True) if restricted else found
        return Standing(None, self._stamps.last(tenant_id), targets, restricted=restricted)

    def is_alone(self, tenant_id: UUID, standing: Standing) -> bool:
        """Whether what devices are to have was made of policies of their organisation alone."""
        known = self._known.get(tenant_id, _NOTHING)
        if known.held:
            # Parts of it may be from before.
            return False
        recipe: str | None = standing.recipe if standing.targets else known.recipe
        if recipe is None:
            recipe = self.recipe(tenant_id)
        return is_made_of(recipe, {tenant_id, *standing.targets})

    def recipe(self, tenant_id: UUID, targets: Targets = ()) -> str:
        """Of which versions an edition is to be made now, as far as this process knows."""
        return recipe_of(self.layers(tenant_id, targets))

    def layers(self, tenant_id: UUID, targets: Targets = ()) -> list[Part]:
        """The versions in force for devices of an organisation, the root's first."""
        found: list[Part] = []
        line = self._tenants.line(tenant_id)
        for at, node in enumerate(line):
            known = self._known.get(node.id, _NOTHING)
            assigned = known.assigned_to(targets) if node.id == tenant_id else known.assigned
            if assigned is not None:
                filled = self._below(line[at + 1 :]).mark(known.leaves) if known.leaves else ""
                found.append(Part(node.id, *assigned, filled))
        for bound in self._known.get(tenant_id, _NOTHING).bound_to(targets):
            found.append(Part(bound.target_id, bound.policy_id, bound.version))
        return found

    def _below(self, line: Sequence[TenantNode]) -> Below:
        """The tenants below one with a template; the last one is what the layers are for."""
        return below(line, lambda one: self._known.get(one, _NOTHING).values)

    def in_use(self, tenant_id: UUID) -> list[Targets]:
        """The sets of targets whose policies count for devices of an organisation.

        Those with rollouts come last.
        """
        seats = tuple(self._in_org.get(tenant_id, {}).values())
        found = {seat.targets for seat in seats if seat.targets}
        staged = self._staged.get(str(tenant_id))
        more = set() if staged is None else staged.in_use(seats) - found
        return [*sorted(found), *sorted(more)]

    def moved(self) -> set[UUID]:
        """The organisations with seats that are new since this was last asked."""
        moved, self._moved = self._moved, set()
        return moved

    def forget(self, device_ids: Iterable[UUID]) -> None:
        """Takes devices that are deleted: their rows are gone, and no feed tells of that."""
        self._forgets += 1
        for device_id in device_ids:
            self._of.forget(str(device_id))
            self._gate_of.pop(device_id, None)

    def _forget_orgs(self) -> None:
        """Takes organisations that are deleted: nobody tells of their devices any more."""
        gone = {org for org in self._in_org if self._tenants.is_going(org)}
        if gone:
            self.forget([UUID(one) for one, seat in self._of.items() if seat.tenant_id in gone])
        for org in gone:
            del self._in_org[org]
            self._own.pop(org, None)
            self._staged.pop(str(org), None)
            self._with_targets.discard(org)

    def settle_all(self) -> None:
        """Takes a tree of tenants that has changed."""
        self._forget_orgs()
        for org in tuple(self._with_targets):
            self._settle_org(org)

    def settle(self, changed: Set[UUID]) -> None:
        """Takes what has changed for tenants, and for those below them."""
        above = {one for one in changed if not self._is_org(one)}
        orgs = changed - above
        if above:
            orgs = orgs | {
                org
                for org in self._with_targets
                if any(node.id in above for node in self._tenants.line(org))
            }
        for org in orgs:
            self._settle_org(org)

    def _settle_org(self, org: UUID) -> None:
        known = self._known.get(org, _NOTHING)
        if known.rollouts:
            # What was found of the devices before is of another moment.
            self._staged[str(org)] = Staging(self, org, known.rollouts, self._stamps.standings)
        else:
            self._staged.pop(str(org), None)
        bound, rolled = known.bound, [one for one in known.rollouts if one.targets]
        has_any = bool(bound or rolled or known.gates)
        if not has_any and org not in self._with_targets:
            return
        if has_any:
            self._with_targets.add(org)
        else:
            self._with_targets.discard(org)
        own = frozenset(
            [one.target_id for one in bound if one.is_device]
            + [one for rolling in rolled for one in rolling.device_ids]
        )
        before = self._own.get(org, frozenset())
        self._own[org] = own
        for device_id in own ^ before:
            seat = self._of.get(str(device_id))
            if seat is None:
                self._sit(device_id, org, (), "")
            else:
                self._sit(device_id, org, seat.group_ids, seat.key_id)
        for seat in tuple(self._in_org.get(org, {}).values()):
            self._settle_seat(seat)

    def _settle_seat(self, seat: Seat) -> None:
        known = self._known.get(seat.tenant_id, _NOTHING)
        if seat.gate_id is not None and seat.gate_id in known.gates:
            seat.targets = (seat.gate_id,)
            seat.standing = seat.restricted = self.standing(seat.tenant_id, seat.targets)
            return
        seat.targets = self.targets(seat.tenant_id, seat.device_id, seat.group_ids)
        seat.standing = self.standing(seat.tenant_id, seat.targets) if seat.targets else None
        seat.restricted = None

    def _sit(self, device_id: UUID, org: UUID, group_ids: tuple[UUID, ...], key_id: str) -> None:
        own = device_id if device_id in self._own.get(org, ()) else None
        gate = self._gate_of.get(device_id)
        if not group_ids and own is None and not key_id and gate is None:
            self._of.pop(str(device_id), None)
            return
        key = (org, group_ids, own, key_id, gate)
        seat = self._seats.get(key)
        if seat is None:
            seat = Seat(*key)
            self._seats[key] = seat
            self._in_org.setdefault(org, WeakValueDictionary())[id(seat)] = seat
            self._settle_seat(seat)
            if seat.targets or str(org) in self._staged:
                self._moved.add(org)
        self._of[str(device_id)] = seat

    def _is_org(self, tenant_id: UUID) -> bool:
        node = self._tenants.known(tenant_id)
        return node is None or node.kind == "org"

    async def _read(self, read: Callable[[Connection], Awaitable[T]]) -> T:
        """What is read of devices; anew where some were deleted meanwhile, which it may have."""
        while True:
            forgets = self._forgets
            async with self._database.system_transaction("the cache has all tenants") as connection:
                found = await read(connection)
            if forgets == self._forgets:
                return found

    async def _fetch(self, cursor: str) -> tuple[str, bool]:
        page, found = await self._read(
            lambda connection: store.memberships_since(connection, Cursor.parse(cursor))
        )
        self._sit_all(found)
        return str(page.cursor), page.more

    async def _fetch_restrictions(self, cursor: str) -> tuple[str, bool]:
        page, found = await self._read(
            lambda connection: store.restricted_since(connection, Cursor.parse(cursor))
        )
        for device_id, tenant_id, gate_id in found:
            if gate_id is None:
                self._gate_of.pop(device_id, None)
            else:
                self._gate_of[device_id] = gate_id
            seat = self._of.get(str(device_id))
            group_ids, key_id = ((), "") if seat is None else (seat.group_ids, seat.key_id)
            self._sit(device_id, tenant_id, group_ids, key_id)
        return str(page.cursor), page.more

    def _sit_all(self, found: Iterable[store.Membership]) -> None:
        for one in found:
            self._sit(one.device_id, one.tenant_id, one.group_ids, one.key_id)


async def check_there(
    connection: Connection, org_id: UUID, targets: PolicyTargets, *, to_keep: bool = True
) -> dict[UUID, Group]:
    """Refuses groups and devices that an organisation does not have; answers the groups.

    Args:
        to_keep: they stay until the transaction ends.

    Raises:
        DomainError: INVALID_ARGUMENT with the first one's place.
    """
    if not targets:
        return {}
    groups = await store.known_groups(connection, org_id, targets.group_ids, to_keep=to_keep)
    for index, group_id in enumerate(targets.group_ids):
        if group_id not in groups:
            raise not_there("groupIds", index, "group")
    devices = await store.known_devices(connection, org_id, targets.device_ids, to_keep=to_keep)
    for index, device_id in enumerate(targets.device_ids):
        if device_id not in devices:
            raise not_there("deviceIds", index, "device")
    return groups
