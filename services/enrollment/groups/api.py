"""Groups of devices over gRPC."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from evergreen.v1 import enrollment_pb2 as pb
from evergreen.v1 import enrollment_pb2_grpc
from servicekit.ids import given_id
from servicekit.rpc.pagination import asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import optional_timestamp, timestamp
from services.enrollment.groups.domain import MAX_PRIORITY, Counted, Member
from services.enrollment.groups.service import Groups, Wanted
from services.enrollment.groups.sets import Action, Asked, Entry, GroupSets, Step

_IN = frozenset({"pending", "prepared", "active"})


def _group(counted: Counted) -> pb.DeviceGroup:
    group = counted.group
    return pb.DeviceGroup(
        id=str(group.id),
        org_id=str(group.tenant_id),
        name=group.name,
        alias=group.alias,
        description=group.description,
        priority=group.priority,
        filter=group.filter,
        members=counted.members,
        waiting=counted.waiting,
        state=group.state,
        created_at=timestamp(group.created_at),
        updated_at=timestamp(group.updated_at),
        etag=group.etag,
    )


def _members(members: Sequence[Member]) -> list[pb.GroupMember]:
    return [
        pb.GroupMember(
            serial=member.serial,
            device_id=str(member.device_id) if member.device_id else "",
            model=member.model,
            status=member.status,
            waiting=member.status not in _IN,
            added_by=member.added_by,
            added_at=optional_timestamp(member.added_at),
        )
        for member in members
    ]


def _position(priority: str, group_id: str) -> tuple[int, UUID]:
    if not 0 < (number := int(priority)) <= MAX_PRIORITY:
        raise ValueError(priority)
    return number, UUID(group_id)


def _entry(message: pb.DeviceGroupSetEntry) -> Entry:
    return Entry(
        alias=message.alias,
        name=message.name or message.alias,
        description=message.description,
        priority=message.priority,
        filter=message.filter.strip() if message.HasField("filter") else None,
        renamed_from=message.renamed_from,
    )


def _step(step: Step, *, planned: bool) -> pb.PlannedDeviceGroup:
    is_new = planned and step.action is Action.CREATE
    return pb.PlannedDeviceGroup(
        action=step.action.value,
        alias=step.group.alias,
        group_id="" if is_new else str(step.group.id),
        name=step.group.name,
        changed=step.changed,
        set_name=step.set_name,
        joins=step.joins,
        leaves=step.leaves,
    )


class DeviceGroupApi(enrollment_pb2_grpc.DeviceGroupServiceServicer):
    """evergreen.v1.DeviceGroupService."""

    def __init__(self, groups: Groups, sets: GroupSets) -> None:
        self._groups = groups
        self._sets = sets

    async def ListDeviceGroups(
        self, request: pb.ListDeviceGroupsRequest, context: Context
    ) -> pb.ListDeviceGroupsResponse:
        """Lists groups."""
        after, size = asked_page(request, _position)
        page = await self._groups.list(
            context.call, given_id(request.org_id), request.alias, after, size
        )
        return pb.ListDeviceGroupsResponse(
            device_groups=map(_group, page.items), next_page_token=page.token
        )

    async def GetDeviceGroup(
        self, request: pb.GetDeviceGroupRequest, context: Context
    ) -> pb.DeviceGroup:
        """Answers one group."""
        return _group(await self._groups.get(context.call, UUID(request.id)))

    async def CreateDeviceGroup(
        self, request: pb.CreateDeviceGroupRequest, context: Context
    ) -> pb.DeviceGroup:
        """Adds a group."""
        counted = await self._groups.create(
            context.call,
            UUID(request.org_id),
            request.name,
            request.alias,
            description=request.description,
            priority=request.priority,
            filter=request.filter.strip() if request.HasField("filter") else None,
        )
        return _group(counted)

    async def UpdateDeviceGroup(
        self, request: pb.UpdateDeviceGroupRequest, context: Context
    ) -> pb.DeviceGroup:
        """Changes a group."""
        wanted = Wanted(
            name=request.name if request.HasField("name") else None,
            alias=request.alias if request.HasField("alias") else None,
            description=request.description if request.HasField("description") else None,
            priority=request.priority if request.HasField("priority") else None,
            filter=request.filter.strip() if request.HasField("filter") else None,
        )
        return _group(await self._groups.update(context.call, UUID(request.id), wanted))

    async def DeleteDeviceGroup(
        self, request: pb.DeleteDeviceGroupRequest, context: Context
    ) -> pb.DeviceGroup:
        """Deletes a group."""
        group = await self._groups.delete(context.call, UUID(request.id))
        return _group(Counted(group, 0, 0))

    async def ListGroupMembers(
        self, request: pb.ListGroupMembersRequest, context: Context
    ) -> pb.ListGroupMembersResponse:
        """Lists members."""
        after, size = asked_page(request, str)
        page = await self._groups.members(context.call, UUID(request.id), after, size)
        return pb.ListGroupMembersResponse(members=_members(page.items), next_page_token=page.token)

    async def ChangeGroupMembers(
        self, request: pb.ChangeGroupMembersRequest, context: Context
    ) -> pb.ChangeGroupMembersResponse:
        """Adds members to a list, and takes others off."""
        changed = await self._groups.change_members(
            context.call,
            UUID(request.id),
            request.add,
            request.remove,
            validate_only=request.validate_only,
        )
        return pb.ChangeGroupMembersResponse(
            device_group=_group(changed.counted),
            joined=changed.joined,
            waiting=changed.waiting,
            removed=changed.removed,
            unchanged=changed.unchanged,
            unknown=changed.unknown,
        )

    async def PreviewDeviceGroup(
        self, request: pb.PreviewDeviceGroupRequest, context: Context
    ) -> pb.PreviewDeviceGroupResponse:
        """Tries a filter."""
        found = await self._groups.preview(
            context.call, UUID(request.org_id), request.filter.strip(), given_id(request.group_id)
        )
        return pb.PreviewDeviceGroupResponse(
            matched=found.counts["matched"],
            joining=found.counts["joins"],
            leaving=found.counts["leaves"],
            matched_sample=_members(found.samples["matched"]),
            joining_sample=_members(found.samples["joins"]),
            leaving_sample=_members(found.samples["leaves"]),
        )

    async def ApplyDeviceGroupSet(
        self, request: pb.ApplyDeviceGroupSetRequest, context: Context
    ) -> pb.ApplyDeviceGroupSetResponse:
        """Applies a set, or says what that would do."""
        plan = await self._sets.apply(
            context.call,
            Asked(
                org_id=UUID(request.org_id),
                name=request.name,
                entries=tuple(map(_entry, request.groups)),
                prune=request.prune,
                adopt=request.adopt,
                validate_only=request.validate_only,
                expected_sha256=request.expected_plan_sha256,
            ),
        )
        return pb.ApplyDeviceGroupSetResponse(
            groups=[_step(step, planned=request.validate_only) for step in plan.steps],
            plan_sha256=plan.sha256,
            applied=not request.validate_only,
        )
