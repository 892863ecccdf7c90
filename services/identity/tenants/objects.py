"""What tenants have in all services: the numbers that are confirmed before they are closed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, Final
from uuid import UUID

import grpc

from evergreen.v1 import (
    enrollment_pb2,
    enrollment_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    telemetry_pb2,
    telemetry_pb2_grpc,
)
from servicekit.errors import DomainError, unavailable
from servicekit.rpc.values import timestamp
from services.identity.tenants.domain import Objects, OldCode

_SECONDS: Final = 5.0


class TenantObjects:
    """Asks the services for what they have of tenants."""

    def __init__(
        self,
        enrollment: enrollment_pb2_grpc.EnrollmentInternalServiceAsyncStub,
        policy: policy_pb2_grpc.PolicyInternalServiceAsyncStub,
        telemetry: telemetry_pb2_grpc.TelemetryInternalServiceAsyncStub,
    ) -> None:
        self._enrollment = enrollment
        self._policy = policy
        self._telemetry = telemetry

    async def count(self, tenant_ids: Sequence[UUID], users: int, credentials: int) -> Objects:
        """What tenants have, with the users and event credentials that identity counted.

        Raises:
            DomainError: UNAVAILABLE when a service cannot be asked.
        """
        ids = list(map(str, tenant_ids))
        devices, policies, events = await asyncio.gather(
            _answer(
                "enrollment",
                self._enrollment.CountEnrollment(
                    enrollment_pb2.CountEnrollmentRequest(tenant_ids=ids), timeout=_SECONDS
                ),
            ),
            _answer(
                "policy",
                self._policy.CountPolicies(
                    policy_pb2.CountPoliciesRequest(tenant_ids=ids), timeout=_SECONDS
                ),
            ),
            _answer(
                "telemetry",
                self._telemetry.CountEvents(
                    telemetry_pb2.CountEventsRequest(tenant_ids=ids), timeout=_SECONDS
                ),
            ),
        )
        return Objects(
            tenants=len(ids),
            users=users,
            event_credentials=credentials,
            devices=devices.devices,
            enrollment_tokens=devices.tokens,
            policies=policies.policies,
            events=events.events,
        )

    async def active_tokens(self, tenant_id: UUID, code: OldCode) -> int:
        """The enrollment tokens that were handed out with a code and still admit devices.

        Raises:
            DomainError: UNAVAILABLE when enrollment cannot be asked.
        """
        answer = await _answer(
            "enrollment",
            self._enrollment.CountEnrollment(
                enrollment_pb2.CountEnrollmentRequest(
                    tenant_ids=[str(tenant_id)],
                    made_from=timestamp(code.since),
                    made_before=timestamp(code.replaced_at),
                ),
                timeout=_SECONDS,
            ),
        )
        found: int = answer.active_tokens
        return found


async def _answer(context: str, question: Awaitable[Any]) -> Any:
    try:
        return await question
    except (grpc.aio.AioRpcError, DomainError) as away:
        raise unavailable(f"{context} is not available; try again") from away
