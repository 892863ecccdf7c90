"""Runs the enrollment service: `python -m services.enrollment`."""

from __future__ import annotations

from functools import partial

from evergreen.v1 import enrollment_pb2_grpc as rpc
from evergreen.v1 import policy_pb2_grpc
from servicekit.app import Kit, Parts, run
from servicekit.feeds.changes import Changes
from servicekit.rpc.device_service import device_methods
from services.enrollment.admission.api import DeviceApi
from services.enrollment.admission.http import routes
from services.enrollment.admission.service import Admission
from services.enrollment.feed import InternalApi
from services.enrollment.first_start import FirstStart
from services.enrollment.registry.api import DeviceRegistryApi
from services.enrollment.registry.archive import ArchivedDevices
from services.enrollment.registry.calling_devices import CallingDevices
from services.enrollment.registry.peers import Peers
from services.enrollment.registry.service import Registry
from services.enrollment.registry.store import CHANGING
from services.enrollment.settings import EnrollmentSettings
from services.enrollment.tokens.api import EnrollmentTokenApi
from services.enrollment.tokens.service import Tokens


async def build(kit: Kit) -> Parts:
    """Wires the service."""
    settings = kit.settings
    assert isinstance(settings, EnrollmentSettings)
    peers = Peers(kit.channel("identity"), kit.channel("policy"))
    tokens = Tokens(kit.database, kit.outbox, kit.tenants, kit.clock)
    registry = Registry(kit.database, kit.outbox, kit.tenants, peers, kit.clock)
    admission = Admission(kit.database, kit.outbox, kit.tenants, peers, kit.clock)
    prepared = CallingDevices(
        kit.database,
        kit.outbox,
        kit.tenants,
        policy_pb2_grpc.PolicyInternalServiceStub(kit.channel("policy")),
        kit.clock,
        kit.wait_seconds("policy"),
    )
    first_start = FirstStart(
        settings.bootstrap_enrollment_secret_file,
        kit.database,
        kit.outbox,
        kit.tenants,
        kit.clock,
    )
    changes = Changes(kit.database.system_lane("the feed tells of all tenants"), CHANGING)
    return Parts(
        public=[
            partial(
                rpc.add_EnrollmentTokenServiceServicer_to_server,
                EnrollmentTokenApi(tokens, kit.clock),
            ),
            partial(rpc.add_DeviceRegistryServiceServicer_to_server, DeviceRegistryApi(registry)),
            device_methods(EnrollDevice=DeviceApi(admission).EnrollDevice),
        ],
        internal=[
            partial(
                rpc.add_EnrollmentInternalServiceServicer_to_server,
                InternalApi(registry, changes, kit.database, kit.clock),
            )
        ],
        services=[
            "evergreen.v1.EnrollmentTokenService",
            "evergreen.v1.DeviceRegistryService",
            "evergreen.v1.DeviceService",
        ],
        changes=changes,
        closing=ArchivedDevices(kit.outbox, kit.clock).work,
        routes=routes(admission),
        batchers=[admission.batcher],
        tasks=[first_start.run, prepared.run],
        ready=lambda: first_start.done,
    )


def main() -> None:
    """Runs until it is told to stop."""
    run("enrollment", EnrollmentSettings(), build)


if __name__ == "__main__":
    main()
