"""Runs the policy service: `python -m services.policy`."""

from __future__ import annotations

from functools import partial

from contract.events.policy import PolicyCallsRefused
from evergreen.v1 import (
    attestation_pb2_grpc,
    enrollment_pb2_grpc,
    identity_pb2_grpc,
    telemetry_pb2_grpc,
)
from evergreen.v1 import policy_pb2_grpc as rpc
from servicekit.app import Kit, Parts, run
from servicekit.feeds.changes import Changes
from servicekit.peers.closing import TenantWork
from servicekit.rpc.device_service import device_methods
from servicekit.security.sealing import Sealer
from services.policy.authoring.ending import Endings
from services.policy.authoring.service import PolicyService
from services.policy.delivery import store as delivery_store
from services.policy.delivery.api import DeviceApi
from services.policy.delivery.http import routes
from services.policy.delivery.service import Delivery
from services.policy.editions.effective import EffectivePolicies
from services.policy.editions.service import Editions
from services.policy.feed import PolicyInternalApi
from services.policy.gate import store as gate_store
from services.policy.gate.service import Gates
from services.policy.keys import store as keys_store
from services.policy.keys.api import PolicyKeyApi
from services.policy.keys.custody import Custody
from services.policy.keys.service import PURPOSE, KeyRing
from services.policy.orphans.service import Orphans
from services.policy.rollouts.api import PublishingApi, RolloutApi, asked_plan
from services.policy.rollouts.freezes import Freezes
from services.policy.rollouts.outlooks import Outlooks
from services.policy.rollouts.publishing_settings import PublishingSettings
from services.policy.rollouts.service import Rollouts
from services.policy.rollouts.worker import RolloutWorker
from services.policy.sets.moving import MovingSecrets
from services.policy.sets.service import PolicySets
from services.policy.settings import PolicySettings
from services.policy.sightings.pace import Pace
from services.policy.sightings.service import Sightings
from services.policy.simulation.service import Simulations
from services.policy.stamps import store as stamps_store
from services.policy.stamps.collecting import Collector
from services.policy.stamps.service import Stamps
from services.policy.syncs import store as syncs_store
from services.policy.syncs.service import Syncs, mirror
from services.policy.targets import store as targets_store
from services.policy.targets.service import Groups, Seats
from services.policy.variables.above import Above
from services.policy.variables.api import VariableApi
from services.policy.variables.service import Variables
from services.policy.variables.values import ValuesInUse
from services.policy.vault import PURPOSE as VAULT
from services.policy.vault import Vault


