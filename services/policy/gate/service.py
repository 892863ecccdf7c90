"""Lets administrators say what they ask of their devices' boots, and see who falls short."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from typing import Final
from uuid import UUID

from prometheus_client import Gauge

from contract.events.attestation import VerdictName
from contract.events.policy import AttestationGateUpdated
from evergreen.v1 import attestation_pb2, attestation_pb2_grpc
from servicekit.call import Call
from servicekit.data.postgres import Database, Scope
from servicekit.data.quarantine import place, readable, write_readable
from servicekit.etags import check_etag
from servicekit.feeds.feed import ANSWER_SECONDS, Follower, asking
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.observability.logs import Repeated, brief
from servicekit.peers.devices import DeviceAccess
from servicekit.peers.tenants import TenantDirectory, TenantNode
from servicekit.rpc.pagination import Page
from services.policy.gate import store
from services.policy.gate.domain import Counts, Demand, DeviceVerdict, Gate, Mode, ShortDevice

log = logs.get(__name__)

SHORT: Final = Gauge(
    "evergreen_policy_attestation_short_devices",
    "Devices in use that fall short of what is asked of their boots, by the gate's mode.",
    ["mode"],
)
_VERDICTS: Final = place("policy", "follow_verdicts")
_COUNT_SECONDS: Final = 60.0
_REFRESH_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Change:
    """What an update changes; `None` leaves a field as it is."""

    mode: Mode | None = None
    at_least: VerdictName | None = None
    grace_hours: int | None = None


@dataclass(frozen=True, slots=True)
class Preview:
    """Who would fall short."""

    demand: Demand
    counts: Counts
    page: Page[ShortDevice, UUID]


class Gates:
    """What organisations ask, and the verdicts that answer it. Its feed is run by the service."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        attestation: attestation_pb2_grpc.AttestationInternalServiceAsyncStub,
        devices: DeviceAccess,
        clock: Clock,
        wait_seconds: int,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._attestation = attestation
        self._devices = devices
        self._clock = clock
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

    async def load(self) -> None:
        """Goes on where the feed of verdicts was left."""
        async with self._database.system_transaction("the feed tells of all tenants") as connection:
            self.follower.start_at(await store.read_cursor(connection))

    async def get(self, call: Call, org_id: UUID | None) -> Gate:
        """What an organisation of the caller's subtree asks; the caller's own without.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT when it is no organisation.
        """
        org = await self._org(call, org_id)
        async with self._database.transaction(Scope.of(org.id)) as connection:
            return await store.find_gate(connection, org.id)

    async def update(self, call: Call, org_id: UUID | None, change: Change) -> Gate:
        """Says what an organisation asks. What changes nothing writes nothing.

        Raises:
            DomainError: as `get`; ABORTED when its etag is another.
        """
        org = await self._org(call, org_id)
        async with self._database.transaction(Scope.of(org.id)) as connection:
            before = await store.find_gate(connection, org.id, for_update=True)
            check_etag(before.etag)
            demand = _changed(before.demand, change.at_least, change.grace_hours)
            after = replace(before, mode=change.mode or before.mode, demand=demand)
            if after == before:
                return before
            after = replace(after, updated_at=self._clock())
            await store.write_gate(connection, after)
            event = AttestationGateUpdated(
                id=org.id, before=before.snapshot(), after=after.snapshot()
            )
            await self._outbox.append(connection, CloudEvent(event, org.id))
        return after

    async def preview(
        self,
        call: Call,
        org_id: UUID | None,
        wanted: Change,
        after: UUID | None,
        limit: int,
    ) -> Preview:
        """Who would fall short of what is wanted, or of what the organisation asks already.

        Raises:
            DomainError: as `get`.
        """
        org = await self._org(call, org_id)
        await self._refresh()
        now = self._clock()
        async with self._database.transaction(Scope.of(org.id)) as connection:
            gate = await store.find_gate(connection, org.id)
            demand = _changed(gate.demand, wanted.at_least, wanted.grace_hours)
            return Preview(
                demand=demand,
                counts=await store.count(connection, org.id, demand, now),
                page=await store.list_short(connection, org.id, demand, now, after, limit),
            )

    async def watch(self) -> None:
        """Counts who falls short once a minute, for as long as the service lives."""
        outage = Repeated(log, "devices that fall short are not counted")
        while True:
            try:
                await self.count()
                outage.worked()
            except Exception as error:
                outage.failed(error)
            await asyncio.sleep(_COUNT_SECONDS)

    async def count(self) -> None:
        """Counts the devices of the installation that fall short for the metric."""
        async with self._database.system_transaction("the metric counts all tenants") as connection:
            found = await store.count_short(connection, self._clock())
        SHORT.labels(Mode.OBSERVE).set(found.get(Mode.OBSERVE, 0))

    async def _refresh(self) -> None:
        """Asks both feeds once more: who has just admitted a device looks for it."""
        try:
            async with asyncio.timeout(_REFRESH_SECONDS):
                await asyncio.gather(self._devices.follower.refresh(), self.follower.refresh())
        except Exception as error:
            log.debug("preview of last known state", error=brief(error))

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
                    await store.write_verdicts(connection, some)
                # Only all of them bring the feed on.
                if len(some) == len(verdicts):
                    await store.write_cursor(connection, cursor)

        if not await write_readable(_VERDICTS, verdicts, write, lambda v: v.device_id):
            # What is left out is not told once more.
            async with self._database.system_transaction(
                "the feed tells of all tenants"
            ) as connection:
                await store.write_cursor(connection, cursor)


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
