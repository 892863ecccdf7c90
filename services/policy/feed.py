"""What the other services ask policy for."""

from __future__ import annotations

import json
from functools import lru_cache
from uuid import UUID

from evergreen.v1 import policy_pb2, policy_pb2_grpc
from servicekit.data.postgres import Database, Scope
from servicekit.feeds.changes import Changes
from servicekit.feeds.feed import Cursor, FeedPage
from servicekit.observability import logs
from servicekit.rpc.server import Context
from servicekit.rpc.values import timestamp
from services.policy.authoring import store as authoring_store
from services.policy.authoring.agent_rules import fails
from services.policy.authoring.document import parse_document
from services.policy.delivery import store as delivery_store
from services.policy.delivery.api import to_statement
from services.policy.delivery.service import Delivery
from services.policy.delivery.store import Applied
from services.policy.gate import store as gate_store
from services.policy.gate.api import to_gate
from services.policy.gate.domain import Gate

log = logs.get(__name__)


@lru_cache(maxsize=16)
def _fails(body: bytes) -> bool:
    """Whether the agent ends with an error when it applies this; many devices enroll at a time."""
    return fails(parse_document(json.loads(body)))


class PolicyInternalApi(policy_pb2_grpc.PolicyInternalServiceServicer):
    """evergreen.v1.PolicyInternalService."""

    def __init__(self, delivery: Delivery, database: Database, changes: Changes) -> None:
        self._delivery = delivery
        self._database = database
        self._changes = changes

    async def GetDevicePolicy(
        self, request: policy_pb2.GetDevicePolicyRequest, context: Context
    ) -> policy_pb2.GetDevicePolicyResponse:
        """Answers what a device that enrolls gets."""
        bundle = await self._delivery.in_force(UUID(request.tenant_id))
        if bundle is not None and request.first and _fails(bundle.document.body):
            log.warning(
                "first policy withheld: devices cannot apply it",
                tenant=request.tenant_id,
                version=bundle.version,
            )
            bundle = None
        return policy_pb2.GetDevicePolicyResponse(
            envelope=bundle.envelope() if bundle else b"",
            statement=to_statement(bundle) if bundle else None,
            has_called=bool(request.device_id and request.token_version)
            and await self._delivery.has_called(request.device_id, request.token_version),
        )

    async def CountPolicies(
        self, request: policy_pb2.CountPoliciesRequest, context: Context
    ) -> policy_pb2.CountPoliciesResponse:
        """Counts the policies of tenants."""
        ids = tuple(map(UUID, request.tenant_ids))
        async with self._database.transaction(Scope(ids)) as connection:
            found = await authoring_store.count(connection, ids)
        return policy_pb2.CountPoliciesResponse(policies=found)

    async def ListAppliedVersions(
        self, request: policy_pb2.ListAppliedVersionsRequest, context: Context
    ) -> policy_pb2.ListAppliedVersionsResponse:
        """Answers a page of the feed of applied versions."""

        async def read() -> tuple[FeedPage, list[Applied]]:
            async with self._database.system_transaction(
                "the feed tells of all tenants"
            ) as connection:
                return await delivery_store.applied_since(
                    connection, Cursor.parse(request.cursor), request.limit
                )

        page, applied = await self._changes.answer(
            read, request.wait_seconds, has_news=lambda found: bool(found[1])
        )
        return policy_pb2.ListAppliedVersionsResponse(
            versions=[
                policy_pb2.AppliedVersion(
                    device_id=str(entry.device_id),
                    tenant_id=str(entry.tenant_id),
                    version=str(entry.version) if entry.version else "",
                    reported_at=timestamp(entry.reported_at),
                    token_version=entry.token_version,
                )
                for entry in applied
            ],
            next_cursor=str(page.cursor),
            more=page.more,
        )

    async def ListAttestationGateChanges(
        self, request: policy_pb2.ListAttestationGateChangesRequest, context: Context
    ) -> policy_pb2.ListAttestationGateChangesResponse:
        """Answers a page of the feed of gates."""

        async def read() -> tuple[FeedPage, list[Gate]]:
            async with self._database.system_transaction(
                "the feed tells of all tenants"
            ) as connection:
                return await gate_store.gates_since(
                    connection, Cursor.parse(request.cursor), request.limit
                )

        page, gates = await self._changes.answer(
            read, request.wait_seconds, has_news=lambda found: bool(found[1])
        )
        return policy_pb2.ListAttestationGateChangesResponse(
            gates=map(to_gate, gates), next_cursor=str(page.cursor), more=page.more
        )
