"""The fleet as administrators see it: three feeds, kept beside what the devices report."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, get_args
from uuid import UUID

import grpc

from contract.events.attestation import VerdictName
from evergreen.v1 import (
    attestation_pb2,
    attestation_pb2_grpc,
    enrollment_pb2,
    policy_pb2,
    policy_pb2_grpc,
)
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database
from servicekit.data.quarantine import place, readable, write_readable
from servicekit.errors import DomainError, not_found
from servicekit.feeds.feed import ANSWER_SECONDS, Follower, asking
from servicekit.ids import Clock, now
from servicekit.observability import logs
from servicekit.observability.logs import brief
from servicekit.peers.devices import DeviceAccess, Mirror
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import PAGE_BYTES
from services.telemetry.erasure import store as erasure_store
from services.telemetry.events import store as event_store
from services.telemetry.events.domain import EventFilter, StoredEvent
from services.telemetry.inventory import store
from services.telemetry.inventory.domain import (
    AppliedVersion,
    BootGate,
    BootVerdict,
    DeviceDetail,
    DeviceFilter,
    DevicePage,
    DeviceSummary,
    Membership,
    NamePosition,
    PolicyInForce,
    RegisteredDevice,
    Restricted,
)
from services.telemetry.inventory.query import DeviceQuery

log = logs.get(__name__)

_DEVICES_FEED: Final = "devices and memberships"
"""The position of a release that knows labels and groups: once, it reads of all devices what a
release that did not know them had passed over (`devices`)."""
_APPLIED: Final = place("telemetry", "follow_applied")
_VERDICTS: Final = place("telemetry", "follow_verdicts")
_GATES: Final = place("telemetry", "follow_gates")
_RESTRICTED: Final = place("telemetry", "follow_restricted")
_VERDICT_NAMES: Final[tuple[str, ...]] = get_args(VerdictName)
"""From the least to the most."""
LATEST_EVENTS: Final = 20
_REFRESH_SECONDS: Final = 1.0
_GROUP_BYTES: Final = 38
"""Of a group's id in a message."""
_CONNECTED: Final = frozenset({"active", "decommissioned"})
"""In these states of the registry a device has called to enroll."""


