"""What reports are made from: the services that own the data, asked page by page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeVar
from uuid import UUID

import grpc
from google.protobuf.message import Message

from evergreen.v1 import (
    attestation_pb2,
    attestation_pb2_grpc,
    enrollment_pb2,
    enrollment_pb2_grpc,
    identity_pb2,
    identity_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    telemetry_pb2,
    telemetry_pb2_grpc,
)
from servicekit.rpc.values import optional_timestamp
from services.audit.reports.domain import Parameters

T = TypeVar("T")

PAGE: Final = 500
"""Rows of a page."""
_IN_USE: Final = frozenset({"active", "prepared"})
"""Statuses in the registry of devices that work, or soon will."""
_PAUSES: Final = (0.5, 2.0)
"""Seconds before a question is asked again."""
_SECONDS: Final = 30.0
"""So long an answer may take."""
_AWAY: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        # A release before, which is being replaced.
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)


class AwayError(Exception):
    """A service does not answer now."""

    def __init__(self, context: str) -> None:
        super().__init__(f"{context} is not available")
        self.context = context


class Sources:
    """Asks the owners of what reports say.

    Args:
        channel: the channel to another service.
    """

    def __init__(self, channel: Callable[[str], grpc.aio.Channel]) -> None:
        self._enrollment = enrollment_pb2_grpc.EnrollmentInternalServiceStub(channel("enrollment"))
        self._telemetry = telemetry_pb2_grpc.TelemetryInternalServiceStub(channel("telemetry"))
        self._policy = policy_pb2_grpc.PolicyInternalServiceStub(channel("policy"))
        self._identity = identity_pb2_grpc.IdentityInternalServiceStub(channel("identity"))
        self._attestation = attestation_pb2_grpc.AttestationInternalServiceStub(
            channel("attestation")
        )

    async def devices(
        self, org_id: UUID, *, whatever_status: bool = False
    ) -> AsyncGenerator[Sequence[enrollment_pb2.DeviceRecord], None]:
        """The devices of an organisation, page by page.

        Args:
            org_id: the organisation.
            whatever_status: whether all are listed, and not those in use alone.

        Raises:
            AwayError: enrollment does not answer.
        """
        request = enrollment_pb2.ListDeviceRecordsRequest(
            tenant_id=str(org_id), page_size=PAGE, with_decommissioned=whatever_status
        )
        while True:
            answer = await _answer("enrollment", self._enrollment.ListDeviceRecords, request)
            found = [one for one in answer.devices if whatever_status or one.status in _IN_USE]
            if found:
                yield found
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def facts(
        self, org_id: UUID, ids: Sequence[str], *, with_last_error: bool = False
    ) -> Mapping[str, telemetry_pb2.DeviceFacts]:
        """What some devices of an organisation reported, by id.

        Raises:
            AwayError: telemetry does not answer.
        """
        request = telemetry_pb2.ListDeviceFactsRequest(
            tenant_id=str(org_id), device_ids=ids, with_last_error=with_last_error
        )
        answer = await _answer("telemetry", self._telemetry.ListDeviceFacts, request)
        return {one.device_id: one for one in answer.devices}

    async def versions_of(
        self, org_id: UUID, ids: Sequence[str]
    ) -> tuple[policy_pb2.RequiredVersion | None, Mapping[str, policy_pb2.DeviceVersion]]:
        """What is in force, and what some devices of an organisation have, by id.

        Raises:
            AwayError: policy does not answer.
        """
        request = policy_pb2.ListDeviceVersionsRequest(tenant_id=str(org_id), device_ids=ids)
        answer = await _answer("policy", self._policy.ListDeviceVersions, request)
        required = answer.required if answer.HasField("required") else None
        return required, {one.device_id: one for one in answer.devices}

    async def published(
        self, org_id: UUID
    ) -> AsyncGenerator[Sequence[policy_pb2.PublishedVersion], None]:
        """The versions that were published for an organisation, oldest first, page by page.

        Raises:
            AwayError: policy does not answer.
        """
        request = policy_pb2.ListPublishedVersionsRequest(tenant_id=str(org_id), page_size=PAGE)
        while True:
            answer = await _answer("policy", self._policy.ListPublishedVersions, request)
            if answer.versions:
                yield answer.versions
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def verdicts(
        self, org_id: UUID, ids: Sequence[str], parameters: Parameters
    ) -> Mapping[str, attestation_pb2.VerdictFacts]:
        """The verdicts over some devices of an organisation, by id.

        Raises:
            AwayError: attestation does not answer.
        """
        request = attestation_pb2.ListDeviceVerdictsRequest(
            tenant_id=str(org_id), device_ids=ids, until=optional_timestamp(parameters.until)
        )
        answer = await _answer("attestation", self._attestation.ListDeviceVerdicts, request)
        return {one.device_id: one for one in answer.verdicts}

    async def users(
        self, tenant_id: UUID
    ) -> AsyncGenerator[Sequence[identity_pb2.UserFacts], None]:
        """The users of a tenant, page by page.

        Raises:
            AwayError: identity does not answer.
        """
        request = identity_pb2.ListUserFactsRequest(tenant_id=str(tenant_id), page_size=PAGE)
        while True:
            answer = await _answer("identity", self._identity.ListUserFacts, request)
            if answer.users:
                yield answer.users
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def credentials(
        self, tenant_id: UUID
    ) -> AsyncGenerator[Sequence[identity_pb2.CredentialFacts], None]:
        """The event credentials and API tokens of a tenant, page by page.

        Raises:
            AwayError: identity does not answer.
        """
        request = identity_pb2.ListCredentialFactsRequest(tenant_id=str(tenant_id), page_size=PAGE)
        while True:
            answer = await _answer("identity", self._identity.ListCredentialFacts, request)
            if answer.credentials:
                yield answer.credentials
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def tokens(
        self, org_id: UUID
    ) -> AsyncGenerator[Sequence[enrollment_pb2.TokenRecord], None]:
        """The enrollment tokens of an organisation, page by page.

        Raises:
            AwayError: enrollment does not answer.
        """
        request = enrollment_pb2.ListTokenRecordsRequest(tenant_id=str(org_id), page_size=PAGE)
        while True:
            answer = await _answer("enrollment", self._enrollment.ListTokenRecords, request)
            if answer.tokens:
                yield answer.tokens
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def count_events(self, org_id: UUID) -> int:
        """How many events an organisation has, up to 100,000.

        Raises:
            AwayError: telemetry does not answer.
        """
        request = telemetry_pb2.CountEventsRequest(tenant_ids=[str(org_id)])
        answer = await _answer("telemetry", self._telemetry.CountEvents, request)
        return answer.events


async def _answer(context: str, ask: Callable[..., Awaitable[T]], request: Message) -> T:
    """The answer of a service, which is asked again when it is away for a moment.

    Raises:
        AwayError: it is away for longer.
    """
    for pause in (*_PAUSES, None):
        try:
            return await ask(request, timeout=_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _AWAY:
                raise
            if pause is None:
                raise AwayError(context) from error
        await asyncio.sleep(pause)
    raise AssertionError("the last pause is none")
