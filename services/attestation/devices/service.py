"""What attestation keeps of the registry: every device, with its serial number and model."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from evergreen.v1 import enrollment_pb2
from servicekit.data.quarantine import place
from servicekit.peers.devices import Mirror
from services.attestation.devices import store
from services.attestation.devices.store import RegisteredDevice


def _registered(change: enrollment_pb2.DeviceChange) -> RegisteredDevice:
    return RegisteredDevice(
        device_id=UUID(change.device_id),
        tenant_id=UUID(change.tenant_id),
        status=change.status,
        serial=change.serial,
        model=change.model,
        deleted=change.deleted,
    )


DEVICES: Final = Mirror(
    place=place("attestation", "follow_devices"),
    make=_registered,
    device_of=lambda device: device.device_id,
    write=store.write_devices,
    read_position=store.read_cursor,
    write_position=store.write_cursor,
)
"""The devices of the registry; of deleted ones, nothing is left here."""