class Inventory:
    """The devices of the registry, with what they report."""

    def __init__(
        self,
        database: Database,
        devices: DeviceAccess,
        policy: policy_pb2_grpc.PolicyInternalServiceAsyncStub,
        attestation: attestation_pb2_grpc.AttestationInternalServiceAsyncStub,
        tenants: TenantDirectory,
        online_for: timedelta,
        clock: Clock,
        wait_seconds: int,
    ) -> None:
        self._database = database
        self._policy = policy
        self._attestation = attestation
        self._tenants = tenants
        self._online_for = online_for
        self._clock = clock
        self._ask_from: dict[Follower, float] = {}
        self._devices = devices
        self.applied = Follower(
            "applied versions",
            self._fetch_applied,
            asking(
                policy.ListAppliedVersions,
                policy_pb2.ListAppliedVersionsRequest(),
                "versions",
                seconds=wait_seconds,
            ),
        )

        self.verdicts = Follower(
            "verdicts",
            self._fetch_verdicts,
            asking(
                attestation.ListVerdictChanges,
                attestation_pb2.ListVerdictChangesRequest(),
                "verdicts",
                # As near as policy.
                seconds=wait_seconds,
            ),
        )

        self.gates = Follower(
            "attestation gates",
            self._fetch_gates,
            asking(
                policy.ListAttestationGateChanges,
                policy_pb2.ListAttestationGateChangesRequest(),
                "gates",
                seconds=wait_seconds,
            ),
        )

        self.restricted = Follower(
            "restricted devices",
            self._fetch_restricted,
            asking(
                policy.ListRestrictedDeviceChanges,
                policy_pb2.ListRestrictedDeviceChangesRequest(),
                "devices",
                seconds=wait_seconds,
            ),
        )

    async def load(self) -> None:
        """Goes on where the feeds were left."""
        async with self._database.system_transaction("the feed tells of all tenants") as connection:
            self.applied.start_at(await store.read_cursor(connection, "applied"))
            self.verdicts.start_at(await store.read_cursor(connection, "verdicts"))
            self.gates.start_at(await store.read_cursor(connection, "gates"))
            self.restricted.start_at(await store.read_cursor(connection, "restricted"))

    def online_since(self) -> datetime:
        """A device that was heard of since then is online."""
        return self._clock() - self._online_for

    def now(self) -> datetime:
        """The time as of which devices are shown."""
        return self._clock()

    async def list_devices(
        self,
        call: Call,
        org_id: UUID | None,
        wanted: DeviceFilter,
        after: NamePosition | None,
        limit: int,
    ) -> DevicePage:
        """The next devices of the caller's subtree, or of one org in it, by name.

        Raises:
            DomainError: NOT_FOUND for an org that is not in the subtree.
        """
        scope = await self._tenants.query_scope(call.caller, org_id)
        await self.refresh()
        async with self._database.transaction(scope) as connection:
            page = await store.list_devices(
                connection,
                DeviceQuery(scope, wanted, after, limit, self.online_since(), self.now()),
            )
        return page.within(_size, lambda device: device.position, PAGE_BYTES)

    async def get_device(
        self, call: Call, device_id: UUID
    ) -> tuple[DeviceDetail, list[StoredEvent], PolicyInForce | None]:
        """A device of the caller's subtree with its latest events and the policy in force for it.

        That one is `None` where policy cannot be asked.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._tenants.query_scope(call.caller)
        await self.refresh()
        async with self._database.transaction(scope) as connection:
            device = await store.get_device(connection, scope, device_id, self.now())
            if device is None:
                raise not_found("device", device_id)
            latest = await event_store.list_events(
                connection, scope, EventFilter(device_id=device_id), None, LATEST_EVENTS
            )
        return device, [*latest.items], await self._in_force(device)

    async def _in_force(self, device: DeviceDetail) -> PolicyInForce | None:
        if asyncio.get_running_loop().time() < self._ask_from.get(self.applied, 0):
            return None
        request = policy_pb2.GetDevicePolicyRequest(
            tenant_id=str(device.summary.tenant_id), device_id=str(device.summary.id)
        )
        try:
            found = await self._policy.GetDevicePolicy(request, timeout=_REFRESH_SECONDS)
            return PolicyInForce(bool(found.envelope), update_channel(found.envelope))
        except (grpc.aio.AioRpcError, DomainError) as away:
            log.debug("device shown without policy", error=brief(away))
            return None

    async def refresh(self) -> None:
        """Asks two feeds once more: who has just admitted a device looks for it in the list.

        Verdicts come within a second by themselves. When a feed cannot be asked, the list shows
        what was heard last.
        """
        await asyncio.gather(self._ask(self._devices.follower), self._ask(self.applied))

    async def _ask(self, feed: Follower) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._ask_from.get(feed, 0):
            return
        try:
            async with asyncio.timeout(_REFRESH_SECONDS):
                await feed.refresh()
        except Exception as error:
            # Not asked again for a moment, so that lists stay quick while the other is away.
            self._ask_from[feed] = loop.time() + _REFRESH_SECONDS
            log.debug("lists served from last known state", error=brief(error))

    async def _fetch_applied(self, cursor: str) -> tuple[str, bool]:
        page = await self._policy.ListAppliedVersions(
            policy_pb2.ListAppliedVersionsRequest(cursor=cursor), timeout=ANSWER_SECONDS
        )
        found = readable(_APPLIED, page.versions, _applied, lambda version: version.device_id)
        versions = {
            version.device_id: version
            for version in found
            if not self._tenants.is_going(version.tenant_id)
        }
        if versions:
            await self._store_applied([*versions.values()], page.next_cursor)
        return page.next_cursor, page.more

    async def _store_applied(self, versions: Sequence[AppliedVersion], cursor: str) -> None:
        async def write(some: Sequence[AppliedVersion]) -> None:
            async with self._database.system_transaction(
                "the feed tells of all tenants"
            ) as connection:
                await store.store_applied(connection, some)
                # Only all of them bring the feed on.
                if len(some) == len(versions):
                    await store.store_cursor(connection, cursor, "applied")

        if not await write_readable(_APPLIED, versions, write, lambda v: v.device_id):
            # What is left out is not told once more.
            async with self._database.system_transaction(
                "the feed tells of all tenants"
            ) as connection:
                await store.store_cursor(connection, cursor, "applied")

    async def _fetch_verdicts(self, cursor: str) -> tuple[str, bool]:
        page = await self._attestation.ListVerdictChanges(
            attestation_pb2.ListVerdictChangesRequest(cursor=cursor), timeout=ANSWER_SECONDS
        )
        found = readable(_VERDICTS, page.verdicts, _verdict, lambda verdict: verdict.device_id)
        verdicts = {
            verdict.device_id: verdict
            for verdict in found
            if not self._tenants.is_going(verdict.tenant_id)
        }
        if verdicts:
            await self._store_verdicts([*verdicts.values()], page.next_cursor)
        return page.next_cursor, page.more

    async def _store_verdicts(self, verdicts: Sequence[BootVerdict], cursor: str) -> None:
        async def write(some: Sequence[BootVerdict]) -> None:
            async with self._database.system_transaction(
                "the feed tells of all tenants"
            ) as connection:
                await store.store_verdicts(connection, some)
                # Only all of them bring the feed on.
                if len(some) == len(verdicts):
                    await store.store_cursor(connection, cursor, "verdicts")

        if not await write_readable(_VERDICTS, verdicts, write, lambda v: v.device_id):
            # What is left out is not told once more.
            async with self._database.system_transaction(
                "the feed tells of all tenants"
            ) as connection:
                await store.store_cursor(connection, cursor, "verdicts")

    async def _fetch_gates(self, cursor: str) -> tuple[str, bool]:
        page = await self._policy.ListAttestationGateChanges(
            policy_pb2.ListAttestationGateChangesRequest(cursor=cursor), timeout=ANSWER_SECONDS
        )
        found = readable(_GATES, page.gates, _gate, lambda gate: gate.org_id)
        gates = {
            gate.tenant_id: gate for gate in found if not self._tenants.is_going(gate.tenant_id)
        }

        async def write(some: Sequence[BootGate]) -> None:
            async with self._database.system_transaction(
                "the feed tells of all tenants"
            ) as connection:
                await store.store_gates(connection, some)
                # Only all of them bring the feed on.
                if len(some) == len(gates):
                    await store.store_cursor(connection, page.next_cursor, "gates")

        if gates:
            await write_readable(_GATES, [*gates.values()], write, lambda gate: gate.tenant_id)
        return page.next_cursor, page.more

    async def _fetch_restricted(self, cursor: str) -> tuple[str, bool]:
        page = await self._policy.ListRestrictedDeviceChanges(
            policy_pb2.ListRestrictedDeviceChangesRequest(cursor=cursor), timeout=ANSWER_SECONDS
        )
        found = readable(_RESTRICTED, page.devices, _restricted, lambda one: one.device_id)
        devices = {one.device_id: one for one in found if not self._tenants.is_going(one.tenant_id)}

        async def write(some: Sequence[Restricted]) -> None:
            async with self._database.system_transaction(
                "the feed tells of all tenants"
            ) as connection:
                await store.store_restricted(connection, some)
                # Only all of them bring the feed on.
                if len(some) == len(devices):
                    await store.store_cursor(connection, page.next_cursor, "restricted")

        if devices:
            await write_readable(_RESTRICTED, [*devices.values()], write, lambda one: one.device_id)
        return page.next_cursor, page.more


def update_channel(envelope: bytes) -> str:
    """The update channel of a policy in its envelope; empty when that is."""
    if not envelope:
        return ""
    channel = ((json.loads(envelope).get("policy") or {}).get("updates") or {}).get("channel")
    return channel if isinstance(channel, str) else ""


def _registered(change: enrollment_pb2.DeviceChange) -> RegisteredDevice:
    enrolled = change.HasField("enrolled_at") and change.status in _CONNECTED
    return RegisteredDevice(
        id=UUID(change.device_id),
        tenant_id=UUID(change.tenant_id),
        status=change.status,
        serial=change.serial,
        model=change.model,
        registered_at=change.created_at.ToDatetime(tzinfo=UTC),
        enrolled_at=change.enrolled_at.ToDatetime(tzinfo=UTC) if enrolled else None,
        deleted=change.deleted,
        membership=_membership(change),
    )


def _size(device: DeviceSummary) -> int:
    """About how much a page has of a device, beyond what each has."""
    labels = sum(len(key) + len(value) for key, value in device.labels.items())
    return labels + _GROUP_BYTES * len(device.group_ids)


def _membership(change: enrollment_pb2.DeviceChange) -> Membership | None:
    if not change.HasField("membership"):
        return None
    return Membership(dict(change.membership.labels), tuple(map(UUID, change.membership.group_ids)))


async def _store_registered(connection: Connection, devices: Sequence[RegisteredDevice]) -> None:
    if gone := [(device.id, device.tenant_id) for device in devices if device.deleted]:
        await erasure_store.note_deleted(connection, gone)
    if staying := [device for device in devices if not device.deleted]:
        await erasure_store.note_back(connection, [device.id for device in staying], now())
        await store.store_registered(connection, staying)
        await store.store_memberships(connection, staying)


DEVICES: Final = Mirror(
    place=place("telemetry", "follow_devices"),
    make=_registered,
    device_of=lambda device: device.id,
    write=_store_registered,
    read_position=partial(store.read_cursor, feed=_DEVICES_FEED),
    write_position=partial(store.store_cursor, feed=_DEVICES_FEED),
)
"""What telemetry keeps of the registry: every device, for the list."""


def _applied(version: policy_pb2.AppliedVersion) -> AppliedVersion:
    return AppliedVersion(
        device_id=UUID(version.device_id),
        tenant_id=UUID(version.tenant_id),
        version=version.version,
        reported_at=version.reported_at.ToDatetime(tzinfo=UTC),
    )


def _verdict(verdict: attestation_pb2.DeviceVerdict) -> BootVerdict:
    return BootVerdict(
        device_id=UUID(verdict.device_id),
        tenant_id=UUID(verdict.tenant_id),
        verdict=verdict.verdict,
        attested_at=verdict.attested_at.ToDatetime(tzinfo=UTC),
    )


def _restricted(device: policy_pb2.RestrictedDevice) -> Restricted:
    return Restricted(UUID(device.device_id), UUID(device.tenant_id), device.restricted)


def _gate(gate: policy_pb2.AttestationGate) -> BootGate:
    asks = gate.mode not in {"", "OFF"}
    return BootGate(
        tenant_id=UUID(gate.org_id),
        below=_VERDICT_NAMES[: _VERDICT_NAMES.index(gate.at_least)] if asks else (),
        grace=timedelta(hours=gate.grace_hours),
    )
