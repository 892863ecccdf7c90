"""Runs the enrollment service: `python -m services.enrollment`."""

from __future__ import annotations

from functools import partial

from contract.events.enrollment import EnrollmentCallsRefused
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
from services.enrollment.groups.api import DeviceGroupApi
from services.enrollment.groups.catch_up import CatchUp
from services.enrollment.groups.policies import GroupPolicies
from services.enrollment.groups.service import Groups
from services.enrollment.groups.sets import GroupSets
from services.enrollment.groups.store import CHANGING as CHANGING_GROUPS
from services.enrollment.registry.api import DeviceRegistryApi
from services.enrollment.registry.archive import ArchivedDevices
from services.enrollment.registry.bulk import Bulk
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
    tokens = Tokens(kit.database, kit.outbox, kit.tenants, peers, kit.clock)
    registry = Registry(kit.database, kit.outbox, kit.tenants, peers, kit.clock)
    bulk = Bulk(kit.database, kit.outbox, kit.tenants, kit.clock)
    catch_up = CatchUp(kit.database, kit.outbox)
    group_policies = GroupPolicies(kit.channel("policy"))
    groups = Groups(kit.database, kit.outbox, kit.tenants, catch_up, group_policies, kit.clock)
    group_sets = GroupSets(kit.database, kit.tenants, groups, group_policies, catch_up)
    admission = Admission(kit.database, kit.outbox, kit.tenants, peers, kit.clock)
    prepared = CallingDevices(
        kit.database,
        kit.outbox,
        kit.tenants,
        policy_pb2_grpc.PolicyInternalServiceStub(kit.channel("policy")),
        kit.clock,
        kit.wait_seconds("policy"),
        catch_up,
    )
    first_start = FirstStart(
        settings.bootstrap_enrollment_secret_file,
        kit.database,
        kit.outbox,
        kit.tenants,
        kit.clock,
    )
    changes = Changes(
        kit.database.system_lane("the feeds tell of all tenants"), CHANGING, CHANGING_GROUPS
    )
    return Parts(
        calls_refused=EnrollmentCallsRefused,
        public=[
            partial(
                rpc.add_EnrollmentTokenServiceServicer_to_server,
                EnrollmentTokenApi(tokens, kit.clock),
            ),
            partial(
                rpc.add_DeviceRegistryServiceServicer_to_server, DeviceRegistryApi(registry, bulk)
            ),
            partial(
                rpc.add_DeviceGroupServiceServicer_to_server, DeviceGroupApi(groups, group_sets)
            ),
            device_methods(EnrollDevice=DeviceApi(admission).EnrollDevice),
        ],
        internal=[
            partial(
                rpc.add_EnrollmentInternalServiceServicer_to_server,
                InternalApi(registry, groups, changes, kit.database, kit.clock),
            )
        ],
        services=[
            "evergreen.v1.EnrollmentTokenService",
            "evergreen.v1.DeviceRegistryService",
            "evergreen.v1.DeviceGroupService",
            "evergreen.v1.DeviceService",
        ],
        changes=changes,
        closing=ArchivedDevices(kit.outbox, kit.clock).work,
        routes=routes(admission),
        batchers=[admission.batcher],
        tasks=[first_start.run, prepared.run, catch_up.run],
        ready=lambda: first_start.done,
    )


def main() -> None:
    """Runs until it is told to stop."""
    run("enrollment", EnrollmentSettings(), build)


if __name__ == "__main__":
    main()
