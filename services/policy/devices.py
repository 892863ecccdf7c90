"""Which device belongs to which organisation: a read model of the registry's feed."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from evergreen.v1 import enrollment_pb2, enrollment_pb2_grpc
from servicekit.errors import failed_precondition, not_found, unavailable
from servicekit.feed import ANSWER_SECONDS, Follower, asking
from servicekit.postgres import Database, Scope
from services.policy import delivery_store, store

_IN_USE: Final = frozenset({"active", "prepared"})


class DeviceDirectory:
    """The devices of the registry, kept in the service's own schema."""

    def __init__(
        self,
        database: Database,
        registry: enrollment_pb2_grpc.EnrollmentInternalServiceAsyncStub,
    ) -> None:
        self._database = database
        self._registry = registry
        self.follower = Follower(
            "devices",
            self._fetch,
            asking(
                registry.ListDeviceChanges, enrollment_pb2.ListDeviceChangesRequest(), "devices"
            ),
        )

    async def load(self) -> None:
        """Goes on where the feed was left."""
        async with self._database.transaction() as connection:
            self.follower.start_at(await delivery_store.devices_cursor(connection))

    async def org_of_active(self, scope: Scope, device_id: UUID) -> UUID:
        """The org of a device in the scope that may pull policies.

        Before it refuses, it asks the registry: the device may have been admitted a moment ago.

        Raises:
            DomainError: NOT_FOUND when the scope has no such device; FAILED_PRECONDITION when it
                is not in use; UNAVAILABLE when the registry cannot be asked.
        """
        found = await self._find(scope, device_id)
        if found is None or found[1] not in _IN_USE:
            try:
                await self.follower.refresh()
            except Exception as error:
                raise unavailable("the device registry is not available; try again") from error
            found = await self._find(scope, device_id)
        if found is None:
            raise not_found("device", str(device_id))
        org_id, status = found
        if status not in _IN_USE:
            raise failed_precondition("DEVICE_NOT_ACTIVE", f"the device is {status}")
        return org_id

    async def _find(self, scope: Scope, device_id: UUID) -> tuple[UUID, str] | None:
        async with self._database.transaction(scope) as connection:
            return await store.device_tenant(connection, scope, device_id)

    async def _fetch(self, cursor: str) -> tuple[str, bool]:
        page = await self._registry.ListDeviceChanges(
            enrollment_pb2.ListDeviceChangesRequest(cursor=cursor), timeout=ANSWER_SECONDS
        )
        if page.devices or page.next_cursor != cursor:
            # A device that stands in the page twice is stored as it was last.
            devices = {d.device_id: (UUID(d.tenant_id), d.status) for d in page.devices}
            async with self._database.transaction() as connection:
                await delivery_store.write_devices(
                    connection,
                    [(UUID(key), *value) for key, value in devices.items()],
                    page.next_cursor,
                )
        return page.next_cursor, page.more
