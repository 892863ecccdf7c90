"""Runs the attestation service: `python -m services.attestation`."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from contract.events.attestation import AttestationCallsRefused
from evergreen.v1 import attestation_pb2_grpc as rpc
from servicekit.app import Kit, Parts, run
from servicekit.feeds.changes import Changes
from servicekit.rpc.device_service import device_methods
from services.attestation.api import AttestationApi
from services.attestation.binding.service import Bindings
from services.attestation.devices.service import DEVICES
from services.attestation.evidence.api import DeviceApi
from services.attestation.evidence.examiners import Examiners
from services.attestation.evidence.http import routes
from services.attestation.evidence.service import Attestations
from services.attestation.feed import AttestationInternalApi
from services.attestation.references.service import References
from services.attestation.settings import AttestationSettings
from services.attestation.trust.service import Trust
from services.attestation.verdicts import store as verdict_store
from services.attestation.verdicts.service import Verdicts


async def build(kit: Kit) -> Parts:
    """Wires the service."""
    settings = kit.settings
    assert isinstance(settings, AttestationSettings)
    lane = kit.database.system_lane("the feed tells of all tenants")
    changes = Changes(lane, verdict_store.CHANGING)
    devices = kit.device_access(DEVICES)
    examiners = Examiners(settings.waiting_attestations)
    attestations = Attestations(kit.database, kit.outbox, examiners, kit.clock)
    trust = Trust(kit.database, kit.outbox, kit.tenants, kit.clock)
    bindings = Bindings(kit.database, kit.outbox, kit.tenants, trust, examiners, kit.clock)
    references = References(kit.database, kit.outbox, kit.tenants, kit.clock)
    verdicts = Verdicts(
        kit.database,
        kit.outbox,
        kit.tenants,
        devices,
        timedelta(days=settings.attestation_stale_days),
        kit.clock,
    )
    admin = AttestationApi(verdicts, bindings, trust, references)
    return Parts(
        calls_refused=AttestationCallsRefused,
        public=(
            partial(rpc.add_AttestationServiceServicer_to_server, admin),
            device_methods(AttestBoot=DeviceApi(attestations).attest_boot),
        ),
        internal=(
            partial(
                rpc.add_AttestationInternalServiceServicer_to_server,
                AttestationInternalApi(kit.database, changes),
            ),
        ),
        services=("evergreen.v1.AttestationService", "evergreen.v1.DeviceService"),
        changes=changes,
        routes=routes(attestations),
        devices=devices,
        tasks=(verdicts.watch, attestations.forget, bindings.forget),
    )


def main() -> None:
    """Runs until it is told to stop."""
    run("attestation", AttestationSettings(), build)


if __name__ == "__main__":
    main()
