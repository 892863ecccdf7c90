"""The public keys over gRPC."""

from __future__ import annotations

from google.api.httpbody_pb2 import HttpBody

from evergreen.v1 import identity_pb2, policy_pb2, policy_pb2_grpc
from servicekit.rpc.server import Context
from services.policy.keys.service import KeyRing


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
