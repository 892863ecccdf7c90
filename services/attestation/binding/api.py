"""Bindings of TPMs over gRPC."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from evergreen.v1 import attestation_pb2 as pb
from evergreen.v1 import attestation_pb2_grpc
from servicekit.rpc.server import Context
from servicekit.rpc.values import timestamp
from services.attestation.binding.service import Asked, Bindings, prefix_of
from services.attestation.evidence.domain import REGISTERS

_BANK: Final = "sha256"


class BindingApi(attestation_pb2_grpc.AttestationServiceServicer):
    """The methods of evergreen.v1.AttestationService by which devices are bound to TPMs."""

    def __init__(self, bindings: Bindings) -> None:
        self._bindings = bindings

    async def CreateTpmEnrollment(
        self, request: pb.CreateTpmEnrollmentRequest, context: Context
    ) -> pb.TpmEnrollment:
        """Offers the calling device a credential for its TPM."""
        asked = Asked(
            ek_public=request.ek_public,
            ek_certificate=request.ek_certificate,
            ek_chain=list(request.ek_chain),
            ak_public=request.ak_public,
        )
        offer = await self._bindings.offer(context.call, asked)
        if offer.id is None or offer.credential is None:
            return pb.TpmEnrollment(reasons=offer.reasons)
        return pb.TpmEnrollment(
            id=str(offer.id),
            credential_blob=offer.credential.blob,
            encrypted_secret=offer.credential.encrypted_seed,
            expires_at=timestamp(offer.expires_at),
            reasons=offer.reasons,
        )

    async def ActivateTpmEnrollment(
        self, request: pb.ActivateTpmEnrollmentRequest, context: Context
    ) -> pb.TpmBinding:
        """Binds the calling device to its TPM."""
        done = await self._bindings.activate(context.call, UUID(request.id), request.proof)
        if done.bound is None:
            return pb.TpmBinding(reasons=[done.reason] if done.reason else [])
        return pb.TpmBinding(
            bound=True,
            ek_hash_prefix=prefix_of(done.bound.ek_sha256),
            bound_at=timestamp(done.bound.bound_at),
        )

    async def CreateChallenge(
        self, request: pb.CreateChallengeRequest, context: Context
    ) -> pb.Challenge:
        """Answers a nonce for the calling device's next evidence."""
        nonce, expires_at = await self._bindings.challenge(context.call)
        return pb.Challenge(
            nonce=nonce, expires_at=timestamp(expires_at), pcrs=range(REGISTERS), bank=_BANK
        )
