"""EnrollDevice over gRPC."""

from __future__ import annotations

from google.protobuf import json_format

from evergreen.v1 import device_pb2
from servicekit.rpc.server import Context
from services.enrollment.admission.agent import application
from services.enrollment.admission.service import Admission


class DeviceApi:
    """The one method of evergreen.v1.DeviceService that this context serves."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    async def EnrollDevice(
        self, request: device_pb2.EnrollDeviceRequest, context: Context
    ) -> device_pb2.EnrollDeviceResponse:
        """Lets a device in."""
        admitted = await self._admission.enroll(context.call, application(context.call, request))
        policy = json_format.Parse(
            admitted.issued.envelope,
            device_pb2.PolicyEnvelope(statement=admitted.issued.statement),
            ignore_unknown_fields=True,
        )
        return device_pb2.EnrollDeviceResponse(
            device_id=str(admitted.device.id),
            device_token=admitted.issued.token,
            policy=policy,
        )
