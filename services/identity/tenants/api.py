"""Tenants over gRPC."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc
from servicekit.ids import given_id
from servicekit.rpc.pagination import asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import optional_timestamp, timestamp
from services.identity.tenants.deletions import Deletions
from services.identity.tenants.domain import Objects, Tenant
from services.identity.tenants.life import TenantLife
from services.identity.tenants.service import Tenants

_MOST_ROWS: Final = 2**31 - 1


def tenant_message(tenant: Tenant) -> pb.Tenant:
    """A tenant as the API shows it."""
    return pb.Tenant(
        id=str(tenant.id),
        name=tenant.name,
        parent_id=str(tenant.parent_id) if tenant.parent_id else None,
        reseller=tenant.kind == "reseller",
        created_at=timestamp(tenant.created_at),
        updated_at=timestamp(tenant.updated_at),
        code=tenant.code,
        kind=tenant.kind,
        etag=tenant.etag,
        status=tenant.status,
        archived_at=optional_timestamp(tenant.archived_at),
        archived_by=tenant.archived_by,
        purge_at=optional_timestamp(tenant.purge_at),
        deletion_requested_at=optional_timestamp(tenant.deletion_requested_at),
        deleted_at=optional_timestamp(tenant.deleted_at),
        deleted_by=tenant.deletion_requested_by,
        language=tenant.language,
        time_zone=tenant.time_zone,
        old_codes=[
            pb.OldTenantCode(
                code=old.code,
                replaced_at=timestamp(old.replaced_at),
                active_tokens=old.active_tokens,
            )
            for old in tenant.old_codes
        ],
    )


def _change(changed: tuple[Tenant, Objects]) -> pb.TenantChange:
    tenant, objects = changed
    return pb.TenantChange(
        tenant=tenant_message(tenant),
        affected=pb.TenantObjects(
            tenants=objects.tenants,
            users=objects.users,
            devices=objects.devices,
            enrollment_tokens=objects.enrollment_tokens,
            policies=objects.policies,
            event_credentials=objects.event_credentials,
            events=objects.events,
            count=objects.count,
        ),
    )


class TenantApi(identity_pb2_grpc.TenantServiceServicer):
    """evergreen.v1.TenantService."""

    def __init__(self, tenants: Tenants, life: TenantLife, deletions: Deletions) -> None:
        self._tenants = tenants
        self._life = life
        self._deletions = deletions

    async def ListTenants(
        self, request: pb.ListTenantsRequest, context: Context
    ) -> pb.ListTenantsResponse:
        """Lists the caller's subtree."""
        after, size = asked_page(request, UUID)
        page = await self._tenants.list(context.call, after, size, deleted=request.show_deleted)
        return pb.ListTenantsResponse(
            tenants=map(tenant_message, page.items), next_page_token=page.token
        )

    async def GetTenant(self, request: pb.GetTenantRequest, context: Context) -> pb.Tenant:
        """Answers one tenant."""
        return tenant_message(await self._tenants.get(context.call, UUID(request.id)))

    async def CreateTenant(self, request: pb.CreateTenantRequest, context: Context) -> pb.Tenant:
        """Adds a tenant."""
        return tenant_message(
            await self._tenants.create(
                context.call,
                request.name,
                given_id(request.parent_id),
                request.reseller,
                request.code,
            )
        )

    async def UpdateTenant(self, request: pb.UpdateTenantRequest, context: Context) -> pb.Tenant:
        """Changes a tenant."""
        return tenant_message(
            await self._tenants.update(
                context.call,
                UUID(request.id),
                name=request.name if request.HasField("name") else None,
                code=request.code if request.HasField("code") else None,
                reseller=request.reseller if request.HasField("reseller") else None,
                parent_id=given_id(request.parent_id),
                language=request.language if request.HasField("language") else None,
                time_zone=request.time_zone if request.HasField("time_zone") else None,
                validate_only=request.validate_only,
            )
        )

    async def DropTenantCode(
        self, request: pb.DropTenantCodeRequest, context: Context
    ) -> pb.Tenant:
        """Ends an old code."""
        return tenant_message(
            await self._tenants.drop_code(
                context.call, UUID(request.id), request.code, validate_only=request.validate_only
            )
        )

    async def ArchiveTenant(
        self, request: pb.ArchiveTenantRequest, context: Context
    ) -> pb.TenantChange:
        """Archives a tenant with all below it."""
        expected = request.expected_count if request.HasField("expected_count") else None
        return _change(
            await self._life.archive(
                context.call, UUID(request.id), expected, validate_only=request.validate_only
            )
        )

    async def RestoreTenant(
        self, request: pb.RestoreTenantRequest, context: Context
    ) -> pb.TenantChange:
        """Restores an archived tenant."""
        return _change(
            await self._life.restore(
                context.call, UUID(request.id), validate_only=request.validate_only
            )
        )

    async def DeleteTenant(
        self, request: pb.DeleteTenantRequest, context: Context
    ) -> pb.TenantChange:
        """Has an archived tenant deleted with all below it."""
        expected = request.expected_count if request.HasField("expected_count") else None
        return _change(
            await self._life.delete(
                context.call, UUID(request.id), expected, validate_only=request.validate_only
            )
        )

    async def GetTenantDeletion(
        self, request: pb.GetTenantDeletionRequest, context: Context
    ) -> pb.TenantDeletion:
        """Answers how far a deletion is."""
        found = await self._deletions.get(context.call, UUID(request.id))
        tenant = found.tenant
        return pb.TenantDeletion(
            id=str(tenant.id),
            name=tenant.name,
            status=tenant.status,
            requested_at=optional_timestamp(tenant.deletion_requested_at),
            requested_by=tenant.deletion_requested_by,
            deleted_at=optional_timestamp(tenant.deleted_at),
            contexts=[
                pb.ContextErasure(
                    context=erasure.context,
                    rows=min(erasure.rows, _MOST_ROWS),
                    finished=erasure.finished,
                    waiting_for=erasure.waiting_for,
                )
                for erasure in found.erasures
            ],
        )
