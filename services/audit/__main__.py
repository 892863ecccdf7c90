"""Runs the audit service: `python -m services.audit`."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from contract.events.audit import KeyRotated
from contract.subjects import SUBJECT_ROOT
from evergreen.v1 import audit_pb2_grpc
from servicekit.app import Kit, Parts, run
from servicekit.data.postgres import Connection
from servicekit.keys.service import Purpose, SigningKeys
from servicekit.messaging.jetstream import AUDIT
from servicekit.peers.closing import ROWS, TenantWork
from servicekit.peers.tenants import TenantNode
from servicekit.security.sealing import Sealer
from services.audit.backups.service import Backups
from services.audit.log import store
from services.audit.log.api import AuditApi
from services.audit.log.domain import CHECKPOINTS, SEALED_FOR
from services.audit.log.gaps import GapWatch
from services.audit.log.recorder import Recorder
from services.audit.log.service import AuditLog
from services.audit.settings import AuditSettings


async def erase(connection: Connection, tenant: TenantNode) -> int:
    """Erases quarantined messages of a deleted tenant; the log itself stays."""
    return await store.forget_dead_letters(connection, tenant.id, ROWS)


async def build(kit: Kit) -> Parts:
    """Wires the service."""
    settings = kit.settings
    assert isinstance(settings, AuditSettings)
    keys = SigningKeys(
        kit.database,
        kit.outbox,
        kit.tenants,
        Sealer.from_file(settings.master_key_file, SEALED_FOR),
        context="audit",
        event=KeyRotated,
        purposes=(Purpose(CHECKPOINTS, None),),
        lead=timedelta(seconds=settings.key_lead_seconds),
        clock=kit.clock,
    )
    audit_log = AuditLog(kit.database, kit.outbox, kit.tenants, keys, kit.clock)
    recorder = Recorder(kit.database, kit.clock)
    gaps = GapWatch(kit.database, kit.messaging)

    async def record() -> None:
        await gaps.checked()
        await kit.messaging.consume(AUDIT, f"{SUBJECT_ROOT}.>", recorder.handle)

    return Parts(
        public=[
            partial(audit_pb2_grpc.add_AuditServiceServicer_to_server, AuditApi(audit_log, keys))
        ],
        services=["evergreen.v1.AuditService"],
        tasks=[gaps.run, record, keys.follower.run, Backups(kit.database).watch],
        closing=TenantWork(erase=erase),
        before_serving=keys.load,
    )


def main() -> None:
    """Runs until it is told to stop."""
    run("audit", AuditSettings(), build)


if __name__ == "__main__":
    main()
