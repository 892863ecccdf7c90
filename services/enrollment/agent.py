"""What agents send and get, in both forms of the call."""

from __future__ import annotations

import json

from evergreen.v1 import device_pb2
from services.enrollment.domain.decision import Application
from services.enrollment.domain.keys import clean_serial, parse_pre_shared_key
from services.enrollment.domain.types import Device, Hardware
from services.enrollment.service.peers import Issued


def application(request: device_pb2.EnrollDeviceRequest) -> Application:
    """What a device asks.

    Raises:
        DomainError: INVALID_ARGUMENT or PERMISSION_DENIED when it cannot be asked like this.
    """
    return Application(
        parse_pre_shared_key(request.pre_shared_key),
        clean_serial(request.serial),
        Hardware(
            request.model,
            request.cpu_model,
            request.cpu_count,
            request.total_ram_bytes,
            request.has_tpm,
        ),
    )


def start_file(device: Device, issued: Issued) -> bytes:
    """What an agent starts from, as JSON; the policy's bytes are what policy signed."""
    return b'{"device_id":%b,"device_token":%b,"policy":%b}' % (
        json.dumps(str(device.id)).encode(),
        json.dumps(issued.token).encode(),
        issued.envelope,
    )
