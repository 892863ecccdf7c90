"""What the other services ask enrollment for."""

from __future__ import annotations

from datetime import UTC
from functools import partial
from uuid import UUID

from evergreen.v1 import enrollment_pb2 as pb
from evergreen.v1 import enrollment_pb2_grpc, person_pb2
from servicekit.data.postgres import Database, Scope
from servicekit.feeds.changes import Changes
from servicekit.ids import Clock
from servicekit.rpc.pagination import asked_page
from servicekit.rpc.persons import person_records
from servicekit.rpc.server import Context
from servicekit.rpc.values import optional_timestamp, timestamp
from services.enrollment.facts import person_store
from services.enrollment.facts import store as fact_store
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
                    archived=device.comes_back,
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

    async def ListDeviceRecords(
        self, request: pb.ListDeviceRecordsRequest, context: Context
    ) -> pb.ListDeviceRecordsResponse:
        """Answers a page of the devices of an organisation."""
        tenant_id = UUID(request.tenant_id)
        after, size = asked_page(request, UUID)
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            page = await fact_store.devices(
                connection,
                tenant_id,
                after,
                size,
                with_decommissioned=request.with_decommissioned,
            )
        return pb.ListDeviceRecordsResponse(
            devices=[
                pb.DeviceRecord(
                    device_id=str(device.id),
                    serial=device.serial,
                    model=device.model,
                    cpu_model=device.cpu_model,
                    total_ram_bytes=device.total_ram_bytes,
                    has_tpm=device.has_tpm,
                    status=device.status,
                    created_at=timestamp(device.created_at),
                    enrolled_at=optional_timestamp(device.enrolled_at),
                    enrollment_token_name=device.token_name,
                    decommissioned_at=optional_timestamp(device.decommissioned_at),
                    asset_tag=device.asset_tag,
                )
                for device in page.items
            ],
            next_page_token=page.token,
        )

    async def ListTokenRecords(
        self, request: pb.ListTokenRecordsRequest, context: Context
    ) -> pb.ListTokenRecordsResponse:
        """Answers a page of the enrollment tokens of an organisation."""
        tenant_id = UUID(request.tenant_id)
        after, size = asked_page(request, UUID)
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            page = await fact_store.tokens(connection, tenant_id, after, size)
        return pb.ListTokenRecordsResponse(
            tokens=[
                pb.TokenRecord(
                    token_id=str(token.id),
                    name=token.name,
                    created_at=timestamp(token.created_at),
                    expires_at=timestamp(token.expires_at),
                    last_used_at=optional_timestamp(token.last_used_at),
                    revoked_at=optional_timestamp(token.revoked_at),
                )
                for token in page.items
            ],
            next_page_token=page.token,
        )

    async def ListPersonRecords(
        self, request: person_pb2.ListPersonRecordsRequest, context: Context
    ) -> person_pb2.ListPersonRecordsResponse:
        """Answers a page of what is held about a person."""
        return await person_records(self._database, "enrollment", person_store.TABLES, request)
