"""The administration of groups of devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from contract.events.enrollment import (
    GroupCreated,
    GroupDeleted,
    GroupUpdated,
)
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database
from servicekit.errors import invalid_field, not_found
from servicekit.etags import check_etag
from servicekit.feeds.feed import Cursor, FeedPage
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import Page
from servicekit.rpc.rules import is_uuid
from servicekit.serials import serial_key
from services.enrollment.groups import devices as group_devices
from services.enrollment.groups import members as group_members
from services.enrollment.groups import membership, set_store, store
from services.enrollment.groups.catch_up import CatchUp
from services.enrollment.groups.domain import (
    MAX_PRIORITY,
    MOST_GROUPS,
    MOST_MEMBERS,
    MOST_TERMS,
    MOST_TOMBSTONES,
    PRIORITY_STEP,
    Counted,
    Group,
    Member,
    has_policies,
    members_changed,
    not_listed,
    too_many,
)
from services.enrollment.groups.filters import parse, terms_of
from services.enrollment.groups.policies import GroupPolicies
from services.enrollment.serials import clean_listed

_AT_ONCE: Final = 2_000
"""Devices that the change of a group moves in its own transaction; `CatchUp` moves the others."""
_SAMPLE: Final = 50
_NIL: Final = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be changed of a group; `None` for what stays."""

    name: str | None = None
    alias: str | None = None
    description: str | None = None
    priority: int | None = None
    filter: str | None = None


@dataclass(frozen=True, slots=True)
class New:
    """A group that is to be added; see `Groups.create`."""

    org_id: UUID
    name: str
    alias: str
    description: str
    priority: int
    filter: str | None


@dataclass(frozen=True, slots=True)
class MembersChanged:
    """What became of serial numbers that a group was to list, or not to list any more."""

    counted: Counted
    joined: Sequence[str]
    """Came onto the list, and a device has them."""
    waiting: Sequence[str]
    """Came onto the list, and no device has them."""
    removed: Sequence[str]
    unchanged: Sequence[str]
    """Were on the list already, or were not on it."""
    unknown: Sequence[str]
    """Ids that no device of the organisation has."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What a filter would match."""

    counts: Mapping[str, int]
    samples: Mapping[str, Sequence[Member]]


