"""Lets administrators say what they ask of devices' boots, and what those get that fall short."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Protocol
from uuid import UUID

from prometheus_client import Gauge

from contract.events.attestation import VerdictName
from contract.events.policy import AttestationGateUpdated
from evergreen.v1 import attestation_pb2, attestation_pb2_grpc
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.data.quarantine import place, readable, write_readable
from servicekit.errors import invalid_field, not_found, unavailable
from servicekit.etags import check_etag
from servicekit.feeds.changes import Changes
from servicekit.feeds.feed import ANSWER_SECONDS, Follower, asking
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.observability.logs import Repeated, brief
from servicekit.peers.devices import DeviceAccess
from servicekit.peers.tenants import TenantDirectory, TenantNode
from servicekit.rpc.chain import check_fresh
from servicekit.rpc.pagination import Page
from services.policy.gate import store
from services.policy.gate.domain import (
    MOST_GATES,
    Counts,
    Demand,
    DeviceVerdict,
    Gate,
    GatePosition,
    Mode,
    ShortDevice,
    check_preview,
    too_many_gates,
)
from services.policy.gate.enforcement import Enforcement
from services.policy.stamps.numbers import lock_counter
from services.policy.targets.service import Groups
from services.policy.targets.store import known_groups

log = logs.get(__name__)

SHORT: Final = Gauge(
    "evergreen_policy_attestation_short_devices",
    "Devices in use that fall short of what is asked of their boots, by the gate's mode.",
    ["mode"],
)
_VERDICTS: Final = place("policy", "follow_verdicts")
_COUNT_SECONDS: Final = 60.0
_REFRESH_SECONDS: Final = 1.0
_FRESH_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Change:
    """What an update changes; `None` leaves a field as it is."""

    mode: Mode | None = None
    at_least: VerdictName | None = None
    grace_hours: int | None = None
    otherwise_policy_id: UUID | None = None
    max_percent: int | None = None
    expected_devices: int | None = None
    """So many devices fell short in the preview, for which the gate is enforced."""

    def of(self, gate: Gate) -> Gate:
        """The gate as it would be."""
        return replace(
            gate,
            mode=self.mode or gate.mode,
            demand=_changed(gate.demand, self.at_least, self.grace_hours),
            otherwise_policy_id=self.otherwise_policy_id or gate.otherwise_policy_id,
            max_percent=self.max_percent or gate.max_percent,
        )


@dataclass(frozen=True, slots=True)
class Preview:
    """Who would fall short."""

    demand: Demand
    counts: Counts
    page: Page[ShortDevice, UUID]


class Publishing(Protocol):
    """What else an organisation says of giving devices something new."""

    async def check_enforcement(self, connection: Connection, call: Call, tenant_id: UUID) -> None:
        """Refuses to enforce a gate now, which gives devices another policy.

        Raises:
            DomainError: FAILED_PRECONDITION in a freeze; PERMISSION_DENIED where publishes need a
                second person, and the caller is no Owner.
        """

    async def check_end(self, connection: Connection, call: Call, tenant_id: UUID) -> None:
        """Refuses to end an enforced gate now, which gives devices their own policy back.

        Raises:
            DomainError: PERMISSION_DENIED in a freeze, and where publishes need a second person,
                when the caller is no Owner.
        """


class Gates:
    """What organisations ask, and the verdicts that answer it. Its feed is run by the service."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        attestation: attestation_pb2_grpc.AttestationInternalServiceAsyncStub,
        devices: DeviceAccess,
        groups: Groups,
        changes: Changes,
        publishing: Publishing,
        clock: Clock,
        wait_seconds: int,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._attestation = attestation
        self._devices = devices
        self._groups = groups
        self._changes = changes
        self._publishing = publishing
        self._clock = clock
        self._enforcement = Enforcement(database, outbox, changes, clock, self.fresh)
        self.follower = Follower(
            "policy verdicts",
            self._fetch,
            asking(
                attestation.ListVerdictChanges,
                attestation_pb2.ListVerdictChangesRequest(),
                "verdicts",
                seconds=wait_seconds,
            ),
        )

    @property
    def enforcement(self) -> Enforcement:
        """Who has the other policy of which gate; its task is run by the service."""
        return self._enforcement

    async def load(self) -> None:
        """Goes on where the feed of verdicts was left."""
        async with self._database.system_transaction("the feed tells of all tenants") as connection:
            self.follower.start_at(await store.read_cursor(connection))

    async def get(self, call: Call, org_id: UUID | None, group_id: UUID | None = None) -> Gate:
        """What is asked of an organisation of the caller's subtree, or of a group of it; the
        caller's own without.

        Raises:
            DomainError: NOT_FOUND, also for a group; INVALID_ARGUMENT when it is no organisation.
        """
        org = await self._org(call, org_id)
        async with self._database.transaction(Scope.of(org.id)) as connection:
            await _check_group(connection, org.id, group_id)
            return await store.find_gate(connection, org.id, group_id)

    async def list_gates(
        self,
        call: Call,
        org_id: UUID | None,
        mode: Mode | None,
        after: GatePosition | None,
        limit: int,
        *,
        only_held: bool,
    ) -> Page[Gate, GatePosition]:
        """The gates of a tenant and of those below it; of the caller's whole subtree without.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._tenants.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            return await store.list_gates(
                connection, scope, mode, after, limit, only_held=only_held
            )

    async def update(
        self, call: Call, org_id: UUID | None, group_id: UUID | None, change: Change
    ) -> Gate:
        """Says what is asked, and what devices get that fall short. What changes nothing writes
        nothing.

        A gate is enforced for no more devices than a preview showed, and for no greater share than
        is typed.

        Raises:
            DomainError: as `get`; ABORTED when its etag is another, or more devices fall short than
                in the preview; FAILED_PRECONDITION when they are too great a share, in a freeze, or
                when the other policy is not in force for anything; PERMISSION_DENIED to enforce it
                or to end that without an Owner where publishes need a second person, to end it in a
                freeze, and to change an enforced gate long after the login.
        """
        org = await self._org(call, org_id)
        is_fresh = False
        if change.mode is Mode.ENFORCE or change.expected_devices is not None:
            await self._ask()
            is_fresh = True
        elif change.mode is not None:
            # Devices of a gate that ends may fall short of another one.
            is_fresh = await self.fresh()
        async with self._database.transaction(Scope.of(org.id)) as connection:
            await _check_group(connection, org.id, group_id)
            await store.lock_gates(connection, org.id)
            before = await store.find_gate(connection, org.id, group_id)
            check_etag(before.etag)
            after = change.of(before)
            enforces = after.mode is Mode.ENFORCE
            if enforces:
                after = await self._checked(connection, call, before, after, change)
            else:
                after = replace(after, held="")
                if before.mode is Mode.ENFORCE:
                    await self._publishing.check_end(connection, call, org.id)
            if after == before:
                return before
            if before.mode is Mode.ENFORCE and call.caller.token is None:
                check_fresh(call.caller, self._clock())
            has_more = enforces or after.otherwise_policy_id or after.max_percent or group_id
            if after.id is None and has_more:
                after = replace(after, id=new_id())
            now = self._clock()
            after = replace(after, updated_at=now)
            await store.write_gate(connection, after)
            event = AttestationGateUpdated(
                id=org.id, before=before.snapshot(), after=after.snapshot()
            )
            await self._outbox.append(connection, CloudEvent(event, org.id))
            if Mode.ENFORCE in {before.mode, after.mode}:
                await self._enforcement.settle(connection, org.id, now, is_fresh=is_fresh)
                after = await store.find_gate(connection, org.id, group_id)
        await self._changes.catch_up()
        return after

    async def _checked(
        self, connection: Connection, call: Call, before: Gate, after: Gate, change: Change
    ) -> Gate:
        """A gate that is to be enforced, with what devices get that fall short.

        What is enforced already needs no preview again.
        """
        if replace(after, held="") == before:
            return before
        counts = await store.count(connection, after, after.demand, self._clock())
        check_preview(after, counts, change.expected_devices)
        assert after.otherwise_policy_id is not None
        if await store.count_enforced(connection, after) >= MOST_GATES:
            raise too_many_gates()
        # A publish of it comes before or after.
        await lock_counter(connection, after.tenant_id)
        await self._publishing.check_enforcement(connection, call, after.tenant_id)
        version = await store.in_force(connection, after.tenant_id, after.otherwise_policy_id)
        if version is None:
            raise invalid_field(
                "otherwisePolicyId",
                "must be a policy of the organisation that is in force for something: publish it to"
                " a group, which may have no members",
            )
        return replace(after, otherwise_version=version, held="")

    async def preview(
        self,
        call: Call,
        org_id: UUID | None,
        group_id: UUID | None,
        wanted: Change,
        after: UUID | None,
        limit: int,
    ) -> Preview:
        """Who would fall short of what is wanted, or of what is asked already.

        Raises:
            DomainError: as `get`.
        """
        org = await self._org(call, org_id)
        await self._refresh()
        now = self._clock()
        async with self._database.transaction(Scope.of(org.id)) as connection:
            await _check_group(connection, org.id, group_id)
            gate = await store.find_gate(connection, org.id, group_id)
            demand = wanted.of(gate).demand
            return Preview(
                demand=demand,
                counts=await store.count(connection, gate, demand, now),
                page=await store.list_short(connection, gate, demand, now, after, limit),
            )

    async def watch(self) -> None:
        """Counts who falls short once a minute, for as long as the service lives."""
        outage = Repeated(log, "devices that fall short are not counted")
        while True:
            try:
                await note_short(self._database, self._clock())
                outage.worked()
            except Exception as error:
                outage.failed(error)
            await asyncio.sleep(_COUNT_SECONDS)

    async def fresh(self) -> bool:
        """Reads what the registry and attestation tell; answers whether it could."""
        return await self._refresh(_FRESH_SECONDS)

    async def _ask(self) -> None:
        if not await self.fresh():
            raise unavailable(
                "the device registry or attestation is not available; try again later"
            )

    async def _refresh(self, seconds: float = _REFRESH_SECONDS) -> bool:
        """Asks the feeds once more: who has just admitted a device looks for it."""
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(
                    self._devices.follower.refresh(),
                    self._groups.follower.refresh(),
                    self.follower.refresh(),
                )
        except Exception as error:
            log.debug("last known state of devices", error=brief(error))
            return False
        return True

    async def _org(self, call: Call, org_id: UUID | None) -> TenantNode:
        return await self._tenants.require_org(call.caller, org_id or UUID(call.caller.tenant_id))

    async def _fetch(self, cursor: str) -> tuple[str, bool]:
        page = await self._attestation.ListVerdictChanges(
            attestation_pb2.ListVerdictChangesRequest(cursor=cursor), timeout=ANSWER_SECONDS
        )
        found = readable(_VERDICTS, page.verdicts, _verdict, lambda verdict: verdict.device_id)
        verdicts = {
            verdict.device_id: verdict
            for verdict in found
            if not self._tenants.is_going(verdict.tenant_id)
        }
        if page.verdicts:
            await self._store([*verdicts.values()], page.next_cursor)
        return page.next_cursor, page.more

    async def _store(self, verdicts: Sequence[DeviceVerdict], cursor: str) -> None:
        async def write(some: Sequence[DeviceVerdict]) -> None:
            async with self._database.system_transaction(
                "the feed tells of all tenants"
            ) as connection:
                if some:
                    await store.write_verdicts(connection, some, self._clock())
                # Only all of them bring the feed on.
                if len(some) == len(verdicts):
                    await store.write_cursor(connection, cursor)

        written = await write_readable(_VERDICTS, verdicts, write, lambda v: v.device_id)
        self._enforcement.tell(one.tenant_id for one in verdicts)
        if not written:
            # What is left out is not told once more.
            async with self._database.system_transaction(
                "the feed tells of all tenants"
            ) as connection:
                await store.write_cursor(connection, cursor)


async def note_short(database: Database, now: datetime) -> None:
    """Counts the devices of the installation that fall short for the metric."""
    async with database.system_transaction("the metric counts all tenants") as connection:
        found = await store.count_short(connection, now)
    for mode in (Mode.OBSERVE, Mode.ENFORCE):
        SHORT.labels(mode).set(found.get(mode, 0))


async def _check_group(connection: Connection, org_id: UUID, group_id: UUID | None) -> None:
    if group_id is not None and not await known_groups(connection, org_id, [group_id]):
        raise not_found("group", str(group_id))


def _changed(demand: Demand, at_least: VerdictName | None, grace_hours: int | None) -> Demand:
    return Demand(
        at_least or demand.at_least, demand.grace_hours if grace_hours is None else grace_hours
    )


def _verdict(verdict: attestation_pb2.DeviceVerdict) -> DeviceVerdict:
    return DeviceVerdict(
        device_id=UUID(verdict.device_id),
        tenant_id=UUID(verdict.tenant_id),
        verdict=verdict.verdict,
        attested_at=verdict.attested_at.ToDatetime(tzinfo=UTC),
    )
