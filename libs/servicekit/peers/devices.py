"""Which devices are locked out: checked in memory on every device call.

The registry (enrollment) decides; every service that devices call follows its feed and keeps
what it heard in its own schema, so that it knows it from its first moment after a restart. A
service that keeps all devices (`Mirror`) reads the whole feed, once for both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar
from uuid import UUID

from evergreen.v1 import enrollment_pb2, enrollment_pb2_grpc
from servicekit.call import Caller
from servicekit.data.postgres import Connection, Database
from servicekit.data.quarantine import place, readable, write_readable
from servicekit.errors import unauthenticated, unavailable
from servicekit.feeds.feed import ANSWER_SECONDS, WAIT_SECONDS, Follower, asking, earlier
from servicekit.peers.tenants import TenantDirectory

T = TypeVar("T")

_MAY_CALL: Final = frozenset({"active", "prepared", "pending"})
"""A pending device has no token yet; when it has one, this word is out of date."""
_RESTRICTED: Final = frozenset({"decommissioned", "rejected"})
"""As the registry's `restricted_only` has it; with tokens that were replaced."""
_Restriction: TypeAlias = tuple[UUID, bool, int, UUID]
"""Device, whether it is locked out, the least token version, organisation."""


@dataclass(frozen=True, slots=True)
class Mirror(Generic[T]):
    """What a service keeps of every device of the registry, in its own schema."""

    place: str
    """Where a change is noted that cannot be kept (`servicekit.data.quarantine.place`)."""
    make: Callable[[enrollment_pb2.DeviceChange], T]
    device_of: Callable[[T], UUID]
    write: Callable[[Connection, Sequence[T]], Awaitable[None]]
    """Keeps devices, each once, as the registry has them now."""
    read_position: Callable[[Connection], Awaitable[str]]
    """How far the feed was read; empty for not at all."""
    write_position: Callable[[Connection, str], Awaitable[None]]


class DeviceAccess:
    """The devices whose tokens are refused, and the tokens that a re-enrollment ended."""

    def __init__(
        self,
        registry: enrollment_pb2_grpc.EnrollmentInternalServiceAsyncStub,
        database: Database,
        tenants: TenantDirectory,
        context: str,
        mirror: Mirror[Any] | None = None,
        *,
        wait_seconds: int = WAIT_SECONDS,
    ) -> None:
        self._registry = registry
        self._tenants = tenants
        self._database = database
        self._context = context
        self._mirror = mirror
        self._place = place(context, "follow_restrictions")
        self._locked_out: set[str] = set()
        self._min_version: dict[str, int] = {}
        self._ready = False
        self._mirrored = ""
        self.on_deleted: list[Callable[[Collection[UUID]], None]] = []
        """Are told of devices that the registry deleted, once nothing of them is stored."""
        question = enrollment_pb2.ListDeviceChangesRequest(restricted_only=mirror is None)
        self.follower = Follower(
            "enrollment",
            self._fetch,
            asking(registry.ListDeviceChanges, question, "devices", seconds=wait_seconds),
        )

    @property
    def ready(self) -> bool:
        """Whether it knows what was decided before the service started."""
        return self._ready

    async def load(self) -> None:
        """Reads what the service heard before it last stopped."""
        async with self._database.system_transaction("the feed tells of all tenants") as connection:
            cursor = await connection.fetchval(
                f"SELECT cursor FROM {self._context}.device_access_cursor"
            )
            rows = await connection.fetch(
                "SELECT device_id, locked_out, min_token_version"
                f" FROM {self._context}.device_access"
            )
            if self._mirror is not None:
                self._mirrored = await self._mirror.read_position(connection)
        for row in rows:
            self._remember(str(row["device_id"]), row["locked_out"], row["min_token_version"])
        if cursor is not None:
            # The release before read the feed once for each.
            self.follower.start_at(earlier(cursor, self._mirrored) if self._mirror else cursor)
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
        # At first only who is locked out: devices do not wait until a whole fleet was read.
        mirror = self._mirror if self._ready else None
        page = await self._registry.ListDeviceChanges(
            enrollment_pb2.ListDeviceChangesRequest(cursor=cursor, restricted_only=mirror is None),
            timeout=ANSWER_SECONDS,
        )
        changes = readable(
            self._place,
            page.devices,
            lambda d: (UUID(d.device_id), d.status, d.token_version, UUID(d.tenant_id), d.deleted),
            lambda d: d.device_id,
        )
        kept = []
        for device_id, status, version, tenant_id, _ in changes:
            if self._tenants.is_going(tenant_id):
                # Its rows are being erased, and its devices are refused as such.
                continue
            known, locked_out = str(device_id), status not in _MAY_CALL
            # Of a whole fleet hardly a device is restricted.
            if status in _RESTRICTED or version > 1 or known in self._locked_out:
                kept.append((device_id, locked_out, version, tenant_id))
            # Who is locked out, at once. Who is let in again, when that is committed: before that,
            # nothing of a device that was deleted is stored.
            self._remember(known, locked_out or known in self._locked_out, version)
        if page.devices or not self._ready:
            await self._store(mirror, kept, page)
        for device_id, locked_out, version, _ in kept:
            self._remember(str(device_id), locked_out, version)
        last = {device_id: deleted for device_id, _, _, _, deleted in changes}
        if gone := [device_id for device_id, deleted in last.items() if deleted]:
            for forget in self.on_deleted:
                forget(gone)
        if not self._ready and not page.more:
            self._ready = True
            if self._mirror is not None:
                return self._mirrored, True
        return page.next_cursor, page.more

    async def _store(
        self,
        mirror: Mirror[Any] | None,
        kept: Sequence[_Restriction],
        page: enrollment_pb2.ListDeviceChangesResponse,
    ) -> None:
        cursor = page.next_cursor
        if mirror is None:
            async with self._database.system_transaction(
                "the feed tells of all tenants"
            ) as connection:
                await self._store_restrictions(connection, kept, cursor)
            return
        staying = [d for d in page.devices if not self._tenants.is_going(UUID(d.tenant_id))]
        found = readable(mirror.place, staying, mirror.make, lambda d: d.device_id)
        # A device that stands in the page twice is kept as it was last.
        devices = list({mirror.device_of(device): device for device in found}.values())

        async def write(some: Sequence[Any]) -> None:
            async with self._database.system_transaction(
                "the feed tells of all tenants"
            ) as connection:
                if some:
                    await mirror.write(connection, some)
                # Only all of them bring the feed on.
                if len(some) == len(devices):
                    await mirror.write_position(connection, cursor)
                    await self._store_restrictions(connection, kept, cursor)

        if not await write_readable(mirror.place, devices, write, mirror.device_of):
            # What is left out is not told once more.
            async with self._database.system_transaction(
                "the feed tells of all tenants"
            ) as connection:
                await mirror.write_position(connection, cursor)
                await self._store_restrictions(connection, kept, cursor)

    async def _store_restrictions(
        self, connection: Connection, kept: Sequence[_Restriction], cursor: str
    ) -> None:
        await connection.executemany(
            f"INSERT INTO {self._context}.device_access"
            " (device_id, locked_out, min_token_version, tenant_id) VALUES ($1, $2, $3, $4)"
            " ON CONFLICT (device_id) DO UPDATE SET locked_out = excluded.locked_out,"
            " min_token_version = excluded.min_token_version, tenant_id = excluded.tenant_id",
            kept,
        )
        await connection.execute(
            f"INSERT INTO {self._context}.device_access_cursor (cursor) VALUES ($1)"
            " ON CONFLICT (only_row) DO UPDATE SET cursor = excluded.cursor",
            cursor,
        )