async def build(kit: Kit) -> Parts:
    """Wires the service."""
    settings = kit.settings
    assert isinstance(settings, PolicySettings)
    vault = Vault(
        Sealer.from_file(settings.master_key_file, VAULT),
        seals=settings.policy_secrets == "sealed",
    )
    lane = kit.database.system_lane("the feed tells of all tenants")
    changes = Changes(
        lane,
        *stamps_store.CHANGING,
        delivery_store.CHANGING,
        syncs_store.CHANGING,
        gate_store.CHANGING,
        targets_store.CHANGING,
        keys_store.CHANGING,
        targets_store.CHANGING_RESTRICTIONS,
    )
    sealer = Sealer.from_file(settings.master_key_file, PURPOSE)
    keys = KeyRing(kit.database, sealer, kit.clock, changes)
    endings = Endings(vault, kit.outbox)
    devices = kit.device_access(mirror(endings.end))
    syncs = Syncs(kit.database, changes, kit.outbox, kit.tenants, devices, kit.clock)
    stamps = Stamps(kit.database, changes, keys, vault, kit.clock)
    groups = Groups(
        kit.database,
        enrollment_pb2_grpc.EnrollmentInternalServiceStub(kit.channel("enrollment")),
        kit.tenants,
        endings.end,
        kit.wait_seconds("enrollment"),
    )
    seats = Seats(kit.database, changes, stamps, kit.tenants, devices, groups, keys)
    custody = Custody(kit.database, kit.outbox, kit.tenants, keys, devices, kit.clock)
    freezes = Freezes(kit.tenants, kit.clock)
    editions = Editions(kit.database, stamps, seats, keys, vault, kit.tenants, freezes.among)
    sightings = Sightings(kit.database)
    rollouts = Rollouts(kit.database, vault, kit.outbox, kit.tenants, editions, changes, kit.clock)
    worker = RolloutWorker(
        kit.database,
        rollouts,
        telemetry_pb2_grpc.TelemetryInternalServiceStub(kit.channel("telemetry")),
        changes,
        kit.clock,
    )
    delivery = Delivery(
        kit.database,
        stamps,
        seats,
        editions.make,
        syncs,
        sightings,
        Pace(kit.database, kit.clock),
        kit.outbox,
        identity_pb2_grpc.IdentityInternalServiceStub(kit.channel("identity")),
        keys,
        kit.clock,
    )
    gates = Gates(
        kit.database,
        kit.outbox,
        kit.tenants,
        attestation_pb2_grpc.AttestationInternalServiceStub(kit.channel("attestation")),
        devices,
        groups,
        changes,
        rollouts,
        kit.clock,
        kit.wait_seconds("attestation"),
    )
    orphans = Orphans(kit.database, kit.tenants)
    values = ValuesInUse(vault, kit.tenants)
    service = PolicyService(
        kit.database,
        kit.outbox,
        kit.tenants,
        keys,
        vault,
        values,
        changes,
        editions,
        rollouts,
        seats,
        kit.clock,
    )
    variables = Variables(
        kit.database,
        vault,
        kit.outbox,
        kit.tenants,
        changes,
        service,
        Above(kit.tenants, editions, rollouts),
        kit.clock,
    )
    simulations = Simulations(kit.database, vault, kit.tenants, seats, values)

    async def prepare() -> None:
        await keys.load()
        await groups.load()
        await delivery.load()
        await gates.load()

    return Parts(
        calls_refused=PolicyCallsRefused,
        public=(
            partial(
                rpc.add_PolicyServiceServicer_to_server,
                PublishingApi(
                    Outlooks(kit.database, vault, kit.tenants, rollouts, kit.clock),
                    PolicySets(
                        kit.database,
                        vault,
                        kit.outbox,
                        kit.tenants,
                        changes,
                        service,
                        variables,
                        simulations,
                        seats,
                    ),
                    MovingSecrets(kit.database, vault, kit.tenants, changes, service, variables),
                    simulations,
                    EffectivePolicies(kit.database, kit.tenants, editions, seats),
                    service,
                    syncs,
                    orphans,
                    gates,
                ),
            ),
            partial(
                rpc.add_PolicyRolloutServiceServicer_to_server,
                RolloutApi(
                    rollouts,
                    PublishingSettings(kit.database, kit.outbox, kit.tenants, rollouts, kit.clock),
                ),
            ),
            partial(
                rpc.add_PolicyVariableServiceServicer_to_server,
                VariableApi(
                    variables,
                    asked_plan,
                ),
            ),
            partial(rpc.add_PolicyKeyServiceServicer_to_server, PolicyKeyApi(keys, custody)),
            device_methods(PullPolicy=DeviceApi(delivery).PullPolicy),
        ),
        internal=(
            partial(
                rpc.add_PolicyInternalServiceServicer_to_server,
                PolicyInternalApi(
                    delivery, groups, keys, kit.tenants, kit.database, vault, changes
                ),
            ),
        ),
        services=(
            "evergreen.v1.PolicyService",
            "evergreen.v1.PolicyRolloutService",
            "evergreen.v1.PolicyVariableService",
            "evergreen.v1.PolicyKeyService",
            "evergreen.v1.DeviceService",
        ),
        changes=changes,
        closing=TenantWork(erase=keys.end_of_tenant),
        routes=routes(delivery),
        devices=devices,
        tasks=(
            stamps.follower.run,
            keys.run,
            groups.follower.run,
            seats.follower.run,
            seats.restrictions.run,
            editions.run,
            delivery.write_behind,
            sightings.write_behind,
            worker.run,
            syncs.follower.run,
            orphans.watch,
            Collector(kit.database, kit.clock).run,
            gates.follower.run,
            gates.watch,
            gates.enforcement.run,
        ),
        before_serving=prepare,
        ready=lambda: (
            stamps.follower.synced and seats.follower.synced and seats.restrictions.synced
        ),
    )


def main() -> None:
    """Runs until it is told to stop."""
    run("policy", PolicySettings(), build)


if __name__ == "__main__":
    main()
