"""Attestation's device route, in the released agent's JSON."""

from __future__ import annotations

from evergreen.v1 import device_pb2
from servicekit.call import Call
from servicekit.chain import require_own_device
from servicekit.errors import unimplemented
from servicekit.http_server import Answer, Route, parse_message


def routes() -> dict[str, Route]:
    """The route that devices attest by."""

    async def attest(call: Call, body: bytes) -> Answer:
        request = device_pb2.AttestBootRequest()
        parse_message(body, request)
        require_own_device(call, request.device_id)
        raise unimplemented()

    return {"/api/v1/devices/attest": Route("/evergreen.v1.DeviceService/AttestBoot", attest)}
