"""What enrollment asks policy of groups."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import grpc

from evergreen.v1 import policy_pb2, policy_pb2_grpc
from servicekit.errors import unavailable

_SECONDS: Final = 5.0


class GroupPolicies:
    """The policies that are in force for groups."""

    def __init__(self, policy: grpc.aio.Channel) -> None:
        self._policy = policy_pb2_grpc.PolicyInternalServiceStub(policy)

    async def names(self, tenant_id: UUID, group_id: UUID) -> list[str]:
        """The names of the policies that are in force for a group.

        Raises:
            DomainError: UNAVAILABLE when policy does not answer.
        """
        request = policy_pb2.ListGroupPoliciesRequest(
            tenant_id=str(tenant_id), group_id=str(group_id)
        )
        try:
            found = await self._policy.ListGroupPolicies(request, timeout=_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                # The release before knows no policies of groups.
                return []
            raise unavailable("policy is not available; try again") from error
        return [policy.name for policy in found.policies]
