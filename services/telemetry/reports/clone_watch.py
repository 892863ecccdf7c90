"""Tells of devices that look like several machines."""

from __future__ import annotations

from collections.abc import Iterable

from contract.events.telemetry import CloneEvidence, CloneSuspected
from servicekit.call import SYSTEM_CALL
from servicekit.data.postgres import Database
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.observability.logs import brief
from services.telemetry.reports import store
from services.telemetry.reports.clones import Clones
from services.telemetry.reports.state import StateReport

log = logs.get(__name__)


class CloneWatch:
    """Sees every state that was stored; marks devices, and tells of them in events."""

    def __init__(self, database: Database, outbox: Outbox, clock: Clock) -> None:
        self._database = database
        self._outbox = outbox
        self._clock = clock
        self._clones = Clones()

    async def see(self, reports: Iterable[StateReport]) -> None:
        """Takes states, one per device, that were just stored. It never fails."""
        notice = self._clones.notice
        found = [
            (report, evidence)
            for report in reports
            if (evidence := notice(report.device_id, report.state, report.received_at)) is not None
        ]
        if not found:
            return
        try:
            async with self._database.system_transaction("a batch spans tenants") as connection:
                await store.mark_clones(connection, [r.device_id for r, _ in found], self._clock())
                events = [
                    CloudEvent(
                        CloneSuspected(
                            id=report.device_id,
                            after=CloneEvidence(org_id=report.tenant_id, evidence=evidence),
                        ),
                        report.tenant_id,
                        call=SYSTEM_CALL,
                    )
                    for report, evidence in found
                ]
                await self._outbox.append(connection, *events)
        except Exception as error:
            for report, _ in found:
                self._clones.forget(report.device_id)
            log.warning("suspected clones not marked", devices=len(found), error=brief(error))
