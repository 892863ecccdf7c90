"""The gRPC side: translates between protos and the use cases, and nothing else."""

from __future__ import annotations

import json
from functools import lru_cache
from uuid import UUID

from google.api.httpbody_pb2 import HttpBody
from google.protobuf import json_format

from evergreen.v1 import (
    device_pb2,
    identity_pb2,
    policy_pb2,
    policy_pb2_grpc,
)
from servicekit.changes import Changes
from servicekit.feed import Cursor, Page
from servicekit.grpc_server import Context
from servicekit.pagination import decode_token, encode_token, page_size
from servicekit.postgres import Database
from servicekit.values import from_value, timestamp, to_value
from services.policy import delivery_store
from services.policy.delivery import Delivery
from services.policy.delivery_store import Applied
from services.policy.domain import MAX_VERSION, Bundle, Policy, Published
from services.policy.keys import KeyRing
from services.policy.service import Change, PolicyService
from services.policy.signing import PAYLOAD_TYPE


class PolicyApi(policy_pb2_grpc.PolicyServiceServicer):
    """evergreen.v1.PolicyService."""

    def __init__(self, service: PolicyService) -> None:
        self._service = service

    async def ListPolicies(
        self, request: policy_pb2.ListPoliciesRequest, context: Context
    ) -> policy_pb2.ListPoliciesResponse:
        """Lists policies."""
        size = page_size(request.page_size)
        after = decode_token(request.page_token, _policy_position)
        found = await self._service.list_policies(
            context.call.caller, request.org_id, after, size + 1
        )
        return policy_pb2.ListPoliciesResponse(
            policies=[to_policy(policy, with_bundle=False) for policy in found[:size]],
            next_page_token=encode_token(str(found[size - 1].id)) if len(found) > size else "",
        )

    async def GetPolicy(
        self, request: policy_pb2.GetPolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        """Answers one policy."""
        return to_policy(await self._service.get(context.call.caller, UUID(request.id)))

    async def CreatePolicy(
        self, request: policy_pb2.CreatePolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        """Creates a policy."""
        policy = await self._service.create(
            context.call.caller,
            org_id=request.org_id,
            name=request.name,
            description=request.description if request.HasField("description") else None,
            bundle=from_value(request.bundle),
        )
        return to_policy(policy)

    async def UpdatePolicy(
        self, request: policy_pb2.UpdatePolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        """Changes a policy."""
        has_bundle = request.HasField("bundle")
        change = Change(
            name=request.name if request.HasField("name") else None,
            description=request.description if request.HasField("description") else None,
            org_id=request.org_id if request.HasField("org_id") else None,
            bundle=from_value(request.bundle) if has_bundle else None,
            has_bundle=has_bundle,
            etag=request.etag if request.HasField("etag") else None,
        )
        return to_policy(await self._service.update(context.call.caller, UUID(request.id), change))

    async def DeletePolicy(
        self, request: policy_pb2.DeletePolicyRequest, context: Context
    ) -> policy_pb2.DeletePolicyResponse:
        """Deletes a policy."""
        await self._service.delete(context.call.caller, UUID(request.id))
        return policy_pb2.DeletePolicyResponse()

    async def PublishPolicy(
        self, request: policy_pb2.PublishPolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        """Signs a policy and puts it in force."""
        return to_policy(await self._service.publish(context.call.caller, UUID(request.id)))

    async def RollbackPolicy(
        self, request: policy_pb2.RollbackPolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        """Publishes an earlier version again."""
        return to_policy(
            await self._service.rollback(context.call.caller, UUID(request.id), request.version)
        )

    async def ListPolicyVersions(
        self, request: policy_pb2.ListPolicyVersionsRequest, context: Context
    ) -> policy_pb2.ListPolicyVersionsResponse:
        """Lists what was published of a policy."""
        size = page_size(request.page_size)
        before = decode_token(request.page_token, _version_position)
        found = await self._service.list_versions(
            context.call.caller, UUID(request.policy_id), before, size + 1
        )
        return policy_pb2.ListPolicyVersionsResponse(
            versions=[_to_version(version) for version in found[:size]],
            next_page_token=encode_token(str(found[size - 1].version)) if len(found) > size else "",
        )

    async def SyncDevice(
        self, request: policy_pb2.SyncDeviceRequest, context: Context
    ) -> policy_pb2.SyncDeviceResponse:
        """Has a device apply its policy again."""
        asked = await self._service.sync_device(context.call.caller, UUID(request.id))
        return policy_pb2.SyncDeviceResponse(requested_at=timestamp(asked))


class PolicyKeyApi(policy_pb2_grpc.PolicyKeyServiceServicer):
    """evergreen.v1.PolicyKeyService."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    async def ListPolicyKeys(
        self, request: policy_pb2.ListPolicyKeysRequest, context: Context
    ) -> identity_pb2.Jwks:
        """Answers the keys as a JSON Web Key Set."""
        return identity_pb2.Jwks(keys=[identity_pb2.Jwk(**key.jwk()) for key in self._keys.public])

    async def GetPolicyKeysPem(
        self, request: policy_pb2.GetPolicyKeysPemRequest, context: Context
    ) -> HttpBody:
        """Answers the keys in PEM."""
        return HttpBody(content_type="application/x-pem-file", data=self._keys.pem().encode())


class DeviceApi:
    """The one method of evergreen.v1.DeviceService that this context serves."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery

    async def PullPolicy(
        self, request: device_pb2.PullPolicyRequest, context: Context
    ) -> device_pb2.PolicyEnvelope:
        """Answers the policy in force for the calling device."""
        delivered = await self._delivery.pull(context.call.caller, request.current_version)
        if delivered is None:
            return device_pb2.PolicyEnvelope(not_modified=True)
        envelope = _to_envelope(delivered.bundle)
        if delivered.device_token is None:
            return envelope
        with_token = device_pb2.PolicyEnvelope(device_token=delivered.device_token)
        with_token.MergeFrom(envelope)
        return with_token


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
        bundle = self._delivery.in_force(request.tenant_id)
        return policy_pb2.GetDevicePolicyResponse(
            envelope=bundle.envelope if bundle else b"",
            statement=_to_envelope(bundle).statement if bundle else None,
            has_called=bool(request.device_id and request.token_version)
            and await self._delivery.has_called(request.device_id, request.token_version),
        )

    async def ListAppliedVersions(
        self, request: policy_pb2.ListAppliedVersionsRequest, context: Context
    ) -> policy_pb2.ListAppliedVersionsResponse:
        """Answers a page of the feed of applied versions."""

        async def read() -> tuple[Page, list[Applied]]:
            async with self._database.transaction() as connection:
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


def to_policy(policy: Policy, *, with_bundle: bool = True) -> policy_pb2.Policy:
    """A policy as the API answers it."""
    message = policy_pb2.Policy(
        id=str(policy.id),
        org_id=str(policy.tenant_id),
        name=policy.name,
        version=str(policy.published_version or 0),
        created_at=timestamp(policy.created_at),
        updated_at=timestamp(policy.updated_at),
        signed=policy.published_version is not None,
        description=policy.description,
        in_force=policy.in_force,
        has_unpublished_changes=policy.changed_since_publish,
        etag=policy.etag,
    )
    if with_bundle:
        to_value(json.loads(policy.authored), message.bundle)
    return message


def _to_version(version: Published) -> policy_pb2.PolicyVersion:
    return policy_pb2.PolicyVersion(
        version=str(version.version),
        published_at=timestamp(version.published_at),
        published_by=version.published_by,
        rollback_of=str(version.rollback_of or ""),
        key_id=version.key_id,
        document_sha256=version.document_sha256,
    )


@lru_cache(maxsize=1024)
def _to_envelope(bundle: Bundle) -> device_pb2.PolicyEnvelope:
    message = device_pb2.PolicyEnvelope(
        version=str(bundle.version),
        signature=bundle.signature,
        statement=device_pb2.PolicyStatement(
            payload_type=PAYLOAD_TYPE,
            payload=bundle.statement.payload,
            signature=bundle.statement.signature,
            key_id=bundle.statement.key_id,
        ),
    )
    json_format.ParseDict(json.loads(bundle.document), message.policy)
    return message


def _policy_position(text: object) -> UUID:
    return UUID(str(text))


def _version_position(text: object) -> int:
    version = int(str(text))
    if not 0 < version <= MAX_VERSION:
        raise ValueError(text)
    return version
