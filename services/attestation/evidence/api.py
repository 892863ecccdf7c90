"""Evidence over gRPC."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

from evergreen.v1 import device_pb2
from servicekit.rpc.chain import require_own_device
from servicekit.rpc.server import Context
from servicekit.rpc.values import timestamp
from services.attestation.evidence.examiners import LARGE_BODY
from services.attestation.evidence.service import Attestations
from services.attestation.evidence.wire import from_message


class DeviceApi:
    """The part of evergreen.v1.DeviceService that is attestation's."""

    def __init__(self, attestations: Attestations) -> None:
        self._attestations = attestations

    async def attest_boot(
        self, request: device_pb2.AttestBootRequest, context: Context
    ) -> device_pb2.AttestBootResponse:
        """Judges the calling device's evidence."""
        call = context.call
        require_own_device(call, request.device_id)
        size = request.ByteSize()
        room = self._attestations.room_for_body(call.caller, size)
        with room if size >= LARGE_BODY else nullcontext():
            answer = await self._attestations.attest(call, partial(from_message, request.evidence))
        return device_pb2.AttestBootResponse(
            verdict=answer.verdict,
            reasons=answer.reasons,
            attested_at=timestamp(answer.attested_at),
        )
