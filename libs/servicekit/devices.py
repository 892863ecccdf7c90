"""Which devices are locked out: checked in memory on every device call.

The registry (enrollment) decides; every service that devices call follows its feed and keeps
what it heard in its own schema, so that it knows it from its first moment after a restart.
"""

from __future__ import annotations

from uuid import UUID

from evergreen.v1 import enrollment_pb2, enrollment_pb2_grpc
from servicekit.call import Caller
from servicekit.errors import unauthenticated, unavailable
from servicekit.feed import ANSWER_SECONDS, Follower, asking
from servicekit.postgres import Database

_MAY_CALL = frozenset({"active", "prepared"})


class DeviceAccess:
    """The devices whose tokens are refused, and the tokens that a re-enrollment ended."""

    def __init__(
        self,
        registry: enrollment_pb2_grpc.EnrollmentInternalServiceAsyncStub,
        database: Database,
        context: str,
    ) -> None:
        self._registry = registry
        self._database = database
        self._context = context
        self._locked_out: set[str] = set()
        self._min_version: dict[str, int] = {}
        self._ready = False
        self.follower = Follower(
            "enrollment",
            self._fetch,
            asking(
                registry.ListDeviceChanges,
                enrollment_pb2.ListDeviceChangesRequest(restricted_only=True),
                "devices",
            ),
        )

    @property
    def ready(self) -> bool:
        """Whether it knows what was decided before the service started."""
        return self._ready

    async def load(self) -> None:
        """Reads what the service heard before it last stopped."""
        async with self._database.transaction() as connection:
            cursor = await connection.fetchval(
                f"SELECT cursor FROM {self._context}.device_access_cursor"
            )
            rows = await connection.fetch(
                "SELECT device_id, locked_out, min_token_version"
                f" FROM {self._context}.device_access"
            )
        for row in rows:
            self._remember(str(row["device_id"]), row["locked_out"], row["min_token_version"])
        if cursor is not None:
            self.follower.start_at(cursor)
            self._ready = True

    def check(self, caller: Caller) -> None:
        """Refuses a device that was locked out or whose token was replaced.

        Raises:
            DomainError: UNAUTHENTICATED, or UNAVAILABLE before the first word from the registry.
        """
        if not self._ready:
            raise unavailable("the service is starting")
        if caller.id in self._locked_out:
            raise unauthenticated("DEVICE_LOCKED_OUT", "the device is decommissioned")
        if caller.token_version < self._min_version.get(caller.id, 1):
            raise unauthenticated("TOKEN_REPLACED", "the device has enrolled again since")

    def _remember(self, device_id: str, locked_out: bool, min_token_version: int) -> None:
        if locked_out:
            self._locked_out.add(device_id)
        else:
            self._locked_out.discard(device_id)
        if min_token_version > 1:
            self._min_version[device_id] = min_token_version

    async def _fetch(self, cursor: str) -> tuple[str, bool]:
        page = await self._registry.ListDeviceChanges(
            enrollment_pb2.ListDeviceChangesRequest(cursor=cursor, restricted_only=True),
            timeout=ANSWER_SECONDS,
        )
        changes = [
            (UUID(d.device_id), d.status not in _MAY_CALL, d.token_version) for d in page.devices
        ]
        for device_id, locked_out, version in changes:
            self._remember(str(device_id), locked_out, version)
        if changes or not self._ready:
            await self._store(changes, page.next_cursor)
        self._ready = self._ready or not page.more
        return page.next_cursor, page.more

    async def _store(self, changes: list[tuple[UUID, bool, int]], cursor: str) -> None:
        async with self._database.transaction() as connection:
            await connection.executemany(
                f"INSERT INTO {self._context}.device_access"
                " (device_id, locked_out, min_token_version) VALUES ($1, $2, $3)"
                " ON CONFLICT (device_id) DO UPDATE SET locked_out = excluded.locked_out,"
                " min_token_version = excluded.min_token_version",
                changes,
            )
            await connection.execute(
                f"INSERT INTO {self._context}.device_access_cursor (cursor) VALUES ($1)"
                " ON CONFLICT (only_row) DO UPDATE SET cursor = excluded.cursor",
                cursor,
            )
