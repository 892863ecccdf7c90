"""Signing keys over gRPC, alike in every service that has some."""

from __future__ import annotations

from evergreen.v1 import identity_pb2 as pb
from servicekit.call import Call
from servicekit.ids import given_id
from servicekit.keys.ring import RingKey, State
from servicekit.keys.service import SigningKeys
from servicekit.rpc.values import timestamp


def list_keys(keys: SigningKeys) -> pb.ListSigningKeysResponse:
    """Every key with its state, oldest first."""
    found = keys.ring.states().items()
    return pb.ListSigningKeysResponse(keys=[_message(key, state) for key, state in found])


async def rotate_key(keys: SigningKeys, call: Call, purpose: str, request_id: str) -> pb.SigningKey:
    """Makes the next key of a purpose.

    Raises:
        DomainError: as `SigningKeys.rotate`.
    """
    return _message(*await keys.rotate(call, purpose, given_id(request_id)))


def _message(key: RingKey, state: State) -> pb.SigningKey:
    return pb.SigningKey(
        key_id=key.public.id,
        purpose=key.purpose,
        tenant_id=str(key.tenant_id) if key.tenant_id else "",
        algorithm=key.algorithm,
        state=state.value,
        created_at=timestamp(key.created_at),
        signs_from=timestamp(key.signs_from),
        verifies_until=timestamp(key.verifies_until) if key.verifies_until else None,
    )
