"""Enrollment's device route, in the released agent's JSON."""

from __future__ import annotations

from evergreen.v1 import device_pb2
from servicekit.call import Call
from servicekit.http.server import Answer, Route, parse_message
from services.enrollment.admission.agent import application
from services.enrollment.admission.service import Admission
from services.enrollment.registry.start_file import start_file


def routes(admission: Admission) -> dict[str, Route]:
    """The route that devices enroll by."""

    async def enroll(call: Call, body: bytes) -> Answer:
        request = device_pb2.EnrollDeviceRequest()
        parse_message(body, request)
        admitted = await admission.enroll(call, application(call, request))
        return Answer(body=start_file(admitted.device, admitted.issued))

    return {"/api/v1/devices/enroll": Route("/evergreen.v1.DeviceService/EnrollDevice", enroll)}
