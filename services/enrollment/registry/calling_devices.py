"""What the registry learns from devices that ask policy for their policy.

A prepared device becomes active when it first asks. A device that the registry does not know, but
whose token is genuine, enrolled after the moment to which the database was restored: it goes on,
and is registered again, so that administrators see it and can lock it out.
"""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from contract.events.enrollment import DeviceEnrolled, DeviceRecovered
from evergreen.v1 import policy_pb2, policy_pb2_grpc
from servicekit.data.postgres import Database
from servicekit.feeds.feed import ANSWER_SECONDS, Follower, asking
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from services.enrollment.groups.catch_up import CatchUp
from services.enrollment.registry import store as device_store
from services.enrollment.registry.domain import Device, Status


class CallingDevices:
    """Follows what devices tell policy: a prepared device never enrolls, it just calls."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        policy: policy_pb2_grpc.PolicyInternalServiceAsyncStub,
        clock: Clock,
        wait_seconds: int,
        catch_up: CatchUp,
    ) -> None:
        self._catch_up = catch_up
        self._database = database
        self._tenants = tenants
        self._outbox = outbox
        self._policy = policy
        self._clock = clock
        self._follower = Follower(
            "applied policy versions",
            self._fetch,
            asking(
                policy.ListAppliedVersions,
                policy_pb2.ListAppliedVersionsRequest(),
                "versions",
                seconds=wait_seconds,
            ),
        )

    async def run(self) -> None:
        """Follows policy's feed, from where it was left, for as long as the service lives."""
        async with self._database.system_transaction("the feed tells of all tenants") as connection:
            self._follower.start_at(await device_store.applied_cursor(connection))
        await self._follower.run()

    async def _fetch(self, cursor: str) -> tuple[str, bool]:
        page = await self._policy.ListAppliedVersions(
            policy_pb2.ListAppliedVersionsRequest(cursor=cursor), timeout=ANSWER_SECONDS
        )
        if page.versions:
            called = {
                UUID(v.device_id): (UUID(v.device_id), UUID(v.tenant_id), v.token_version)
                for v in page.versions
                # Of a deleted organisation nothing is registered again.
                if not self._tenants.is_going(UUID(v.tenant_id))
            }
            at = self._clock()
            async with self._database.system_transaction(
                "the feed tells of all tenants"
            ) as connection:
                active = await device_store.activate_prepared(
                    connection, [(device, version) for device, _, version in called.values()], at
                )
                recovered = await device_store.recover(connection, list(called.values()), at)
                await device_store.keep_applied_cursor(connection, page.next_cursor)
                events = [*map(_enrolled, active), *map(_recovered, recovered)]
                if events:
                    await self._outbox.append(connection, *events)
            if events:
                # Not here: other locks come before those of these devices.
                self._catch_up.wake()
        return page.next_cursor, page.more


def _enrolled(device: Device) -> CloudEvent:
    after = device.snapshot()
    return CloudEvent(
        DeviceEnrolled(
            id=device.id, before=replace(after, status=Status.PREPARED.value), after=after
        ),
        device.tenant_id,
        actor=f"device:{device.id}",
        actor_id=str(device.id),
    )


def _recovered(device: Device) -> CloudEvent:
    return CloudEvent(
        DeviceRecovered(id=device.id, after=device.snapshot()),
        device.tenant_id,
        actor=f"device:{device.id}",
        actor_id=str(device.id),
    )
