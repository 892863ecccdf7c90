"""Prepared devices become active when they first ask for their policy."""

from __future__ import annotations

from uuid import UUID

from evergreen.v1 import policy_pb2, policy_pb2_grpc
from servicekit.events import Event
from servicekit.feed import Follower
from servicekit.ids import Clock
from servicekit.outbox import Outbox
from servicekit.postgres import Database
from services.enrollment import store
from services.enrollment.domain.types import Device, Status


class PreparedDevices:
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
        self._follower = Follower("applied policy versions", self._fetch)

    async def run(self) -> None:
        """Follows policy's feed, from where it was left, for as long as the service lives."""
        async with self._database.transaction() as connection:
            self._follower.start_at(await store.applied_cursor(connection))
        await self._follower.run()

    async def _fetch(self, cursor: str) -> tuple[str, bool]:
        page = await self._policy.ListAppliedVersions(
            policy_pb2.ListAppliedVersionsRequest(cursor=cursor), timeout=5
        )
        if page.versions:
            called = [(UUID(v.device_id), v.token_version) for v in page.versions]
            async with self._database.transaction() as connection:
                active = await store.activate_prepared(connection, called, self._clock())
                await store.keep_applied_cursor(connection, page.next_cursor)
                if active:
                    await self._outbox.append(connection, *map(_event, active))
        return page.next_cursor, page.more


def _event(device: Device) -> Event:
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
