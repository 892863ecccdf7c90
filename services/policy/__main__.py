"""Runs the policy service: `python -m services.policy`."""

from __future__ import annotations

from functools import partial

from evergreen.v1 import enrollment_pb2_grpc, identity_pb2_grpc
from evergreen.v1 import policy_pb2_grpc as rpc
from servicekit.app import Kit, Parts, run
from servicekit.changes import Changes
from servicekit.device_service import device_methods
from servicekit.sealing import Sealer
from servicekit.settings import ServiceSettings
from services.policy.api import DeviceApi, PolicyApi, PolicyInternalApi, PolicyKeyApi
from services.policy.delivery import Delivery
from services.policy.delivery_store import CHANGING
from services.policy.devices import DeviceDirectory
from services.policy.http import routes
from services.policy.keys import PURPOSE, KeyRing
from services.policy.service import PolicyService


async def build(kit: Kit) -> Parts:
    """Wires the service."""
    keys = KeyRing(kit.database, Sealer.from_file(kit.settings.master_key_file, PURPOSE), kit.clock)
    changes = Changes(kit.database.lane(), *CHANGING)
    delivery = Delivery(
        kit.database,
        changes,
        kit.outbox,
        identity_pb2_grpc.IdentityInternalServiceStub(kit.channel("identity")),
        kit.clock,
    )
    devices = DeviceDirectory(
        kit.database,
        enrollment_pb2_grpc.EnrollmentInternalServiceStub(kit.channel("enrollment")),
    )
    service = PolicyService(
        kit.database, kit.outbox, kit.tenants, devices, keys, delivery.refresh, kit.clock
    )

    async def prepare() -> None:
        await keys.load()
        await delivery.load()
        await devices.load()

    return Parts(
        public=(
            partial(rpc.add_PolicyServiceServicer_to_server, PolicyApi(service)),
            partial(rpc.add_PolicyKeyServiceServicer_to_server, PolicyKeyApi(keys)),
            device_methods(PullPolicy=DeviceApi(delivery).PullPolicy),
        ),
        internal=(
            partial(
                rpc.add_PolicyInternalServiceServicer_to_server,
                PolicyInternalApi(delivery, kit.database, changes),
            ),
        ),
        services=(
            "evergreen.v1.PolicyService",
            "evergreen.v1.PolicyKeyService",
            "evergreen.v1.DeviceService",
        ),
        changes=changes,
        routes=routes(delivery),
        devices=kit.device_access(),
        tasks=(
            delivery.bundles.run,
            delivery.syncs.run,
            delivery.listen,
            delivery.write_behind,
            devices.follower.run,
        ),
        before_serving=prepare,
        ready=lambda: delivery.bundles.synced,
    )


def main() -> None:
    """Runs until it is told to stop."""
    run("policy", ServiceSettings(), build)


if __name__ == "__main__":
    main()
