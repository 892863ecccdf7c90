"""Looks after alerts: one process at a time, in rounds that nobody waits for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from prometheus_client import Counter, Gauge

from servicekit.call import begin_background_call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.ids import Clock, new_id
from servicekit.observability import logs
from servicekit.observability.logs import Repeated, brief
from servicekit.peers.tenants import TenantDirectory, TenantNode
from services.audit.alerts import level_store, levels, log_store, rule_store, store
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
    WITNESS_AWAY,
    Finding,
    Rule,
    Rules,
)
from services.audit.alerts.fleet import count
from services.audit.alerts.rulebook import working
from services.audit.alerts.texts import digest
from services.audit.notices.domain import DIGEST
from services.audit.notices.service import Notices
from services.audit.reports.sources import AwayError, Sources
from services.audit.tree.witnesses import Away

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
_FLEET_ENDS: Final = timedelta(minutes=15)
"""of one where the condition of an open alert holds no more,"""
_FLEET_AGAIN: Final = timedelta(minutes=5)
"""and of one where that failed."""
_FIRST_PAUSE: Final = timedelta(seconds=0.3)
"""Between the first counts of a process."""
_FLEET_PAUSE_SECONDS: Final = 0.02
_MOST_PAGES: Final = 50
_AGAIN: Final = timedelta(minutes=1)
_DIGEST_AGAIN: Final = timedelta(hours=1)
_MOST: Final = 200
_FLEET_KINDS: Final = (DEVICES_NOT_SEEN, POLICY_BEHIND)


@dataclass(slots=True)
class _Seen:
    """What one round works with."""

    at: datetime
    said: Mapping[UUID, Rules]
    opened: set[tuple[UUID, str]]
    failing: Mapping[UUID, Sequence[level_store.Failing]] = field(default_factory=dict)
    ends: dict[UUID, Sequence[levels.Ending]] = field(default_factory=dict)
    """When certificates of forwarders end,"""
    untold: set[UUID] = field(default_factory=set)
    """and tenants with devices that fail their check, of which nobody was told."""


class Watch:
    """Raises and resolves alerts, for as long as the service lives.

    Args:
        database: the service's.
        tenants: the tree.
        board: the open alerts.
        notices: takes mails.
        sources: the owners of what is known of devices.
        files: certificates of the service, by what they are of.
        away: which witnesses do not sign.
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
        away: Callable[[], Sequence[Away]],
        clock: Clock,
    ) -> None:
        self._database = database
        self._tenants = tenants
        self._board = board
        self._notices = notices
        self._sources = sources
        self._files = files
        self._away = away
        self._clock = clock
        self._lease = new_id()
        self._not_before: dict[UUID, datetime] = {}
        """Chains that could not be looked at."""
        self._count_at: dict[UUID, datetime] = {}
        self._unreadable: set[UUID] = set()
        """Forwarders with certificates that cannot be read."""
        self.leads = False
        """Whether this process is the one that looks."""

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
                    self.leads = self._tenants.follower.synced and await self.lead()
                    if self.leads:
                        await self.read_log()
                        # That may have taken long.
                        self.leads = await self.lead()
                        if self.leads and loop.time() >= levels_at:
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

    async def lead(self) -> bool:
        """Takes or renews the lease; answers whether this process is the one that looks."""
        at = self._clock()
        async with self._system() as connection:
            return await store.lead(connection, self._lease, at, at + _LEASE)

    async def read_log(self) -> None:
        """Looks at the entries that were recorded since the last time."""
        at = self._clock()
        for _ in range(_MOST_PAGES):
            without = [one for one, until in self._not_before.items() if at < until]
            async with self._system() as connection:
                said = await rule_store.all_rules(connection)
                found, is_more = await log_store.news(connection, entries.ACTIONS, without)
            for one in found:
                await self._guarded(one.tenant_id, "log", self._take, one, said, at)
            if not is_more:
                return

    async def _take(self, found: log_store.News, said: Mapping[UUID, Rules], at: datetime) -> None:
        node = self._tenants.known(found.tenant_id)
        if node is None:
            raise LookupError("the tenant is not known yet")
        async with self._database.transaction(Scope.of(found.tenant_id)) as connection:
            if node.going:
                await log_store.know(connection, [(found.tenant_id, found.until)])
                return
            rules = self._rules(node, said)
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

    def _rules(self, node: TenantNode, said: Mapping[UUID, Rules]) -> Rules:
        return working(node, self._tenants.line(node.id), said)

    async def look(self) -> None:
        """Looks at what holds now, without asking others."""
        at = self._clock()
        async with self._system() as connection:
            seen = _Seen(
                at, await rule_store.all_rules(connection), await store.open_places(connection)
            )
            seen.failing = levels.by_tenant(await level_store.failing(connection))
            seen.untold = await log_store.untold_failures(connection)
            pems = levels.by_tenant(await level_store.pems(connection))
        for tenant_id, found in pems.items():
            seen.ends[tenant_id] = self._ends(found)
            # Tenants give certificates, as many as they like within bounds.
            await asyncio.sleep(0)
        places = {tenant_id for tenant_id, _ in seen.opened}
        for tenant_id in {*seen.failing, *seen.ends, *seen.untold, *places}:
            await self._guarded(tenant_id, "levels", self._settle_tenant, tenant_id, seen)
        root = self._tenants.root
        if root is not None:
            for kind, settle in (
                (CERTIFICATE_ENDS, self._settle_own_certificates),
                (BACKUP_TOO_OLD, self._settle_backups),
                (WITNESS_AWAY, self._settle_witnesses),
            ):
                await self._guarded(root.id, kind, settle, root, seen)
        await self._part("digests", self._tell_digests, at, seen.said)
        await self._part("old", self._forget, at)

    async def _part(self, name: str, part: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Does a part of a look; one that is broken keeps no other one waiting."""
        try:
            await part(*arguments)
        except Exception as error:
            log.warning("part of a look at alerts failed", part=name, error=brief(error))
            _FAILED.labels(name).inc()

    async def _forget(self, at: datetime) -> None:
        async with self._system() as connection:
            await store.forget(connection, at - KEPT, _MOST)
            counted = await store.counted(connection)
        for kind in KINDS:
            _OPEN.labels(kind).set(counted.get(kind, 0))

    def _ends(self, pems: Sequence[level_store.Pem]) -> list[levels.Ending]:
        """When certificates of forwarders end, of those that can be read."""
        found = []
        for pem in pems:
            try:
                found.append(levels.end_of(pem))
                self._unreadable.discard(pem.id)
            except Exception as error:
                _FAILED.labels(CERTIFICATE_ENDS).inc()
                if pem.id not in self._unreadable:
                    self._unreadable.add(pem.id)
                    log.warning(
                        "certificates of a forwarder unreadable",
                        forwarder=str(pem.id),
                        error=brief(error),
                    )
        return found

    async def _settle_tenant(self, tenant_id: UUID, seen: _Seen) -> None:
        """The forwarders of a tenant, and what of its open alerts nobody else looks after."""
        node = self._tenants.known(tenant_id)
        if node is None or node.going:
            return
        opened = {kind for one, kind in seen.opened if one == tenant_id}
        rules = self._rules(node, seen.said)
        for kind in sorted(opened):
            if not rules.rule(kind).enabled:
                await self._settle(node, kind, lambda _: (), seen.at)
        if node.status != "active":
            return
        failing, ends = seen.failing.get(tenant_id, ()), seen.ends.get(tenant_id, ())
        if failing or FORWARDER_FAILING in opened:
            await self._settle(
                node,
                FORWARDER_FAILING,
                lambda rule: levels.failing(failing, rule, seen.at),
                seen.at,
            )
        if node.kind != "root":
            await self._settle_certificates(node, ends, seen)
        for kind in entries.COUNTED:
            if kind in opened:
                async with self._database.transaction(Scope.of(tenant_id)) as connection:
                    await entries.recount(connection, node, kind, rules, self._board, seen.at)
        rule = rules.rule(ATTESTATION_FAILED)
        if tenant_id in seen.untold and rule.enabled and not rule.is_paused(seen.at):
            async with self._database.transaction(Scope.of(tenant_id)) as connection:
                await entries.settle_devices(connection, node, rules, self._board, seen.at)

    async def _settle_certificates(
        self,
        node: TenantNode,
        ends: Sequence[levels.Ending],
        seen: _Seen,
    ) -> None:
        rule = self._rules(node, seen.said).rule(CERTIFICATE_ENDS)
        is_open = (node.id, CERTIFICATE_ENDS) in seen.opened
        if is_open or levels.certificates(ends, rule, seen.at):
            await self._settle(
                node,
                CERTIFICATE_ENDS,
                lambda rule: levels.certificates(ends, rule, seen.at),
                seen.at,
            )

    async def _settle_own_certificates(self, root: TenantNode, seen: _Seen) -> None:
        """Those of the service itself, with those of the root tenant's forwarders."""
        ends = [*levels.ends_of_files(self._files), *seen.ends.get(root.id, ())]
        await self._settle_certificates(root, ends, seen)

    async def _settle_backups(self, root: TenantNode, seen: _Seen) -> None:
        rules = self._rules(root, seen.said)
        async with self._system() as connection:
            newest = await level_store.newest_backup(connection)
        held = levels.backups(newest, rules.rule(BACKUP_TOO_OLD), seen.at)
        if held or (root.id, BACKUP_TOO_OLD) in seen.opened:
            await self._settle(
                root,
                BACKUP_TOO_OLD,
                lambda rule: levels.backups(newest, rule, seen.at),
                seen.at,
            )

    async def _settle_witnesses(self, root: TenantNode, seen: _Seen) -> None:
        away = self._away()
        is_open = (root.id, WITNESS_AWAY) in seen.opened
        if not away and not is_open:
            return
        async with self._database.transaction(Scope.of(root.id)) as connection:
            opened = set(await store.open_of(connection, root.id, WITNESS_AWAY))
        held = levels.witnesses(
            away, opened, self._rules(root, seen.said).rule(WITNESS_AWAY), seen.at
        )
        if held or is_open:
            await self._settle(
                root,
                WITNESS_AWAY,
                lambda rule: levels.witnesses(away, opened, rule, seen.at),
                seen.at,
            )

    async def _settle(
        self,
        node: TenantNode,
        kind: str,
        find: Callable[[Rule], Sequence[Finding]],
        at: datetime,
    ) -> None:
        """Settles by the rules of this moment, which nobody changes meanwhile."""
        line = self._tenants.line(node.id)
        ids = [one.id for one in line]
        async with self._database.system_transaction(
            "rules of tenants above count below"
        ) as connection:
            await rule_store.hold_rules(connection, ids)
            rules = working(node, line, await rule_store.rules_of(connection, ids))
            await self._board.settle(connection, node, kind, rules, find(rules.rule(kind)), at)

    async def _tell_digests(self, at: datetime, said: Mapping[UUID, Rules]) -> None:
        async with self._system() as connection:
            due = await store.digests_due(connection, at, _MOST)
        for tenant_id in due:
            await self._guarded(tenant_id, "digest", self._tell_digest, tenant_id, said, at)

    async def _tell_digest(self, tenant_id: UUID, said: Mapping[UUID, Rules], at: datetime) -> None:
        node = self._tenants.known(tenant_id)
        if node is None or node.going:
            return
        rules = self._rules(node, said)
        paused = [kind for kind, rule in rules.rules.items() if rule.is_paused(at)]
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            taken, left_out_at = await store.take_digest(connection, tenant_id, at)
            if not taken:
                return
            alerts, number, opened = await store.to_tell(
                connection, tenant_id, paused, left_out_at, MOST_LINES
            )
            if alerts and not await self._notices.add(
                connection,
                tenant_id,
                digest(alerts, number, opened, node.name),
                DIGEST,
                addresses=rules.emails,
                roles=rules.roles,
            ):
                # It is tried again in an hour.
                await store.note_digest(
                    connection, tenant_id, at - DIGEST_EVERY + _DIGEST_AGAIN, left_out_at
                )

    async def _count_forever(self) -> None:
        """Counts the devices of organisations, one after the other."""
        outage = Repeated(log, "devices not counted for alerts")
        while True:
            begin_background_call()
            try:
                if self.leads:
                    await self.count_all()
                outage.worked()
            except Exception as error:
                outage.failed(error)
            await asyncio.sleep(_LOOK_SECONDS)

    async def count_all(self) -> None:
        """Counts the devices of all organisations whose time has come."""
        at = self._clock()
        orgs = set(self._tenants.organisations())
        for gone in self._count_at.keys() - orgs:
            del self._count_at[gone]
        # The first counts of a process are spread over the first hour.
        for number, new in enumerate(sorted(orgs - self._count_at.keys())):
            self._count_at[new] = at + min(number * _FIRST_PAUSE, _FLEET)
        due = sorted(one for one in orgs if self._count_at[one] <= at)
        if not due:
            return
        async with self._system() as connection:
            opened = await store.open_places(connection)
        for org_id in due:
            if not self.leads:
                return
            kinds = {kind for kind in _FLEET_KINDS if (org_id, kind) in opened}
            self._count_at[org_id] = self._clock() + await self._counted(org_id, kinds)
            await asyncio.sleep(_FLEET_PAUSE_SECONDS)

    async def _counted(self, org_id: UUID, opened: Collection[str]) -> timedelta:
        """Counts an organisation's devices; answers when that is done again."""
        try:
            ends = await self._count(org_id, opened)
        except AwayError as away:
            log.info("devices not counted for alerts", tenant=str(org_id), waits_for=away.context)
            return _FLEET_AGAIN
        except Exception as error:
            log.warning("devices not counted for alerts", tenant=str(org_id), error=brief(error))
            _FAILED.labels("devices").inc()
            return _FLEET_AGAIN
        return _FLEET_ENDS if ends else _FLEET

    async def _count(self, org_id: UUID, opened: Collection[str]) -> bool:
        """Counts an organisation's devices; answers whether an open alert's condition has ended."""
        node = self._tenants.known(org_id)
        if node is None or node.status != "active":
            return False
        at = self._clock()
        line = self._tenants.line(org_id)
        async with self._system() as connection:
            said = await rule_store.rules_of(connection, [one.id for one in line])
        rules = working(node, line, said)
        wanted = [kind for kind in _FLEET_KINDS if rules.rule(kind).counts(at)]
        if not wanted:
            return False
        days = rules.rule(DEVICES_NOT_SEEN).of(DEVICES_NOT_SEEN, "days")
        hours = rules.rule(POLICY_BEHIND).of(POLICY_BEHIND, "hours")
        counts = await count(self._sources, org_id, days, hours, at)
        found = {DEVICES_NOT_SEEN: counts.not_seen, POLICY_BEHIND: counts.far_behind}
        ends = False
        for kind in wanted:
            holds = bool(found[kind](rules.rule(kind)))
            ends |= kind in opened and not holds
            if holds or kind in opened:
                await self._settle(node, kind, found[kind], at)
        return ends
