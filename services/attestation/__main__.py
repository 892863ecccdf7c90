"""Runs the attestation service: `python -m services.attestation`."""

from __future__ import annotations

from functools import partial

from evergreen.v1 import attestation_pb2_grpc, device_pb2_grpc
from servicekit.app import Kit, Parts, run
from services.attestation.api import AttestationApi, DeviceApi
from services.attestation.http import routes
from services.attestation.settings import AttestationSettings


async def build(kit: Kit) -> Parts:
    """Wires the service."""
    # The methods that these classes do not have are concrete in what was generated; only its
    # type stubs call them abstract.
    attestation = AttestationApi()  # type: ignore[abstract]
    device = DeviceApi()  # type: ignore[abstract]
    return Parts(
        public=[
            partial(attestation_pb2_grpc.add_AttestationServiceServicer_to_server, attestation),
            partial(device_pb2_grpc.add_DeviceServiceServicer_to_server, device),
        ],
        services=["evergreen.v1.AttestationService"],
        routes=routes(),
        devices=kit.device_access(),
    )


def main() -> None:
    """Runs until it is told to stop."""
    run("attestation", AttestationSettings(), build)


if __name__ == "__main__":
    main()
