"""Compares what holds with what is open: raises, keeps and resolves alerts, and tells of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from prometheus_client import Counter

from contract.events.audit import AlertRaised, AlertResolved, AlertState
from servicekit.data.postgres import Connection
from servicekit.ids import new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantNode
from services.audit.alerts import store
from services.audit.alerts.domain import (
    LASTS,
    MOST_OPEN,
    Alert,
    Change,
    Finding,
    Rules,
)
from services.audit.alerts.texts import line_of, told
from services.audit.notices.domain import Source
from services.audit.notices.service import Notices

_CHANGES: Final = Counter(
    "evergreen_alerts_total", "Alerts that were raised and resolved.", ["kind", "what"]
)
_AT_ONCE: Final = timedelta(0)


class Board:
    """The open alerts of tenants.

    Args:
        outbox: takes events.
        notices: takes mails.
    """

    def __init__(self, outbox: Outbox, notices: Notices) -> None:
        self._outbox = outbox
        self._notices = notices

    async def settle(
        self,
        connection: Connection,
        tenant: TenantNode,
        kind: str,
        rules: Rules,
        found: Sequence[Finding],
        at: datetime,
        *,
        ended: Collection[str] | None = None,
    ) -> None:
        """Makes the open alerts of a tenant and kind those whose condition holds.

        All that is written is one transaction: the alerts, their events and the mail. While the
        kind is paused nothing is raised, and no mail tells of what is resolved.

        Args:
            connection: in a transaction of the tenant.
            tenant: whose alerts.
            kind: of alerts.
            rules: what counts for the tenant.
            found: what holds.
            at: the time.
            ended: subjects whose condition does not hold, which are resolved at once; `None`: of
                all that are not found, which are resolved when that lasts.
        """
        rule = rules.rule(kind)
        paused = rule.is_paused(at)
        holding = {finding.subject: finding for finding in found} if rule.enabled else {}
        opened = await store.open_of(connection, tenant.id, kind)
        room = MOST_OPEN - len(opened)
        changes: list[Change] = []
        for subject, finding in holding.items():
            alert = opened.get(subject)
            if alert is None:
                if paused or room <= 0:
                    continue
                room -= 1
                alert = Alert(new_id(), tenant.id, kind, subject, finding.facts, at, finding.step)
                if await store.raise_alert(connection, alert):
                    changes.append(Change(alert, "raised"))
                continue
            # That it lasts is told after the pause.
            known = replace(finding, step=alert.step) if paused else finding
            await store.keep_open(connection, alert, known)
            if known.step > alert.step:
                changes.append(Change(replace(alert, facts=finding.facts), "lasts"))
        lasts = _AT_ONCE if ended is not None or not rule.enabled else LASTS
        gone = opened.keys() - holding.keys()
        if ended is not None and rule.enabled:
            gone &= set(ended)
        for subject in sorted(gone):
            alert = opened[subject]
            if at - (alert.ended_since or at) < lasts:
                if alert.ended_since is None:
                    await store.note_end(connection, alert, at)
                continue
            await store.resolve(connection, alert, at)
            changes.append(Change(replace(alert, resolved_at=at), "resolved"))
        if not changes:
            return
        events = [_event(change) for change in changes if change.what != "lasts"]
        await self._outbox.append(connection, *events)
        if not paused:
            await self._mail(connection, tenant, rules, changes, at)
        for change in changes:
            _CHANGES.labels(change.alert.kind, change.what).inc()

    async def _mail(
        self,
        connection: Connection,
        tenant: TenantNode,
        rules: Rules,
        changes: Sequence[Change],
        at: datetime,
    ) -> None:
        taken = await self._notices.add(
            connection,
            tenant.id,
            told(changes, tenant.name),
            Source.alert(changes[0].alert.kind),
            addresses=rules.emails,
            roles=rules.roles,
        )
        if not taken:
            await store.note_left_out(connection, tenant.id, at)


def _event(change: Change) -> CloudEvent:
    alert = change.alert
    state = AlertState(
        kind=alert.kind,
        subject=alert.subject,
        text=line_of(alert),
        raised_at=alert.raised_at,
        facts=dict(alert.facts),
    )
    if change.what == "raised":
        return CloudEvent(AlertRaised(id=alert.id, after=state), alert.tenant_id)
    return CloudEvent(AlertResolved(id=alert.id, after=state), alert.tenant_id)
