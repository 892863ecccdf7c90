"""What the other services ask enrollment for."""

from __future__ import annotations

from datetime import UTC
from functools import partial
from uuid import UUID

from evergreen.v1 import enrollment_pb2 as pb
from evergreen.v1 import enrollment_pb2_grpc
from servicekit.data.postgres import Database, Scope
from servicekit.feeds.changes import Changes
from servicekit.ids import Clock
from servicekit.rpc.server import Context
from servicekit.rpc.values import optional_timestamp
from services.enrollment.groups.service import Groups
from services.enrollment.registry import store as device_store
from services.enrollment.registry.peers import membership_of
from services.enrollment.registry.service import Registry
from services.enrollment.tokens import store as token_store


class InternalApi(enrollment_pb2_grpc.EnrollmentInternalServiceServicer):
    """evergreen.v1.EnrollmentInternalService."""

    def __init__(
        self,
        registry: Registry,
        groups: Groups,
        changes: Changes,
        database: Database,
        clock: Clock,
    ) -> None:
        self._registry = registry
        self._groups = groups
        self._changes = changes
        self._database = database
        self._clock = clock

    async def CountEnrollment(
        self, request: pb.CountEnrollmentRequest, context: Context
    ) -> pb.CountEnrollmentResponse:
        """Counts what tenants have."""
        ids = tuple(map(UUID, request.tenant_ids))
        async with self._database.transaction(Scope(ids)) as connection:
            tokens, active = await token_store.count(
                connection,
                ids,
                self._clock(),
                request.made_from.ToDatetime(UTC) if request.HasField("made_from") else None,
                request.made_before.ToDatetime(UTC) if request.HasField("made_before") else None,
            )
            devices = await device_store.count(connection, ids)
        return pb.CountEnrollmentResponse(devices=devices, tokens=tokens, active_tokens=active)

    async def ListDeviceChanges(
        self, request: pb.ListDeviceChangesRequest, context: Context
    ) -> pb.ListDeviceChangesResponse:
        """Feeds the other services."""
        read = partial(
            self._registry.changes,
            request.cursor,
            request.limit,
            restricted_only=request.restricted_only,
        )
        page, devices = await self._changes.answer(
            read, request.wait_seconds, has_news=lambda found: bool(found[1])
        )
        return pb.ListDeviceChangesResponse(
            devices=[
                pb.DeviceChange(
                    device_id=str(device.id),
                    tenant_id=str(device.tenant_id),
                    status=device.status.value,
                    token_version=device.token_version,
                    serial=device.serial,
                    model=device.hardware.model,
                    created_at=optional_timestamp(device.created_at),
                    enrolled_at=optional_timestamp(device.enrolled_at),
                    deleted=device.deleted_at is not None,
                    membership=membership_of(device),
                )
                for device in devices
            ],
            next_cursor=str(page.cursor),
            more=page.more,
        )

    async def ListGroupChanges(
        self, request: pb.ListGroupChangesRequest, context: Context
    ) -> pb.ListGroupChangesResponse:
        """Feeds the other services."""
        read = partial(self._groups.changes, request.cursor, request.limit)
        page, groups = await self._changes.answer(
            read, request.wait_seconds, has_news=lambda found: bool(found[1])
        )
        return pb.ListGroupChangesResponse(
            groups=[
                pb.GroupChange(
                    group_id=str(group.id),
                    tenant_id=str(group.tenant_id),
                    name=group.name,
                    alias=group.alias,
                    priority=group.priority,
                    revision=group.revision,
                    deleted=group.deleted_at is not None,
                )
                for group in groups
            ],
            next_cursor=str(page.cursor),
            more=page.more,
        )
