"""The device registry over gRPC."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from uuid import UUID

from google.api import httpbody_pb2

from evergreen.v1 import enrollment_pb2 as pb
from evergreen.v1 import enrollment_pb2_grpc
from servicekit.ids import given_id
from servicekit.rpc.pagination import TimePosition, asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import optional_timestamp, timestamp
from services.enrollment.registry.bulk import Batch, Bulk, Row, What
from services.enrollment.registry.domain import Device, DeviceFilter
from services.enrollment.registry.labels import Details
from services.enrollment.registry.refusals import Refusal
from services.enrollment.registry.service import Registry
from services.enrollment.registry.start_file import start_file


def _registration(device: Device) -> pb.Registration:
    token = device.enrollment_token_id
    return pb.Registration(
        id=str(device.id),
        org_id=str(device.tenant_id),
        serial=device.serial,
        model=device.hardware.model,
        status=device.status.value,
        created_at=timestamp(device.created_at),
        enrolled_at=optional_timestamp(device.enrolled_at),
        decommissioned_at=optional_timestamp(device.decommissioned_at),
        enrollment_token_id=str(token) if token else "",
        reenrollment_allowed_until=optional_timestamp(device.reenrollment_allowed_until),
        reenrollment_refused_at=optional_timestamp(device.reenrollment_refused_at),
        cpu_model=device.hardware.cpu_model,
        cpu_count=device.hardware.cpu_count,
        has_tpm=device.hardware.has_tpm,
        reported_serial=device.reported_serial,
        serial_duplicated=device.serial_duplicated,
        etag=device.etag,
        deleted_at=optional_timestamp(device.deleted_at),
        deleted_by=device.deleted_by or "",
        labels=device.labels,
        group_ids=map(str, device.group_ids),
        asset_tag=device.asset_tag,
        note=device.note,
        policy_key_id=device.policy_key_id,
    )


def _details(
    request: pb.UpdateRegistrationRequest | pb.RegistrationChange | pb.ImportedRegistration,
) -> Details:
    return Details(
        labels=dict(request.labels),
        remove_labels=tuple(request.remove_labels),
        asset_tag=request.asset_tag if request.HasField("asset_tag") else None,
        note=request.note if request.HasField("note") else None,
    )


def _batch(batch: Batch) -> pb.BatchUpdateRegistrationsResponse:
    counts = Counter(result.what for result in batch.results)
    return pb.BatchUpdateRegistrationsResponse(
        results=[
            pb.RegistrationResult(
                line=result.line,
                serial=result.serial,
                id=str(result.id) if result.id else "",
                result=result.what.value,
                field=result.field,
                reason=result.reason,
                message=result.message,
            )
            for result in batch.results
        ],
        applied=batch.applied,
        added=counts[What.ADDED],
        changed=counts[What.CHANGED],
        unchanged=counts[What.UNCHANGED],
        refused=counts[What.REFUSED],
    )


def _refusal(refusal: Refusal) -> pb.EnrollmentRefusal:
    return pb.EnrollmentRefusal(
        id=str(refusal.id),
        org_id=str(refusal.tenant_id),
        reason=refusal.reason,
        serial=refusal.serial,
        model=refusal.model,
        enrollment_token_id=str(refusal.token_id),
        source_ip=refusal.source_ip,
        first_at=timestamp(refusal.first_at),
        last_at=timestamp(refusal.last_at),
        attempts=refusal.attempts,
    )


class DeviceRegistryApi(enrollment_pb2_grpc.DeviceRegistryServiceServicer):
    """evergreen.v1.DeviceRegistryService."""

    def __init__(self, registry: Registry, bulk: Bulk) -> None:
        self._registry = registry
        self._bulk = bulk

    async def ListRegistrations(
        self, request: pb.ListRegistrationsRequest, context: Context
    ) -> pb.ListRegistrationsResponse:
        """Lists devices."""
        before, size = asked_page(request, UUID)
        page = await self._registry.list(
            context.call,
            given_id(request.org_id),
            DeviceFilter(
                status=request.status,
                deleted=request.show_deleted,
                serial=request.serial,
                filter=request.filter.strip(),
                group_id=given_id(request.group_id),
                asset_tag=request.asset_tag,
            ),
            before,
            size,
        )
        return pb.ListRegistrationsResponse(
            registrations=map(_registration, page.items), next_page_token=page.token
        )

    async def GetRegistration(
        self, request: pb.GetRegistrationRequest, context: Context
    ) -> pb.Registration:
        """Answers one device."""
        return _registration(await self._registry.get(context.call, UUID(request.id)))

    async def UpdateRegistration(
        self, request: pb.UpdateRegistrationRequest, context: Context
    ) -> pb.Registration:
        """Changes labels, asset tag and note."""
        return _registration(
            await self._registry.update(context.call, UUID(request.id), _details(request))
        )

    async def BatchUpdateRegistrations(
        self, request: pb.BatchUpdateRegistrationsRequest, context: Context
    ) -> pb.BatchUpdateRegistrationsResponse:
        """Changes many devices."""
        batch = await self._bulk.update(
            context.call,
            UUID(request.org_id),
            [
                Row(
                    line=row.line,
                    device=row.device,
                    details=_details(row),
                    add_groups=tuple(row.add_groups),
                    remove_groups=tuple(row.remove_groups),
                )
                for row in request.rows
            ],
            validate_only=request.validate_only,
            skip_refused=request.skip_refused,
        )
        return _batch(batch)

    async def BatchImportRegistrations(
        self, request: pb.BatchImportRegistrationsRequest, context: Context
    ) -> pb.BatchUpdateRegistrationsResponse:
        """Expects devices, and changes those that are known."""
        batch = await self._bulk.import_(
            context.call,
            UUID(request.org_id),
            [
                Row(
                    line=row.line,
                    device=row.serial,
                    details=replace(
                        _details(row), model=row.model if row.HasField("model") else None
                    ),
                    add_groups=tuple(row.groups),
                )
                for row in request.rows
            ],
            validate_only=request.validate_only,
            skip_refused=request.skip_refused,
        )
        return _batch(batch)

    async def BatchGetRegistrations(
        self, request: pb.BatchGetRegistrationsRequest, context: Context
    ) -> pb.BatchGetRegistrationsResponse:
        """Finds devices by what names them."""
        found = await self._registry.find(
            context.call,
            given_id(request.org_id),
            request.serials,
            request.asset_tags,
            [*map(UUID, request.ids)],
        )
        return pb.BatchGetRegistrationsResponse(
            registrations=map(_registration, found.devices),
            missing_serials=found.missing_serials,
            missing_asset_tags=found.missing_asset_tags,
            missing_ids=map(str, found.missing_ids),
        )

    async def ApproveDevice(
        self, request: pb.ApproveDeviceRequest, context: Context
    ) -> pb.Registration:
        """Admits a device that waits."""
        return _registration(await self._registry.approve(context.call, UUID(request.id)))

    async def RejectDevice(
        self, request: pb.RejectDeviceRequest, context: Context
    ) -> pb.Registration:
        """Refuses a device that waits."""
        return _registration(await self._registry.reject(context.call, UUID(request.id)))

    async def AllowReenrollment(
        self, request: pb.AllowReenrollmentRequest, context: Context
    ) -> pb.Registration:
        """Lets a device enroll again."""
        device = await self._registry.allow_reenrollment(context.call, UUID(request.id))
        return _registration(device)

    async def DecommissionDevice(
        self, request: pb.DecommissionDeviceRequest, context: Context
    ) -> pb.Registration:
        """Locks a device out."""
        return _registration(
            await self._registry.decommission(
                context.call, UUID(request.id), validate_only=request.validate_only
            )
        )

    async def DeleteDevice(
        self, request: pb.DeleteDeviceRequest, context: Context
    ) -> pb.Registration:
        """Deletes a device that is locked out."""
        return _registration(
            await self._registry.delete(
                context.call, UUID(request.id), validate_only=request.validate_only
            )
        )

    async def ListEnrollmentRefusals(
        self, request: pb.ListEnrollmentRefusalsRequest, context: Context
    ) -> pb.ListEnrollmentRefusalsResponse:
        """Lists attempts to enroll that were refused."""
        before, size = asked_page(request, TimePosition.read)
        page = await self._registry.refusals(
            context.call, given_id(request.org_id), request.serial, before, size
        )
        return pb.ListEnrollmentRefusalsResponse(
            enrollment_refusals=map(_refusal, page.items), next_page_token=page.token
        )

    async def PrepareDevice(
        self, request: pb.PrepareDeviceRequest, context: Context
    ) -> httpbody_pb2.HttpBody:
        """Registers a device ahead of its first start."""
        prepared = await self._registry.prepare(
            context.call,
            UUID(request.org_id),
            request.serial,
            request.model,
            request.policy_key_id,
        )
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", prepared.device.serial)
        await context.send_headers(
            {
                "content-disposition": f'attachment; filename="evergreen-{name}.json"',
                "cache-control": "no-store",
            }
        )
        return httpbody_pb2.HttpBody(
            content_type="application/json", data=start_file(prepared.device, prepared.issued)
        )
