"""What the released agent sends when it enrolls."""

from __future__ import annotations

from evergreen.v1 import device_pb2
from servicekit.call import Call
from services.enrollment.admission.domain import Application
from services.enrollment.registry.domain import Hardware
from services.enrollment.serials import names_device
from services.enrollment.tokens.keys import parse_pre_shared_key


def application(call: Call, request: device_pb2.EnrollDeviceRequest) -> Application:
    """What a device asks.

    Raises:
        DomainError: PERMISSION_DENIED when its key is none.
    """
    return Application(
        key=parse_pre_shared_key(request.pre_shared_key),
        serial=request.serial,
        hardware=Hardware(
            model=request.model,
            cpu_model=request.cpu_model,
            cpu_count=request.cpu_count,
            total_ram_bytes=request.total_ram_bytes,
            has_tpm=request.has_tpm,
        ),
        source=call.source_ip,
        is_named=names_device(request.serial),
    )
