"""Keys over gRPC: the public ones, and as their Owners manage them."""

from __future__ import annotations

from uuid import UUID

from google.api.httpbody_pb2 import HttpBody

from evergreen.v1 import identity_pb2, policy_pb2, policy_pb2_grpc
from servicekit.errors import not_found
from servicekit.ids import given_id
from servicekit.keys.log import Envelope
from servicekit.rpc.pagination import asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import optional_timestamp, timestamp
from servicekit.security.signing import PublicKey
from services.policy.keys.custody import Custody, Shown
from services.policy.keys.service import KeyRing


def to_envelope(envelope: Envelope) -> policy_pb2.SignedEnvelope:
    """A signed envelope."""
    return policy_pb2.SignedEnvelope(
        payload_type=envelope.payload_type,
        payload=envelope.payload,
        signatures=[
            policy_pb2.EnvelopeSignature(keyid=key_id, sig=made)
            for key_id, made in envelope.signatures
        ],
    )


def _key(shown: Shown) -> policy_pb2.PolicyKey:
    key = shown.key
    return policy_pb2.PolicyKey(
        id=str(key.id),
        key_id=key.public.id,
        org_id=str(key.tenant_id or ""),
        state=key.state.value,
        public_key_pem=key.public.pem(),
        created_at=timestamp(key.created_at),
        activated_at=optional_timestamp(key.activated_at),
        retired_at=optional_timestamp(key.retired_at),
        compromised_at=optional_timestamp(key.compromised_at),
        certified_by=key.certified_by,
        devices=shown.devices,
        devices_called=shown.called,
    )


def _root(key: PublicKey | None) -> policy_pb2.PolicyRootKey:
    if key is None:
        return policy_pb2.PolicyRootKey()
    return policy_pb2.PolicyRootKey(key_id=key.id, public_key_pem=key.pem())


class PolicyKeyApi(policy_pb2_grpc.PolicyKeyServiceServicer):
    """evergreen.v1.PolicyKeyService."""

    def __init__(self, keys: KeyRing, custody: Custody) -> None:
        self._keys = keys
        self._custody = custody

    async def ListPolicyKeys(
        self, request: policy_pb2.ListPolicyKeysRequest, context: Context
    ) -> identity_pb2.Jwks:
        """Answers the keys as a JSON Web Key Set."""
        return identity_pb2.Jwks(keys=[identity_pb2.Jwk(**key.jwk()) for key in self._keys.public])

    async def GetPolicyKeysPem(
        self, request: policy_pb2.GetPolicyKeysPemRequest, context: Context
    ) -> HttpBody:
        """Answers the keys in PEM."""
        pem = self._keys.pem()
        if request.key_id:
            key = await self._keys.found(request.key_id)
            if key is None:
                raise not_found("policy key", request.key_id)
            pem = key.public.pem()
        return HttpBody(content_type="application/x-pem-file", data=pem.encode())

    async def ListPolicyKeyLog(
        self, request: policy_pb2.ListPolicyKeyLogRequest, context: Context
    ) -> policy_pb2.ListPolicyKeyLogResponse:
        """Answers a page of the published log."""
        after, size = asked_page(request, int)
        page = await self._custody.log(after or 0, size)
        return policy_pb2.ListPolicyKeyLogResponse(
            entries=map(to_envelope, page.items), next_page_token=page.token
        )

    async def ListManagedPolicyKeys(
        self, request: policy_pb2.ListManagedPolicyKeysRequest, context: Context
    ) -> policy_pb2.ListManagedPolicyKeysResponse:
        """Lists the keys that count for the caller's devices."""
        after, size = asked_page(request, UUID)
        page = await self._custody.list(context.call, given_id(request.org_id), after, size)
        return policy_pb2.ListManagedPolicyKeysResponse(
            policy_keys=map(_key, page.items), next_page_token=page.token
        )

    async def ListPolicyKeyDevices(
        self, request: policy_pb2.ListPolicyKeyDevicesRequest, context: Context
    ) -> policy_pb2.ListPolicyKeyDevicesResponse:
        """Lists the devices that pin a key."""
        after, size = asked_page(request, UUID)
        page = await self._custody.devices(context.call, UUID(request.id), after, size)
        return policy_pb2.ListPolicyKeyDevicesResponse(
            devices=[
                policy_pb2.PinningDevice(
                    device_id=str(one.device_id),
                    org_id=str(one.tenant_id),
                    status=one.status,
                    reported_at=optional_timestamp(one.reported_at),
                )
                for one in page.items
            ],
            next_page_token=page.token,
        )

    async def CreatePolicyKey(
        self, request: policy_pb2.CreatePolicyKeyRequest, context: Context
    ) -> policy_pb2.PolicyKey:
        """Makes a key."""
        return _key(
            await self._custody.create(
                context.call,
                given_id(request.org_id),
                given_id(request.request_id),
                activate=request.activate,
            )
        )

    async def ActivatePolicyKey(
        self, request: policy_pb2.ActivatePolicyKeyRequest, context: Context
    ) -> policy_pb2.PolicyKey:
        """Lets new enrollment tokens carry a key."""
        return _key(await self._custody.activate(context.call, UUID(request.id)))

    async def RetirePolicyKey(
        self, request: policy_pb2.RetirePolicyKeyRequest, context: Context
    ) -> policy_pb2.PolicyKey:
        """Ends a key."""
        return _key(
            await self._custody.retire(context.call, UUID(request.id), request.lost_devices)
        )

    async def MarkPolicyKeyCompromised(
        self, request: policy_pb2.MarkPolicyKeyCompromisedRequest, context: Context
    ) -> policy_pb2.PolicyKey:
        """Takes note that a key is in wrong hands."""
        return _key(await self._custody.mark_compromised(context.call, UUID(request.id)))

    async def ExportPolicyKey(
        self, request: policy_pb2.ExportPolicyKeyRequest, context: Context
    ) -> policy_pb2.SignedEnvelope:
        """Answers what an offline root signs."""
        return to_envelope(await self._custody.request(context.call, UUID(request.id)))

    async def CertifyPolicyKey(
        self, request: policy_pb2.CertifyPolicyKeyRequest, context: Context
    ) -> policy_pb2.PolicyKey:
        """Takes a certificate."""
        return _key(
            await self._custody.certify(
                context.call, UUID(request.id), request.payload, request.signature
            )
        )

    async def GetPolicyRootKey(
        self, request: policy_pb2.GetPolicyRootKeyRequest, context: Context
    ) -> policy_pb2.PolicyRootKey:
        """Answers the offline root."""
        return _root(await self._custody.root())

    async def SetPolicyRootKey(
        self, request: policy_pb2.SetPolicyRootKeyRequest, context: Context
    ) -> policy_pb2.PolicyRootKey:
        """Takes an offline root."""
        return _root(
            await self._custody.set_root(context.call, request.public_key_pem, request.replaces)
        )
