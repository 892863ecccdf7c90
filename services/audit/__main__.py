"""Runs the audit service: `python -m services.audit`."""

from __future__ import annotations

from functools import partial

from evergreen.v1 import audit_pb2_grpc
from servicekit.app import Kit, Parts, run
from servicekit.messaging import AUDIT
from servicekit.sealing import Sealer
from servicekit.streams import SUBJECT_ROOT
from services.audit.api import AuditApi
from services.audit.events import Recorder
from services.audit.gaps import GapWatch
from services.audit.keys import PURPOSE, Keys
from services.audit.service import AuditLog
from services.audit.settings import AuditSettings


async def build(kit: Kit) -> Parts:
    """Wires the service."""
    sealer = Sealer.from_file(kit.settings.master_key_file, PURPOSE)
    keys = Keys(kit.database, sealer, kit.clock)
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
        tasks=[gaps.run, record],
        before_serving=keys.load,
    )


def main() -> None:
    """Runs until it is told to stop."""
    run("audit", AuditSettings(), build)


if __name__ == "__main__":
    main()
