"""Runs the audit service: `python -m services.audit`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from functools import partial

from auditlog.entries import Entry
from contract.events.audit import AuditCallsRefused, KeyRotated
from contract.subjects import SUBJECT_ROOT
from evergreen.v1 import audit_pb2_grpc, identity_pb2_grpc
from servicekit.app import Kit, Parts, run
from servicekit.data.postgres import Connection
from servicekit.keys.service import Purpose, SigningKeys
from servicekit.messaging.jetstream import AUDIT
from servicekit.outgoing.guard import Guard, Proxy
from servicekit.peers.closing import ROWS, TenantWork
from servicekit.peers.tenants import TenantNode
from servicekit.security.sealing import Sealer
from services.audit.alerts.api import AlertApi
from services.audit.alerts.board import Board
from services.audit.alerts.service import Alerts
from services.audit.alerts.watch import Watch
from services.audit.backups.service import Backups
from services.audit.forward.api import ForwarderApi
from services.audit.forward.domain import SEALED_FOR as FORWARD_SEALED_FOR
from services.audit.forward.outbound import Outbound
from services.audit.forward.service import Forwarders
from services.audit.forward.stdout import Stdout
from services.audit.forward.worker import Worker
from services.audit.log import store
from services.audit.log.api import AuditApi
from services.audit.log.domain import CHECKPOINTS, SEALED_FOR
from services.audit.log.gaps import GapWatch
from services.audit.log.recorder import Recorder
from services.audit.log.service import AuditLog
from services.audit.notices.service import Notices
from services.audit.person_data.api import PersonDataApi
from services.audit.person_data.service import PersonData
from services.audit.reports.api import ReportApi, ReportScheduleApi
from services.audit.reports.maker import Maker
from services.audit.reports.schedules import Schedules
from services.audit.reports.service import Bounds, Reports
from services.audit.reports.sources import Sources
from services.audit.retention.api import RetentionApi
from services.audit.retention.service import Retention
from services.audit.settings import AuditSettings
from services.audit.tree.mail import CheckpointMail
from services.audit.tree.published import Published
from services.audit.tree.sequencer import Sequencer
from services.audit.tree.service import Tree
from services.audit.tree.witnesses import Witnesses


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
    sequencer = Sequencer(
        kit.database,
        settings.audit_origin or settings.public_host,
        kit.clock,
        store.stream_position,
    )
    tree = Tree(kit.database, keys, CHECKPOINTS, sequencer)
    audit_log = AuditLog(kit.database, kit.outbox, kit.tenants, keys, tree, kit.clock)
    guard = Guard(settings.forward_rules, Proxy.read(settings.forward_proxy))
    asked = settings.witnesses if settings.outbound else None
    witnesses = Witnesses(tree, asked, guard, kit.clock) if asked else None
    outbound = Outbound(
        kit.database,
        kit.outbox,
        kit.tenants,
        Sealer.from_file(settings.master_key_file, FORWARD_SEALED_FOR),
        guard,
        settings.public_host,
        tree,
        kit.clock,
    )
    worker = Worker(outbound)
    forwarders = Forwarders(outbound, worker, settings.forwarders_per_tenant)
    stdout = Stdout() if settings.audit_stdout else None
    bounds = Bounds(
        settings.report_days,
        settings.report_mib << 20,
        settings.reports_mib_per_tenant << 20,
        settings.reports_mib << 20,
    )
    sources = Sources(kit.channel)
    notices = Notices(
        kit.database,
        identity_pb2_grpc.IdentityInternalServiceStub(kit.channel("identity")),
        kit.clock,
    )
    maker = Maker(
        kit.database,
        kit.outbox,
        kit.tenants,
        keys,
        sources,
        notices,
        bounds,
        settings.public_host,
        kit.clock,
    )
    reports = Reports(kit.database, kit.outbox, kit.tenants, bounds, kit.clock, maker.wake)
    schedules = Schedules(kit.database, kit.outbox, kit.tenants, reports, notices, kit.clock)
    retention = Retention(kit.database, kit.outbox, kit.tenants, kit.clock)
    person_data = PersonData(kit.database, kit.outbox, kit.tenants, kit.channel, kit.clock)

    files = {
        "the audit service": settings.tls_certificate_file,
        "the inner CA": settings.tls_ca_file,
    }
    watch = Watch(
        kit.database,
        kit.tenants,
        Board(kit.outbox, notices),
        notices,
        sources,
        {name: file for name, file in files.items() if file is not None},
        witnesses.away if witnesses else lambda: (),
        kit.clock,
    )
    alerts = Alerts(kit.database, kit.outbox, kit.tenants, kit.clock)

    def recorded(entries: Sequence[Entry]) -> None:
        worker.recorded(entries)
        sequencer.recorded()
        if stdout is not None:
            stdout.recorded(entries)

    recorder = Recorder(
        kit.database, kit.clock, recorded, salted=settings.audit_entry_format == "v2"
    )
    gaps = GapWatch(kit.database, kit.messaging, sequencer.begin_again)

    addresses = settings.checkpoint_addresses
    mail = CheckpointMail(kit.database, kit.tenants, tree, notices, addresses, kit.clock)

    async def prepare() -> None:
        await keys.load()
        # So that there is a tree from the first call on.
        await sequencer.begin()

    async def grow() -> None:
        # The tree of an older database would be another one than what was signed.
        await gaps.checked()
        await sequencer.run()

    async def record() -> None:
        await gaps.checked()
        await kit.messaging.consume(AUDIT, f"{SUBJECT_ROOT}.>", recorder.handle)

    return Parts(
        calls_refused=AuditCallsRefused,
        public=[
            partial(
                audit_pb2_grpc.add_AuditServiceServicer_to_server,
                AuditApi(audit_log, tree, Published(tree, is_open=settings.audit_log_public), keys),
            ),
            partial(
                audit_pb2_grpc.add_AuditRetentionServiceServicer_to_server, RetentionApi(retention)
            ),
            partial(
                audit_pb2_grpc.add_ForwarderServiceServicer_to_server, ForwarderApi(forwarders)
            ),
            partial(audit_pb2_grpc.add_ReportServiceServicer_to_server, ReportApi(reports)),
            partial(
                audit_pb2_grpc.add_PersonDataServiceServicer_to_server, PersonDataApi(person_data)
            ),
            partial(
                audit_pb2_grpc.add_ReportScheduleServiceServicer_to_server,
                ReportScheduleApi(schedules),
            ),
            partial(audit_pb2_grpc.add_AlertServiceServicer_to_server, AlertApi(alerts)),
        ],
        services=[
            "evergreen.v1.AuditService",
            "evergreen.v1.AuditRetentionService",
            "evergreen.v1.ForwarderService",
            "evergreen.v1.ReportService",
            "evergreen.v1.PersonDataService",
            "evergreen.v1.ReportScheduleService",
            "evergreen.v1.AlertService",
        ],
        tasks=[
            gaps.run,
            record,
            keys.follower.run,
            grow,
            Backups(kit.database).watch,
            maker.run,
            schedules.run,
            notices.run,
            watch.run,
            *([worker.run] if settings.outbound else []),
            *([stdout.run] if stdout else []),
            *([mail.run] if addresses else []),
            *([witnesses.run] if witnesses else []),
        ],
        closing=TenantWork(erase=erase),
        before_serving=prepare,
    )


def main() -> None:
    """Runs until it is told to stop."""
    # No device waits for this service: where one machine carries everything, others go first.
    os.nice(5)
    run("audit", AuditSettings(), build)


if __name__ == "__main__":
    main()
