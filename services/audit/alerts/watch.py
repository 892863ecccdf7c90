"""Looks after alerts: one process at a time, in rounds that nobody waits for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final
from uuid import UUID

from prometheus_client import Counter, Gauge

from servicekit.call import begin_background_call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.ids import Clock, new_id
from servicekit.observability import logs
from servicekit.observability.logs import Repeated, brief
from servicekit.peers.tenants import TenantDirectory, TenantNode
from services.audit.alerts import levels, store
from services.audit.alerts import log as entries
from services.audit.alerts.board import Board
from services.audit.alerts.domain import (
    ATTESTATION_FAILED,
    BACKUP_TOO_OLD,
    CERTIFICATE_ENDS,
    DEVICES_NOT_SEEN,
    DIGEST_EVERY,
    FORWARDER_FAILING,
    KEPT,
    KINDS,
    MOST_LINES,
    POLICY_BEHIND,
    Finding,
    Rules,
)
from services.audit.alerts.fleet import count
from services.audit.alerts.rulebook import effective
from services.audit.alerts.texts import digest
from services.audit.notices.service import Notices
from services.audit.reports.sources import AwayError, Sources

log = logs.get(__name__)

_OPEN: Final = Gauge("evergreen_alerts_open", "Alerts that are open.", ["kind"])
_LOOKED: Final = Gauge(
    "evergreen_alerts_looked_timestamp_seconds",
    "When this process last looked at all; 0 while another one does.",
)
_FAILED: Final = Counter(
    "evergreen_alert_looks_failed_total", "Looks at a tenant's alerts that failed.", ["kind"]
)
_LOOK_SECONDS: Final = 15.0
_LEASE: Final = timedelta(seconds=30)
_LEVELS_SECONDS: Final = 60.0
_FLEET: Final = timedelta(hours=1)
"""So often the devices of an organisation are counted,"""
_FLEET_OPEN: Final = timedelta(minutes=15)
"""of one with an open alert,"""
_FLEET_AGAIN: Final = timedelta(minutes=5)
"""and of one where that failed."""
_FLEET_PAUSE_SECONDS: Final = 0.02
_MOST_PAGES: Final = 50
_AGAIN: Final = timedelta(minutes=1)
_MOST: Final = 200
_FLEET_KINDS: Final = (DEVICES_NOT_SEEN, POLICY_BEHIND)


@dataclass(slots=True)
class _Seen:
    """What one round works with."""

    at: datetime
    said: Mapping[UUID, Rules]
    opened: set[tuple[UUID, str]]
    failing: Mapping[UUID, Sequence[store.Failing]] = field(default_factory=dict)


class Watch:
    """Raises and resolves alerts, for as long as the service lives.

    Args:
        database: the service's.
        tenants: the tree.
        board: the open alerts.
        notices: takes mails.
        sources: the owners of what is known of devices.
        files: certificates of the service, by what they are of.
        clock: the time.
    """

    def __init__(
        self,
        database: Database,
        tenants: TenantDirectory,
        board: Board,
        notices: Notices,
        sources: Sources,
        files: Mapping[str, Path],
        clock: Clock,
    ) -> None:
        self._database = database
        self._tenants = tenants
        self._board = board
        self._notices = notices
        self._sources = sources
        self._files = files
        self._clock = clock
        self._lease = new_id()
        self._not_before: dict[UUID, datetime] = {}
        """Chains that could not be looked at."""
        self._count_at: dict[UUID, datetime] = {}
        self._leads = False

    async def run(self) -> None:
        """Looks, while no other process does."""
        counting = asyncio.create_task(self._count_forever())
        outage = Repeated(log, "alerts not looked at")
        loop = asyncio.get_running_loop()
        levels_at = 0.0
        try:
            while True:
                begin_background_call()
                try:
                    self._leads = self._tenants.follower.synced and await self._lead()
                    if self._leads:
                        await self.read_log()
                        if loop.time() >= levels_at:
                            await self.look()
                            levels_at = loop.time() + _LEVELS_SECONDS
                        _LOOKED.set(self._clock().timestamp())
                    else:
                        _LOOKED.set(0)
                    outage.worked()
                except Exception as error:
                    outage.failed(error)
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            counting.cancel()
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1), self._system() as connection:
                    await store.give_up_lead(connection, self._lease)

    def _system(self) -> contextlib.AbstractAsyncContextManager[Connection]:
        return self._database.system_transaction("alerts of all tenants are looked after")

    async def _lead(self) -> bool:
        at = self._clock()
        async with self._system() as connection:
            return await store.lead(connection, self._lease, at, at + _LEASE)

    async def read_log(self) -> None:
        """Looks at the entries that were recorded since the last time."""
        at = self._clock()
        async with self._system() as connection:
            said = await store.all_rules(connection)
        for _ in range(_MOST_PAGES):
            without = [one for one, until in self._not_before.items() if at < until]
            async with self._system() as connection:
                found, is_more = await store.news(connection, entries.ACTIONS, without)
            for one in found:
                await self._guarded(one.tenant_id, "log", self._take, one, said, at)
            if not is_more:
                return

    async def _take(self, found: store.News, said: Mapping[UUID, Rules], at: datetime) -> None:
        node = self._tenants.known(found.tenant_id)
        if node is None:
            raise LookupError("the tenant is not known yet")
        async with self._database.transaction(Scope.of(found.tenant_id)) as connection:
            if node.going:
                await store.know(connection, [(found.tenant_id, found.until)])
                return
            rules = effective(self._tenants.line(node.id), said)
            await entries.take(connection, node, rules, found, self._board, at)

    async def _guarded(
        self,
        tenant_id: UUID,
        kind: str,
        look: Callable[..., Awaitable[None]],
        *arguments: object,
    ) -> bool:
        """Looks at one tenant; one that is broken keeps no other one waiting."""
        try:
            await look(*arguments)
        except Exception as error:
            log.warning(
                "alerts of a tenant not looked at",
                tenant=str(tenant_id),
                kind=kind,
                error=brief(error),
            )
            _FAILED.labels(kind).inc()
            self._not_before[tenant_id] = self._clock() + _AGAIN
            return False
        self._not_before.pop(tenant_id, None)
        return True

    async def look(self) -> None:
        """Looks at what holds now, without asking others."""
        at = self._clock()
        async with self._system() as connection:
            seen = _Seen(at, await store.all_rules(connection), await store.open_places(connection))
            seen.failing = levels.by_tenant(await store.failing(connection))
            newest = await store.newest_backup(connection)
            pems = await store.pems(connection)
        ends = levels.ends_of(self._files, pems)
        for tenant_id in {*seen.failing, *(one for one, _ in seen.opened)}:
            await self._guarded(tenant_id, "levels", self._settle_tenant, tenant_id, seen)
        root = self._tenants.root
        if root is not None:
            rules = effective([root], seen.said)
            held = {
                BACKUP_TOO_OLD: levels.backups(newest, rules.rule(BACKUP_TOO_OLD), at),
                CERTIFICATE_ENDS: levels.certificates(ends, rules.rule(CERTIFICATE_ENDS), at),
            }
            for kind, found in held.items():
                if found or (root.id, kind) in seen.opened:
                    await self._guarded(root.id, kind, self._settle, root, kind, rules, found, at)
        await self._tell_digests(at, seen.said)
        async with self._system() as connection:
            await store.forget(connection, at - KEPT, _MOST)
            counted = await store.counted(connection)
        for kind in KINDS:
            _OPEN.labels(kind).set(counted.get(kind, 0))

    async def _settle_tenant(self, tenant_id: UUID, seen: _Seen) -> None:
        """The forwarders of a tenant, and what of its open alerts nobody else looks after."""
        node = self._tenants.known(tenant_id)
        if node is None or node.going:
            return
        rules = effective(self._tenants.line(node.id), seen.said)
        failing = seen.failing.get(tenant_id, ())
        if failing or (tenant_id, FORWARDER_FAILING) in seen.opened:
            held = levels.failing(failing, rules.rule(FORWARDER_FAILING), seen.at)
            await self._settle(node, FORWARDER_FAILING, rules, held, seen.at)
        for kind in entries.COUNTED:
            if (tenant_id, kind) in seen.opened:
                async with self._database.transaction(Scope.of(tenant_id)) as connection:
                    await entries.recount(connection, node, kind, rules, self._board, seen.at)
        # Nobody wants to hear of it any more.
        if (tenant_id, ATTESTATION_FAILED) in seen.opened:
            async with self._database.transaction(Scope.of(tenant_id)) as connection:
                await self._board.settle(
                    connection, node, ATTESTATION_FAILED, rules, (), seen.at, ended=()
                )

    async def _settle(
        self,
        node: TenantNode,
        kind: str,
        rules: Rules,
        found: Sequence[Finding],
        at: datetime,
    ) -> None:
        async with self._database.transaction(Scope.of(node.id)) as connection:
            await self._board.settle(connection, node, kind, rules, found, at)

    async def _tell_digests(self, at: datetime, said: Mapping[UUID, Rules]) -> None:
        before = at - DIGEST_EVERY
        async with self._system() as connection:
            due = await store.digests_due(connection, before, _MOST)
        for tenant_id in due:
            await self._guarded(tenant_id, "digest", self._tell_digest, tenant_id, said, at)

    async def _tell_digest(self, tenant_id: UUID, said: Mapping[UUID, Rules], at: datetime) -> None:
        node = self._tenants.known(tenant_id)
        if node is None or node.going:
            return
        rules = effective(self._tenants.line(tenant_id), said)
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            if not await store.take_digest(connection, tenant_id, at - DIGEST_EVERY, at):
                return
            alerts, number = await store.all_open(connection, tenant_id, MOST_LINES)
            if alerts:
                await self._notices.add(
                    connection,
                    tenant_id,
                    digest(alerts, number, node.name),
                    addresses=rules.emails,
                    roles=rules.roles,
                )

    async def _count_forever(self) -> None:
        """Counts the devices of organisations, one after the other."""
        outage = Repeated(log, "devices not counted for alerts")
        while True:
            begin_background_call()
            try:
                if self._leads:
                    await self.count_all()
                outage.worked()
            except Exception as error:
                outage.failed(error)
            await asyncio.sleep(_LOOK_SECONDS)

    async def count_all(self) -> None:
        """Counts the devices of all organisations whose time has come."""
        orgs = set(self._tenants.organisations())
        for gone in self._count_at.keys() - orgs:
            del self._count_at[gone]
        due = sorted(one for one in orgs if self._count_at.get(one, self._clock()) <= self._clock())
        if not due:
            return
        async with self._system() as connection:
            seen = _Seen(
                self._clock(),
                await store.all_rules(connection),
                await store.open_places(connection),
            )
        for org_id in due:
            if not self._leads:
                return
            done = await self._counted(org_id, seen)
            again = _FLEET if done else _FLEET_AGAIN
            if any((org_id, kind) in seen.opened for kind in _FLEET_KINDS):
                again = min(again, _FLEET_OPEN)
            self._count_at[org_id] = self._clock() + again
            await asyncio.sleep(_FLEET_PAUSE_SECONDS)

    async def _counted(self, org_id: UUID, seen: _Seen) -> bool:
        try:
            await self._count(org_id, seen)
        except AwayError as away:
            log.info("devices not counted for alerts", tenant=str(org_id), waits_for=away.context)
            return False
        except Exception as error:
            log.warning("devices not counted for alerts", tenant=str(org_id), error=brief(error))
            _FAILED.labels("devices").inc()
            return False
        return True

    async def _count(self, org_id: UUID, seen: _Seen) -> None:
        node = self._tenants.known(org_id)
        if node is None or node.status != "active":
            return
        at = self._clock()
        rules = effective(self._tenants.line(org_id), seen.said)
        unseen, behind = (rules.rule(kind) for kind in _FLEET_KINDS)
        wanted = [
            kind
            for kind in _FLEET_KINDS
            if rules.rule(kind).enabled or (org_id, kind) in seen.opened
        ]
        if not wanted:
            return
        counts = await count(
            self._sources,
            org_id,
            timedelta(days=unseen.of(DEVICES_NOT_SEEN, "days")),
            timedelta(hours=behind.of(POLICY_BEHIND, "hours")),
            at,
        )
        held = {
            DEVICES_NOT_SEEN: counts.not_seen(unseen),
            POLICY_BEHIND: counts.far_behind(behind),
        }
        for kind, found in held.items():
            if found or (org_id, kind) in seen.opened:
                await self._settle(node, kind, rules, found, at)
