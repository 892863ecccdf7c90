"""The fleet as administrators see it: two feeds, kept beside what the devices report."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar
from uuid import UUID

import grpc

from evergreen.v1 import (
    enrollment_pb2,
    enrollment_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
)
from servicekit import logs
from servicekit.call import Caller
from servicekit.errors import DomainError, not_found
from servicekit.feed import ANSWER_SECONDS, Follower, asking
from servicekit.ids import Clock
from servicekit.logs import brief
from servicekit.postgres import Connection, Database
from servicekit.tenants import TenantDirectory
from services.telemetry.domain.views import (
    AppliedVersion,
    DeviceDetail,
    DeviceFilter,
    DevicePage,
    EventFilter,
    NamePosition,
    RegisteredDevice,
    StoredEvent,
)
from services.telemetry.store import events as event_store
from services.telemetry.store import inventory as store
from services.telemetry.store.query import DeviceQuery

log = logs.get(__name__)

T = TypeVar("T")
LATEST_EVENTS: Final = 20
_REFRESH_SECONDS: Final = 1.0
_CONNECTED: Final = frozenset({"active", "decommissioned"})
"""In these states of the registry a device has called to enroll."""


class Inventory:
    """The devices of the registry, with what they report."""

    def __init__(
        self,
        database: Database,
        registry: enrollment_pb2_grpc.EnrollmentInternalServiceAsyncStub,
        policy: policy_pb2_grpc.PolicyInternalServiceAsyncStub,
        tenants: TenantDirectory,
        online_for: timedelta,
        clock: Clock,
    ) -> None:
        self._database = database
        self._registry = registry
        self._policy = policy
        self._tenants = tenants
        self._online_for = online_for
        self._clock = clock
        self._ask_from: dict[Follower, float] = {}
        self.devices = Follower(
            "devices",
            self._fetch_devices,
            asking(
                registry.ListDeviceChanges, enrollment_pb2.ListDeviceChangesRequest(), "devices"
            ),
        )
        self.applied = Follower(
            "applied versions",
            self._fetch_applied,
            asking(policy.ListAppliedVersions, policy_pb2.ListAppliedVersionsRequest(), "versions"),
        )

    async def load(self) -> None:
        """Goes on where the feeds were left."""
        async with self._database.transaction() as connection:
            cursors = await store.cursors(connection)
        self.devices.start_at(cursors.get("devices", ""))
        self.applied.start_at(cursors.get("applied", ""))

    def online_since(self) -> datetime:
        """A device that was heard of since then is online."""
        return self._clock() - self._online_for

    async def list_devices(
        self,
        caller: Caller,
        org_id: str,
        wanted: DeviceFilter,
        after: NamePosition | None,
        limit: int,
    ) -> DevicePage:
        """The next devices of the caller's subtree, or of one org in it, by name.

        Raises:
            DomainError: NOT_FOUND for an org that is not in the subtree.
        """
        scope = await self._tenants.query_scope(caller, org_id)
        await self.refresh()
        async with self._database.transaction(scope) as connection:
            return await store.list_devices(
                connection, DeviceQuery(scope, wanted, after, limit, self.online_since())
            )

    async def get_device(
        self, caller: Caller, device_id: UUID
    ) -> tuple[DeviceDetail, list[StoredEvent], str]:
        """A device of the caller's subtree with its latest events and its update channel.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._tenants.query_scope(caller, "")
        await self.refresh()
        async with self._database.transaction(scope) as connection:
            device = await store.get_device(connection, scope, device_id)
            if device is None:
                raise not_found("device", str(device_id))
            latest = await event_store.list_events(
                connection, scope, EventFilter(device_id=device_id), None, LATEST_EVENTS
            )
        return device, latest.events, await self._channel(device)

    async def _channel(self, device: DeviceDetail) -> str:
        """The update channel that the device's policy says; empty when policy cannot be asked."""
        if asyncio.get_running_loop().time() < self._ask_from.get(self.applied, 0):
            return ""
        request = policy_pb2.GetDevicePolicyRequest(
            tenant_id=str(device.summary.tenant_id), device_id=str(device.summary.id)
        )
        try:
            found = await self._policy.GetDevicePolicy(request, timeout=_REFRESH_SECONDS)
            return update_channel(found.envelope)
        except (grpc.aio.AioRpcError, DomainError) as away:
            log.debug("a device is shown without its channel", error=brief(away))
            return ""

    async def refresh(self) -> None:
        """Asks the feeds once more: who has just admitted a device looks for it in the list.

        When they cannot be asked, the list shows what was heard last.
        """
        await asyncio.gather(self._ask(self.devices), self._ask(self.applied))

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
            log.debug("lists show what was heard last", error=brief(error))

    async def _fetch_devices(self, cursor: str) -> tuple[str, bool]:
        page = await self._registry.ListDeviceChanges(
            enrollment_pb2.ListDeviceChangesRequest(cursor=cursor), timeout=ANSWER_SECONDS
        )
        # A device that stands in the page twice is stored as it was last.
        devices = {change.device_id: _registered(change) for change in page.devices}
        await self._store("devices", page.next_cursor, [*devices.values()], store.store_registered)
        return page.next_cursor, page.more

    async def _fetch_applied(self, cursor: str) -> tuple[str, bool]:
        page = await self._policy.ListAppliedVersions(
            policy_pb2.ListAppliedVersionsRequest(cursor=cursor), timeout=ANSWER_SECONDS
        )
        versions = {version.device_id: _applied(version) for version in page.versions}
        await self._store("applied", page.next_cursor, [*versions.values()], store.store_applied)
        return page.next_cursor, page.more

    async def _store(
        self,
        feed: str,
        cursor: str,
        changes: Sequence[T],
        write: Callable[[Connection, Sequence[T]], Awaitable[None]],
    ) -> None:
        """Stores changes with how far they bring the feed; without any there is nothing to keep."""
        if not changes:
            return
        async with self._database.transaction() as connection:
            await write(connection, changes)
            await store.store_cursor(connection, feed, cursor)


def update_channel(envelope: bytes) -> str:
    """The update channel of a policy in its envelope; empty when that is."""
    if not envelope:
        return ""
    channel = ((json.loads(envelope).get("policy") or {}).get("updates") or {}).get("channel")
    return channel if isinstance(channel, str) else ""


def _registered(change: enrollment_pb2.DeviceChange) -> RegisteredDevice:
    enrolled = change.HasField("enrolled_at") and change.status in _CONNECTED
    return RegisteredDevice(
        UUID(change.device_id),
        UUID(change.tenant_id),
        change.status,
        change.serial,
        change.model,
        change.created_at.ToDatetime(tzinfo=UTC),
        change.enrolled_at.ToDatetime(tzinfo=UTC) if enrolled else None,
    )


def _applied(version: policy_pb2.AppliedVersion) -> AppliedVersion:
    return AppliedVersion(
        UUID(version.device_id),
        UUID(version.tenant_id),
        version.version,
        version.reported_at.ToDatetime(tzinfo=UTC),
    )
