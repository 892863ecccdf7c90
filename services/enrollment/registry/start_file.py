"""The file with which a prepared device starts."""

from __future__ import annotations

import json

from services.enrollment.registry.domain import Device
from services.enrollment.registry.peers import Issued


def start_file(device: Device, issued: Issued) -> bytes:
    """What an agent starts from, as JSON; the policy's bytes are what policy signed."""
    return b'{"device_id":%b,"device_token":%b,"policy":%b}' % (
        json.dumps(str(device.id)).encode(),
        json.dumps(issued.token).encode(),
        issued.envelope,
    )
