"""What the other services ask policy for."""

from __future__ import annotations

import json
from functools import lru_cache
from uuid import UUID

from evergreen.v1 import person_pb2, policy_pb2, policy_pb2_grpc
from servicekit.data.postgres import Database, Scope
from servicekit.errors import failed_precondition
from servicekit.feeds.changes import Changes
from servicekit.feeds.feed import Cursor, FeedPage
from servicekit.ids import given_id
from servicekit.observability import logs
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import asked_page
from servicekit.rpc.persons import person_records
from servicekit.rpc.server import Context
from servicekit.rpc.values import optional_timestamp, timestamp
from services.policy.authoring import store as authoring_store
from services.policy.authoring.agent_rules import fails
from services.policy.authoring.document import parse_document
from services.policy.delivery import store as delivery_store
from services.policy.delivery.api import to_statement
from services.policy.delivery.service import Delivery
from services.policy.delivery.store import Applied
from services.policy.facts import person_store
from services.policy.facts import store as fact_store
from services.policy.facts.store import PublishedVersion
from services.policy.gate import store as gate_store
from services.policy.gate.api import to_gate
from services.policy.gate.domain import Gate
from services.policy.keys.service import KeyRing
from services.policy.stamps import store as stamps_store
from services.policy.targets import store as targets_store
from services.policy.targets.service import Groups
from services.policy.vault import Vault

log = logs.get(__name__)


@lru_cache(maxsize=16)
def _fails(body: bytes) -> bool:
    """Whether the agent ends with an error when it applies this; many devices enroll at a time."""
    return fails(parse_document(json.loads(body)))