class Groups:
    """The use cases around groups of devices."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        catch_up: CatchUp,
        policies: GroupPolicies,
        clock: Clock,
    ) -> None:
        self._policies = policies
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._catch_up = catch_up
        self._clock = clock

    async def list(
        self,
        call: Call,
        org_id: UUID | None,
        alias: str,
        after: tuple[int, UUID] | None,
        limit: int,
    ) -> Page[Counted, tuple[int, UUID]]:
        """Groups of the caller's subtree by priority, behind a position."""
        scope = await self._tenants.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            page = await store.list_groups(connection, scope, alias, after, limit)
            counts = await store.count_members(connection, page.items)
        return Page([Counted(group, *counts[group.id]) for group in page.items], page.after)

    async def get(self, call: Call, group_id: UUID) -> Counted:
        """One group of the caller's subtree.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            group = await store.group(connection, scope, group_id)
            if group is None:
                raise not_found("group", group_id)
            return await _counted(connection, group)

    async def create(
        self,
        call: Call,
        org_id: UUID,
        name: str,
        alias: str,
        *,
        description: str,
        priority: int,
        filter: str | None,  # noqa: A002 - the field's name
    ) -> Counted:
        """Adds a group, and brings the devices into it that its filter matches.

        Args:
            priority: 0 for one behind all others.
            filter: `None` for a group with listed members.

        Raises:
            DomainError: NOT_FOUND for the organisation; INVALID_ARGUMENT with the field;
                ALREADY_EXISTS for alias and priority; FAILED_PRECONDITION when there are too many.
        """
        org = await self._tenants.require_org(call.caller, org_id, to_add=True)
        if filter is not None:
            parse(filter)
        new = New(org.id, name, alias, description, priority, filter)
        async with self._database.transaction(self._tenants.scope(org.id)) as connection:
            await membership.hold_alone(connection, org.id)
            group = await self.created(connection, new)
            counted = await _counted(connection, group)
        self._catch_up.wake(group.state)
        return counted

    async def created(self, connection: Connection, new: New, *, later: bool = False) -> Group:
        """As `create`, in a transaction that holds the organisation alone.

        With `later`, here and below, all devices are moved behind it (`CatchUp`).
        """
        terms = terms_of(parse(new.filter)) if new.filter is not None else 0
        at = self._clock()
        groups, all_terms, last = await store.measure(connection, new.org_id)
        if groups >= MOST_GROUPS:
            raise too_many("groups", MOST_GROUPS)
        if all_terms + terms > MOST_TERMS:
            raise too_many("comparisons in the filters of its groups", MOST_TERMS)
        priority = new.priority or last + PRIORITY_STEP
        if priority > MAX_PRIORITY:
            raise invalid_field("priority", "is required: no group can come behind the last one")
        group = Group(
            id=new_id(),
            tenant_id=new.org_id,
            name=new.name,
            alias=new.alias,
            description=new.description,
            priority=priority,
            filter=new.filter,
            filter_terms=terms,
            created_at=at,
            updated_at=at,
        )
        await store.insert_group(connection, group)
        await self._outbox.append(
            connection,
            CloudEvent(GroupCreated(id=group.id, after=group.snapshot()), new.org_id),
        )
        return group if group.is_listed else await self._compute(connection, group, later=later)

    async def update(self, call: Call, group_id: UUID, wanted: Wanted) -> Counted:
        """Changes a group, and brings devices in and out of it where its filter changed.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT with the field; ALREADY_EXISTS for alias and
                priority; FAILED_PRECONDITION for a filter of a group with listed members.
        """
        if wanted.filter is not None:
            parse(wanted.filter)
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            found = await store.group(connection, scope, group_id)
            if found is None:
                raise not_found("group", group_id)
            await membership.hold_alone(connection, found.tenant_id)
            before = await store.group(connection, scope, group_id, for_update=True)
            if before is None:
                raise not_found("group", group_id)
            check_etag(before.etag)
            after = await self.updated(connection, before, wanted)
            counted = await _counted(connection, after)
        self._catch_up.wake(after.state)
        return counted

    async def updated(
        self, connection: Connection, before: Group, wanted: Wanted, *, later: bool = False
    ) -> Group:
        """As `update`, in a transaction that holds the organisation alone."""
        if wanted.filter is not None and before.is_listed:
            raise invalid_field("filter", "a group with listed members has none")
        terms = terms_of(parse(wanted.filter)) if wanted.filter is not None else 0
        changes = {
            name: value
            for name in ("name", "alias", "description", "priority", "filter")
            if (value := getattr(wanted, name)) is not None
        }
        after: Group = replace(before, **changes)
        if after == before:
            return after
        return await self._change(connection, before, after, terms, later=later)

    async def _change(
        self, connection: Connection, before: Group, after: Group, terms: int, *, later: bool
    ) -> Group:
        is_other = after.filter != before.filter
        after = replace(after, updated_at=self._clock(), revision=before.revision + 1)
        if is_other:
            _, all_terms, _ = await store.measure(connection, after.tenant_id)
            if all_terms - before.filter_terms + terms > MOST_TERMS:
                raise too_many("comparisons in the filters of its groups", MOST_TERMS)
            after = replace(after, filter_terms=terms)
        await store.update_group(connection, after)
        event = GroupUpdated(id=after.id, before=before.snapshot(), after=after.snapshot())
        await self._outbox.append(connection, CloudEvent(event, after.tenant_id))
        return await self._compute(connection, after, later=later) if is_other else after

    async def delete(self, call: Call, group_id: UUID) -> Group:
        """Deletes a group; its devices leave it. Its id, alias and name stay known.

        A policy that is published for it at the same moment is for nobody then.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION while policies are in force for it;
                UNAVAILABLE when policy cannot be asked.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            group = await store.group(connection, scope, group_id)
        if group is None:
            raise not_found("group", group_id)
        if names := await self._policies.names(group.tenant_id, group_id):
            raise has_policies(names)
        async with self._database.transaction(scope) as connection:
            found = await store.group(connection, scope, group_id)
            if found is None:
                raise not_found("group", group_id)
            await membership.hold_alone(connection, found.tenant_id)
            before = await store.group(connection, scope, group_id, for_update=True)
            if before is None:
                raise not_found("group", group_id)
            check_etag(before.etag)
            after = await self.deleted(connection, call, before)
        self._catch_up.wake(after.state)
        return after

    async def deleted(
        self, connection: Connection, call: Call, before: Group, *, later: bool = False
    ) -> Group:
        """Deletes a group in a transaction that holds its organisation alone."""
        at = self._clock()
        after = replace(
            before,
            revision=before.revision + 1,
            updated_at=at,
            deleted_at=at,
            deleted_by=call.caller.name,
        )
        await store.update_group(connection, after)
        await set_store.remove(connection, after.id)
        await group_members.remove_all_members(connection, after.id)
        await store.forget_deleted(connection, after.tenant_id, MOST_TOMBSTONES)
        await self._outbox.append(
            connection,
            CloudEvent(GroupDeleted(id=after.id, before=before.snapshot()), after.tenant_id),
        )
        return await self._compute(connection, after, later=later)

    async def _compute(self, connection: Connection, group: Group, *, later: bool) -> Group:
        """Moves the first devices here; the others follow (`CatchUp`)."""
        behind: UUID | None = _NIL
        if not later:
            moved, behind = await group_devices.compute(connection, group, _NIL, _AT_ONCE)
            await self._outbox.append(connection, *membership.events_of(moved))
        if behind == group.computing_after:
            return group
        await group_devices.note_computed(connection, group.id, behind)
        return replace(group, computing_after=behind)

    async def members(
        self, call: Call, group_id: UUID, after: str | None, limit: int
    ) -> Page[Member, str]:
        """Who is in a group: by serial number where they are listed, else the oldest first.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT for a position of another list.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            group = await store.group(connection, scope, group_id)
            if group is None:
                raise not_found("group", group_id)
            if group.is_listed:
                return await group_members.listed_members(connection, group, after or "", limit)
            if after is not None and not is_uuid(after):
                raise invalid_field("pageToken", "is not a token of this list")
            found = await group_members.matching_members(
                connection, group, UUID(after) if after else None, limit
            )
            return Page(found.items, str(found.after) if found.after else None)

    async def change_members(
        self,
        call: Call,
        group_id: UUID,
        add: Sequence[str],
        remove: Sequence[str],
        *,
        validate_only: bool,
    ) -> MembersChanged:
        """Lists serial numbers, and takes others off the list; devices follow at once.

        Args:
            add: serial numbers, or ids of devices.
            remove: likewise.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION for a group with a filter, or a full one;
                INVALID_ARGUMENT with the field.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            found = await store.group(connection, scope, group_id)
            if found is None:
                raise not_found("group", group_id)
            if validate_only:
                await membership.hold(connection, [found.tenant_id])
            else:
                await membership.hold_alone(connection, found.tenant_id)
            group = await store.group(connection, scope, group_id)
            if group is None:
                raise not_found("group", group_id)
            if not group.is_listed:
                raise not_listed()
            return await self._listed(connection, call, group, add, remove, validate_only)

    async def _listed(
        self,
        connection: Connection,
        call: Call,
        group: Group,
        add: Sequence[str],
        remove: Sequence[str],
        validate_only: bool,
    ) -> MembersChanged:
        adding, unknown = await _named(connection, group, add, "add")
        removing, missing = await _named(connection, group, remove, "remove")
        if both := sorted(adding.keys() & removing.keys()):
            raise invalid_field("remove", f"{removing[both[0]]} is to be added, too")
        known = await group_members.listed_among(connection, group.id, [*adding, *removing])
        fresh = {key: serial for key, serial in adding.items() if key not in known}
        gone = {key: serial for key, serial in removing.items() if key in known}
        if (
            await group_members.count_listed(connection, group.id) + len(fresh) - len(gone)
            > MOST_MEMBERS
        ):
            raise too_many("members in a group", MOST_MEMBERS)
        devices = await group_members.devices_by_key(connection, group.tenant_id, [*fresh, *gone])
        if not validate_only and (fresh or gone):
            await group_members.add_members(
                connection,
                group.tenant_id,
                [(group.id, serial, key) for key, serial in fresh.items()],
                call.caller.name,
                self._clock(),
            )
            await group_members.remove_members(connection, [(group.id, key) for key in gone])
            settled = await membership.settle(
                connection, {group.tenant_id: [id_ for id_, _ in devices.values()]}
            )
            changed = members_changed(group, fresh.values(), gone.values())
            await self._outbox.append(
                connection,
                CloudEvent(changed, group.tenant_id),
                *membership.events_of(settled.moved),
            )
        in_use = {key for key, (_, is_in) in devices.items() if is_in}
        return MembersChanged(
            counted=await _counted(connection, group),
            joined=[serial for key, serial in fresh.items() if key in in_use],
            waiting=[serial for key, serial in fresh.items() if key not in in_use],
            removed=[*gone.values()],
            unchanged=[
                *(serial for key, serial in adding.items() if key in known),
                *(serial for key, serial in removing.items() if key not in known),
            ],
            unknown=[*unknown, *missing],
        )

    async def preview(self, call: Call, org_id: UUID, text: str, group_id: UUID | None) -> Preview:
        """What a filter would match now, and what it would change of a group.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT with the field.
        """
        org = await self._tenants.require_org(call.caller, org_id)
        parse(text)
        scope = self._tenants.scope(org.id)
        async with self._database.transaction(scope) as connection:
            if group_id is not None:
                group = await store.group(connection, scope, group_id)
                if group is None:
                    raise not_found("group", group_id)
            return Preview(
                *await group_devices.preview(connection, org.id, text, group_id, _SAMPLE)
            )

    async def changes(self, cursor: str, limit: int) -> tuple[FeedPage, Sequence[Group]]:
        """The feed of groups for the other services."""
        async with self._database.system_transaction("the feed tells of all tenants") as connection:
            return await store.changed_groups(connection, Cursor.parse(cursor), limit)


async def _counted(connection: Connection, group: Group) -> Counted:
    counts = await store.count_members(connection, [group])
    return Counted(group, *counts[group.id])


async def _named(
    connection: Connection, group: Group, names: Sequence[str], field: str
) -> tuple[dict[str, str], list[str]]:
    """Key → serial number of what is named by serial number or id; and ids that no device has."""
    ids = [UUID(name) for name in names if is_uuid(name)]
    known = await group_members.serials_of(connection, group.tenant_id, ids) if ids else {}
    unknown = [str(id_) for id_ in dict.fromkeys(ids) if id_ not in known]
    serials = [
        clean_listed(name, f"{field}[{index}]")
        for index, name in enumerate(names)
        if not is_uuid(name)
    ]
    named: dict[str, str] = {}
    for serial in (*known.values(), *serials):
        named.setdefault(serial_key(serial), serial)
    return named, unknown
