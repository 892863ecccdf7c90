"""What the registry learns from devices that ask policy for their policy.

A prepared device becomes active when it first asks. A device that the registry does not know, but
whose token is genuine, enrolled after the moment to which the database was restored: it goes on,
and is registered again, so that administrators see it and can lock it out.
"""

from __future__ import annotations

from uuid import UUID

from evergreen.v1 import policy_pb2, policy_pb2_grpc
from servicekit.events import Event
from servicekit.feed import ANSWER_SECONDS, Follower, asking
from servicekit.ids import Clock
from servicekit.outbox import Outbox
from servicekit.postgres import Database
from services.enrollment.domain.types import Device, Status
from services.enrollment.store import devices as device_store


class CallingDevices:
    """Follows what devices tell policy: a prepared device never enrolls, it just calls."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        policy: policy_pb2_grpc.PolicyInternalServiceAsyncStub,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._policy = policy
        self._clock = clock
        self._follower = Follower(
            "applied policy versions",
            self._fetch,
            asking(policy.ListAppliedVersions, policy_pb2.ListAppliedVersionsRequest(), "versions"),
        )

    async def run(self) -> None:
        """Follows policy's feed, from where it was left, for as long as the service lives."""
        async with self._database.transaction() as connection:
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
            }
            at = self._clock()
            async with self._database.transaction() as connection:
                active = await device_store.activate_prepared(
                    connection, [(device, version) for device, _, version in called.values()], at
                )
                recovered = await device_store.recover(connection, list(called.values()), at)
                await device_store.keep_applied_cursor(connection, page.next_cursor)
                events = [*map(_enrolled, active), *map(_recovered, recovered)]
                if events:
                    await self._outbox.append(connection, *events)
        return page.next_cursor, page.more


def _enrolled(device: Device) -> Event:
    after = device.audit()
    return Event(
        "enrollment.device_enrolled",
        device.tenant_id,
        f"devices/{device.id}",
        before=after | {"status": Status.PREPARED.value},
        after=after,
        actor=f"device:{device.id}",
        actor_id=str(device.id),
    )


def _recovered(device: Device) -> Event:
    return Event(
        "enrollment.device_recovered",
        device.tenant_id,
        f"devices/{device.id}",
        after=device.audit(),
        actor=f"device:{device.id}",
        actor_id=str(device.id),
    )