class PolicyInternalApi(policy_pb2_grpc.PolicyInternalServiceServicer):
    """evergreen.v1.PolicyInternalService."""

    def __init__(
        self,
        delivery: Delivery,
        groups: Groups,
        keys: KeyRing,
        tenants: TenantDirectory,
        database: Database,
        vault: Vault,
        changes: Changes,
    ) -> None:
        self._keys = keys
        self._tenants = tenants
        self._person_tables = person_store.tables(vault)
        self._delivery = delivery
        self._groups = groups
        self._database = database
        self._changes = changes

    async def GetDevicePolicy(
        self, request: policy_pb2.GetDevicePolicyRequest, context: Context
    ) -> policy_pb2.GetDevicePolicyResponse:
        """Answers what a device that enrolls gets."""
        key_id = request.policy_key_id or (self._keys.first_id if request.first else "")
        if key_id and await self._keys.admitting(key_id) is None:
            # A device that pins a key with which nothing is signed would end at once.
            raise failed_precondition(
                "POLICY_KEY_RETIRED", f"the policy key {key_id} is retired, or not known"
            )
        bundle = await self._delivery.in_force(
            UUID(request.tenant_id),
            given_id(request.device_id),
            [*map(UUID, request.membership.group_ids)] if request.HasField("membership") else None,
            key_id,
        )
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

    async def GetTokenPolicyKey(
        self, request: policy_pb2.GetTokenPolicyKeyRequest, context: Context
    ) -> policy_pb2.TokenPolicyKey:
        """Answers the key that a new enrollment token is to carry, or that its devices have."""
        if request.enrolling:
            key = await self._keys.admitting(request.policy_key_id)
        else:
            tenant_id = UUID(request.tenant_id)
            if self._tenants.known(tenant_id) is None:
                # It may have been made a moment ago.
                await self._tenants.follower.try_refresh()
            line = [node.id for node in self._tenants.whole_line(tenant_id)]
            key = await self._keys.given(line, request.policy_key_id)
        if key is None:
            return policy_pb2.TokenPolicyKey()
        return policy_pb2.TokenPolicyKey(
            policy_key_id=key.public.id, public_key_pem=key.public.pem()
        )

    async def CountPolicies(
        self, request: policy_pb2.CountPoliciesRequest, context: Context
    ) -> policy_pb2.CountPoliciesResponse:
        """Counts the policies of tenants."""
        ids = tuple(map(UUID, request.tenant_ids))
        async with self._database.transaction(Scope(ids)) as connection:
            found = await authoring_store.count(connection, ids)
        return policy_pb2.CountPoliciesResponse(policies=found)

    async def ListGroupPolicies(
        self, request: policy_pb2.ListGroupPoliciesRequest, context: Context
    ) -> policy_pb2.ListGroupPoliciesResponse:
        """Answers which policies are in force for a group."""
        found = await self._groups.policies_of(UUID(request.tenant_id), UUID(request.group_id))
        return policy_pb2.ListGroupPoliciesResponse(
            policies=[policy_pb2.GroupPolicy(id=str(id_), name=name) for id_, name in found]
        )

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

    async def ListRestrictedDeviceChanges(
        self, request: policy_pb2.ListRestrictedDeviceChangesRequest, context: Context
    ) -> policy_pb2.ListRestrictedDeviceChangesResponse:
        """Answers a page of the feed of devices with the other policy of a gate."""

        async def read() -> tuple[FeedPage, list[tuple[UUID, UUID, UUID | None]]]:
            async with self._database.system_transaction(
                "the feed tells of all tenants"
            ) as connection:
                return await targets_store.restricted_since(
                    connection, Cursor.parse(request.cursor), request.limit
                )

        page, found = await self._changes.answer(
            read, request.wait_seconds, has_news=lambda answer: bool(answer[1])
        )
        return policy_pb2.ListRestrictedDeviceChangesResponse(
            devices=[
                policy_pb2.RestrictedDevice(
                    device_id=str(device_id),
                    tenant_id=str(tenant_id),
                    restricted=gate_id is not None,
                )
                for device_id, tenant_id, gate_id in found
            ],
            next_cursor=str(page.cursor),
            more=page.more,
        )

    async def ListPublishedVersions(
        self, request: policy_pb2.ListPublishedVersionsRequest, context: Context
    ) -> policy_pb2.ListPublishedVersionsResponse:
        """Answers a page of the versions of an organisation."""
        tenant_id = UUID(request.tenant_id)
        after, size = asked_page(request, int)
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            page = await fact_store.versions(connection, tenant_id, after, size)
        return policy_pb2.ListPublishedVersionsResponse(
            versions=map(_to_published, page.items), next_page_token=page.token
        )

    async def ListDeviceVersions(
        self, request: policy_pb2.ListDeviceVersionsRequest, context: Context
    ) -> policy_pb2.ListDeviceVersionsResponse:
        """Answers what devices of an organisation applied, and what is in force."""
        tenant_id = UUID(request.tenant_id)
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            standing = (await stamps_store.standings(connection, [tenant_id]))[tenant_id]
            required = (
                await fact_store.required(connection, tenant_id, standing.want.versions)
                if standing.want
                else None
            )
            found = await fact_store.devices(
                connection, tenant_id, [UUID(one) for one in request.device_ids]
            )
            targeted: dict[tuple[UUID, ...], tuple[int, ...]] = {}
            for targets in {one.targets for one in found if one.targets}:
                profile = await stamps_store.profile(connection, tenant_id, targets, standing.last)
                want = profile.want if profile else None
                targeted[targets] = want.versions if want else ()
        return policy_pb2.ListDeviceVersionsResponse(
            required=policy_pb2.RequiredVersion(
                versions=map(str, required.versions),
                since=timestamp(required.since),
                policy_id=str(required.policy_id) if required.policy_id else "",
                policy_name=required.policy_name,
            )
            if required
            else None,
            devices=[
                policy_pb2.DeviceVersion(
                    device_id=str(one.device_id),
                    version=str(one.version) if one.version else "",
                    reported_at=optional_timestamp(one.reported_at),
                    first_above=optional_timestamp(one.first_above),
                    targeted=bool(one.targets),
                    required=map(str, targeted.get(one.targets, ())),
                )
                for one in found
            ],
        )

    async def ListPersonRecords(
        self, request: person_pb2.ListPersonRecordsRequest, context: Context
    ) -> person_pb2.ListPersonRecordsResponse:
        """Answers a page of what is held about a person."""
        return await person_records(self._database, "policy", self._person_tables, request)


def _to_published(found: PublishedVersion) -> policy_pb2.PublishedVersion:
    return policy_pb2.PublishedVersion(
        version=str(found.version),
        policy_id=str(found.policy_id),
        policy_name=found.policy_name,
        published_at=timestamp(found.published_at),
        published_by=found.published_by,
        rollback_of=str(found.rollback_of) if found.rollback_of else "",
        document_sha256=found.document_sha256,
        key_id=found.key_id,
    )
