"""Attestation's gRPC side. What the generated base classes answer is UNIMPLEMENTED."""

from __future__ import annotations

from evergreen.v1 import attestation_pb2_grpc, device_pb2, device_pb2_grpc
from servicekit.chain import require_own_device
from servicekit.errors import unimplemented
from servicekit.grpc_server import Context


class AttestationApi(attestation_pb2_grpc.AttestationServiceServicer):
    """evergreen.v1.AttestationService."""


class DeviceApi(device_pb2_grpc.DeviceServiceServicer):
    """The part of evergreen.v1.DeviceService that is attestation's."""

    async def AttestBoot(
        self, request: device_pb2.AttestBootRequest, context: Context
    ) -> device_pb2.AttestBootResponse:
        """Refuses evidence for another device; takes none yet."""
        require_own_device(context.call, request.device_id)
        raise unimplemented()
