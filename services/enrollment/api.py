"""Enrollment's gRPC side: translates between proto and domain, nothing else."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

from google.api import httpbody_pb2
from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from evergreen.v1 import device_pb2, enrollment_pb2_grpc
from evergreen.v1 import enrollment_pb2 as pb
from servicekit.changes import Changes
from servicekit.grpc_server import Context
from servicekit.ids import Clock
from servicekit.pagination import decode_token, encode_token, page_size
from servicekit.values import timestamp
from services.enrollment.agent import application, start_file
from services.enrollment.domain.types import Device
from services.enrollment.service.admission import Admission
from services.enrollment.service.registry import Registry
from services.enrollment.service.tokens import Shown, Tokens


def _position(text: object) -> UUID:
    return UUID(str(text))


def _time(at: datetime | None) -> Timestamp | None:
    return timestamp(at) if at else None


def _token(shown: Shown, at: datetime) -> pb.EnrollmentToken:
    token = shown.token
    return pb.EnrollmentToken(
        id=str(token.id),
        org_id=str(token.tenant_id),
        name=token.name,
        created_at=_time(token.created_at),
        expires_at=_time(token.expires_at),
        max_uses=token.max_uses,
        uses=token.uses,
        serials=shown.serials,
        require_approval=token.require_approval,
        last_used_at=_time(token.last_used_at),
        revoked_at=_time(token.revoked_at),
        status=token.status(at),
        secret=shown.secret,
        pre_shared_key=shown.pre_shared_key,
    )


def _registration(device: Device) -> pb.Registration:
    token = device.enrollment_token_id
    return pb.Registration(
        id=str(device.id),
        org_id=str(device.tenant_id),
        serial=device.serial,
        model=device.hardware.model,
        status=device.status.value,
        created_at=_time(device.created_at),
        enrolled_at=_time(device.enrolled_at),
        decommissioned_at=_time(device.decommissioned_at),
        enrollment_token_id=str(token) if token else "",
        reenrollment_allowed_until=_time(device.reenrollment_allowed_until),
        reenrollment_refused_at=_time(device.reenrollment_refused_at),
        cpu_model=device.hardware.cpu_model,
        cpu_count=device.hardware.cpu_count,
        has_tpm=device.hardware.has_tpm,
    )


class DeviceApi:
    """The one method of evergreen.v1.DeviceService that this context serves."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    async def EnrollDevice(
        self, request: device_pb2.EnrollDeviceRequest, context: Context
    ) -> device_pb2.EnrollDeviceResponse:
        """Lets a device in."""
        admitted = await self._admission.enroll(context.call, application(request))
        policy = json_format.Parse(
            admitted.issued.envelope,
            device_pb2.PolicyEnvelope(statement=admitted.issued.statement),
            ignore_unknown_fields=True,
        )
        return device_pb2.EnrollDeviceResponse(
            device_id=str(admitted.device.id),
            device_token=admitted.issued.token,
            policy=policy,
        )


class EnrollmentTokenApi(enrollment_pb2_grpc.EnrollmentTokenServiceServicer):
    """evergreen.v1.EnrollmentTokenService."""

    def __init__(self, tokens: Tokens, clock: Clock) -> None:
        self._tokens = tokens
        self._clock = clock

    async def ListEnrollmentTokens(
        self, request: pb.ListEnrollmentTokensRequest, context: Context
    ) -> pb.ListEnrollmentTokensResponse:
        """Lists tokens."""
        before = decode_token(request.page_token, _position)
        found, more = await self._tokens.list(
            context.call, request.org_id, before, page_size(request.page_size)
        )
        at = self._clock()
        return pb.ListEnrollmentTokensResponse(
            enrollment_tokens=[_token(shown, at) for shown in found],
            next_page_token=encode_token(str(found[-1].token.id)) if more else "",
        )

    async def GetEnrollmentToken(
        self, request: pb.GetEnrollmentTokenRequest, context: Context
    ) -> pb.EnrollmentToken:
        """Answers one token."""
        return _token(await self._tokens.get(context.call, request.id), self._clock())

    async def CreateEnrollmentToken(
        self, request: pb.CreateEnrollmentTokenRequest, context: Context
    ) -> pb.EnrollmentToken:
        """Adds a token."""
        expires = request.expires_at
        shown = await self._tokens.create(
            context.call,
            request.org_id,
            request.name,
            expires_at=expires.ToDatetime(tzinfo=UTC) if request.HasField("expires_at") else None,
            max_uses=request.max_uses,
            serials=request.serials,
            require_approval=request.require_approval,
        )
        return _token(shown, self._clock())

    async def RevokeEnrollmentToken(
        self, request: pb.RevokeEnrollmentTokenRequest, context: Context
    ) -> pb.EnrollmentToken:
        """Revokes a token."""
        return _token(await self._tokens.revoke(context.call, request.id), self._clock())


class DeviceRegistryApi(enrollment_pb2_grpc.DeviceRegistryServiceServicer):
    """evergreen.v1.DeviceRegistryService."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def ListRegistrations(
        self, request: pb.ListRegistrationsRequest, context: Context
    ) -> pb.ListRegistrationsResponse:
        """Lists devices."""
        size = page_size(request.page_size)
        before = decode_token(request.page_token, _position)
        found = await self._registry.list(
            context.call, request.org_id, request.status, before, size + 1
        )
        return pb.ListRegistrationsResponse(
            registrations=map(_registration, found[:size]),
            next_page_token=encode_token(str(found[size - 1].id)) if len(found) > size else "",
        )

    async def GetRegistration(
        self, request: pb.GetRegistrationRequest, context: Context
    ) -> pb.Registration:
        """Answers one device."""
        return _registration(await self._registry.get(context.call, request.id))

    async def ApproveDevice(
        self, request: pb.ApproveDeviceRequest, context: Context
    ) -> pb.Registration:
        """Admits a device that waits."""
        return _registration(await self._registry.approve(context.call, request.id))

    async def RejectDevice(
        self, request: pb.RejectDeviceRequest, context: Context
    ) -> pb.Registration:
        """Refuses a device that waits."""
        return _registration(await self._registry.reject(context.call, request.id))

    async def AllowReenrollment(
        self, request: pb.AllowReenrollmentRequest, context: Context
    ) -> pb.Registration:
        """Lets a device enroll again."""
        return _registration(await self._registry.allow_reenrollment(context.call, request.id))

    async def DecommissionDevice(
        self, request: pb.DecommissionDeviceRequest, context: Context
    ) -> pb.Registration:
        """Locks a device out."""
        return _registration(await self._registry.decommission(context.call, request.id))

    async def PrepareDevice(
        self, request: pb.PrepareDeviceRequest, context: Context
    ) -> httpbody_pb2.HttpBody:
        """Registers a device ahead of its first start."""
        prepared = await self._registry.prepare(
            context.call, request.org_id, request.serial, request.model
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


class InternalApi(enrollment_pb2_grpc.EnrollmentInternalServiceServicer):
    """evergreen.v1.EnrollmentInternalService."""

    def __init__(self, registry: Registry, changes: Changes) -> None:
        self._registry = registry
        self._changes = changes

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
                    created_at=_time(device.created_at),
                    enrolled_at=_time(device.enrolled_at),
                )
                for device in devices
            ],
            next_cursor=str(page.cursor),
            more=page.more,
        )
