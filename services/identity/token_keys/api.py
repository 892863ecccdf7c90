"""The token keys over gRPC."""

from __future__ import annotations

from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc
from servicekit.keys.api import list_keys, rotate_key
from servicekit.keys.service import SigningKeys
from servicekit.rpc.server import Context


class TokenKeyApi(identity_pb2_grpc.TokenKeyServiceServicer):
    """evergreen.v1.TokenKeyService."""

    def __init__(self, keys: SigningKeys) -> None:
        self._keys = keys

    async def GetJwks(self, request: pb.GetJwksRequest, context: Context) -> pb.Jwks:
        """Answers the public keys."""
        return pb.Jwks(keys=[pb.Jwk(**key.jwk()) for key in self._keys.ring.verifying()])

    async def ListTokenKeys(
        self, request: pb.ListTokenKeysRequest, context: Context
    ) -> pb.ListSigningKeysResponse:
        """Lists the keys with their states."""
        return list_keys(self._keys)

    async def RotateTokenKey(
        self, request: pb.RotateTokenKeyRequest, context: Context
    ) -> pb.SigningKey:
        """Makes the next key of a purpose."""
        return await rotate_key(self._keys, context.call, request.purpose, request.request_id)
