"""Delivery of policies to devices, from memory.

What is in force, and whom to serve again, is followed in the database's own feeds; a poll that is
answered "not modified" touches neither the database nor another service. What devices report is
written behind, many at a time. With the database away, devices go on getting what is known.

A device's token is replaced when it is past half of its life. A released agent takes a new token
only from a 200 answer with a policy that verifies, so the token travels with

- the version in force, when the device has an older one or that one;
- else (the policy was deleted) with the very version that the device has, as it was signed then;
- else (the device has no policy and there is none) not at all: any document would be applied, an
  empty one switches SELinux off, and nobody wrote one. Such a device keeps polling with its token,
  expired or not, and gets a new one with its first policy. Only after half of a token's life, the
  other half and the 90 days of grace without any policy does it have to enroll again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from uuid import UUID

import asyncpg
import grpc

from evergreen.v1 import identity_pb2, identity_pb2_grpc
from servicekit import logs
from servicekit.call import Caller
from servicekit.changes import Changes
from servicekit.errors import DomainError
from servicekit.events import Event
from servicekit.feed import Cursor, Follower
from servicekit.ids import Clock
from servicekit.outbox import Outbox
from servicekit.postgres import Database
from services.policy import delivery_store as store
from services.policy.delivery_store import Applied, Sync
from services.policy.domain import Bundle, check_lapsed, parse_version, rotation_due
from services.policy.store import CHANNEL

log = logs.get(__name__)

_FLUSH_SECONDS = 0.5
_WRITE_AT_ONCE = 5000
_MOST_NOTED = 2_000_000
_MOST_UNWRITTEN = 200_000
_LISTEN_CHECK_SECONDS = 15.0
_LISTEN_AGAIN_SECONDS = 1.0
_IDENTITY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Delivered:
    """What a device gets: a policy, and a new token when it is time."""

    bundle: Bundle
    device_token: str | None = None

    def envelope(self) -> bytes:
        """The released agent's ENVELOPE."""
        if self.device_token is None:
            return self.bundle.envelope
        return self.bundle.envelope_with(self.device_token)


class Delivery:
    """Answers devices. Its feeds and tasks are run by the service."""

    def __init__(
        self,
        database: Database,
        changes: Changes,
        outbox: Outbox,
        identity: identity_pb2_grpc.IdentityInternalServiceAsyncStub,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._identity = identity
        self._clock = clock
        self._bundles: dict[str, Bundle] = {}
        self._syncs: dict[str, datetime] = {}
        self._served: dict[str, Sync] = {}
        self._noted: dict[str, tuple[int, int]] = {}
        self._reports: dict[tuple[int, int], tuple[int, int]] = {}
        """The values of `_noted`: a whole fleet has few."""
        self._unwritten: dict[str, Applied] = {}
        self.bundles = Follower("policies in force", self._fetch_bundles, changes.followed())
        self.syncs = Follower("device syncs", self._fetch_syncs, changes.followed())

    def in_force(self, tenant_id: str) -> Bundle | None:
        """What a device that enrolls now gets."""
        return self._bundles.get(tenant_id)

    def is_unchanged(self, device: Caller, current_version: str) -> bool:
        """Notes what the calling device has, and answers whether that is all that it needs.

        Nearly every poll ends here. Of any other, `pull` says what the device gets.

        Raises:
            DomainError: UNAUTHENTICATED when its token expired too long ago.
        """
        now = self._clock()
        check_lapsed(device.expires_at, now)
        has = parse_version(current_version)
        self._note_applied(device, has, now)
        bundle = self._bundles.get(device.tenant_id)
        return (
            (bundle is None or bundle.version <= has)
            and device.id not in self._syncs
            and not rotation_due(device.issued_at, device.expires_at, now)
        )

    async def pull(self, device: Caller, current_version: str) -> Delivered | None:
        """What the calling device gets, or `None` when it has everything.

        Raises:
            DomainError: UNAUTHENTICATED when its token expired too long ago.
        """
        if self.is_unchanged(device, current_version):
            return None
        now = self._clock()
        has = parse_version(current_version)
        bundle = self._bundles.get(device.tenant_id)
        wanted = device.id in self._syncs
        # Never a lower version than the device has, whatever the database says.
        if bundle is not None and (bundle.version < has or (bundle.version == has and not wanted)):
            bundle = None
        due = rotation_due(device.issued_at, device.expires_at, now)
        if bundle is None and (due or wanted):
            bundle = await self._what_it_has(device, has)
        if bundle is None:
            return None
        token = await self._new_token(device) if due else None
        if token is None and not wanted and bundle.version == has:
            return None
        if wanted:
            self._serve_sync(device.id, now)
        return Delivered(bundle, token)

    async def has_called(self, device_id: str, token_version: int) -> bool:
        """Whether a device asked for its policy with a token of this generation."""
        if self._noted.get(device_id, (0, 0))[1] >= token_version:
            return True
        async with self._database.transaction() as connection:
            return await store.has_called(connection, UUID(device_id), token_version)

    async def refresh(self) -> None:
        """Makes what was just committed known in this process; the feeds would within a second."""
        await self.bundles.try_refresh()
        await self.syncs.try_refresh()

    async def load(self) -> None:
        """Reads everything once, before the first call."""
        await self.bundles.refresh()
        await self.syncs.refresh()

    async def listen(self) -> None:
        """Hears of what other processes commit, sooner than the feeds do."""
        while True:
            try:
                await self._listen()
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as away:
                log.debug("does not listen to the database", error=str(away))
            await asyncio.sleep(_LISTEN_AGAIN_SECONDS)

    async def _listen(self) -> None:
        heard = asyncio.Event()

        def wake(*_: object) -> None:
            heard.set()

        async with self._database.dedicated() as connection:
            await connection.add_listener(CHANNEL, wake)
            try:
                while True:
                    try:
                        await asyncio.wait_for(heard.wait(), _LISTEN_CHECK_SECONDS)
                    except TimeoutError:
                        # A connection that broke silently ends here, and is made again.
                        await connection.fetchval("SELECT 1")
                        continue
                    heard.clear()
                    await self.refresh()
            finally:
                await connection.remove_listener(CHANNEL, wake)

    async def write_behind(self) -> None:
        """Writes what devices reported, for as long as the service lives, and once more after."""
        try:
            while True:
                await asyncio.sleep(_FLUSH_SECONDS)
                await self._flush()
        except asyncio.CancelledError:
            # Whatever becomes of the last reports, the service stops; devices report again.
            try:
                await self._flush()
            except Exception:
                log.exception("the last reports were not written")
            raise

    async def _what_it_has(self, device: Caller, has: int) -> Bundle | None:
        """The version that the device has, as it was delivered."""
        bundle = self._bundles.get(device.tenant_id)
        if has == 0 or (bundle is not None and bundle.version == has):
            return bundle if has else None
        try:
            async with self._database.transaction() as connection:
                return await store.get_bundle(connection, UUID(device.tenant_id), has)
        except DomainError as away:
            log.info("cannot read a former policy", error=away.message)
            return None

    async def _new_token(self, device: Caller) -> str | None:
        """A new token and its entry in the audit log, or `None`: the old one works on for now."""
        try:
            issued = await self._identity.IssueDeviceToken(
                identity_pb2.IssueDeviceTokenRequest(
                    device_id=device.id,
                    tenant_id=device.tenant_id,
                    token_version=device.token_version,
                ),
                timeout=_IDENTITY_SECONDS,
            )
            async with self._database.transaction() as connection:
                await self._outbox.append(
                    connection,
                    Event(
                        "policy.device_token_rotated",
                        UUID(device.tenant_id),
                        f"devices/{device.id}",
                        before={"expiresAt": _rfc3339(device.expires_at)},
                        after={"expiresAt": issued.expires_at.ToJsonString()},
                    ),
                )
        except (grpc.aio.AioRpcError, DomainError) as away:
            log.warning("a device keeps its old token", device=device.id, error=str(away))
            return None
        return issued.device_token

    def _serve_sync(self, device_id: str, now: datetime) -> None:
        requested_at = self._syncs.pop(device_id, None)
        if requested_at is None:
            # Another poll of the device was served meanwhile.
            return
        self._served[device_id] = Sync(UUID(device_id), requested_at, now)

    def _note_applied(self, device: Caller, version: int, now: datetime) -> None:
        report = (version, device.token_version)
        if self._noted.get(device.id) == report:
            return
        if len(self._unwritten) >= _MOST_UNWRITTEN and device.id not in self._unwritten:
            # The database has been away for long; the device's next poll will tell it again.
            return
        if len(self._noted) >= _MOST_NOTED:
            # Everybody is noted again; what the database has already, is not written.
            self._noted.clear()
            self._reports.clear()
        self._noted[device.id] = self._reports.setdefault(report, report)
        self._unwritten[device.id] = Applied(
            UUID(device.id), UUID(device.tenant_id), version, device.token_version, now
        )

    async def _flush(self) -> None:
        applied = list(islice(self._unwritten.items(), _WRITE_AT_ONCE))
        served = list(self._served.values())
        if not applied and not served:
            return
        try:
            async with self._database.transaction() as connection:
                if applied:
                    await store.write_applied(connection, [entry for _, entry in applied])
                if served:
                    await store.syncs_served(connection, served)
        except DomainError as away:
            # It waits in memory, one entry a device, and is written when the database is back.
            log.info("reports wait to be written", waiting=len(applied), error=away.message)
            return
        for device_id, entry in applied:
            # A newer report may have come meanwhile.
            if self._unwritten.get(device_id) is entry:
                del self._unwritten[device_id]

    async def _fetch_bundles(self, cursor: str) -> tuple[str, bool]:
        async with self._database.transaction() as connection:
            page, found = await store.bundles_since(connection, Cursor.parse(cursor))
        for tenant_id, bundle in found.items():
            known = self._bundles.get(str(tenant_id))
            if bundle is None:
                self._bundles.pop(str(tenant_id), None)
            elif known is None or known.version != bundle.version:
                self._bundles[str(tenant_id)] = bundle
        return str(page.cursor), page.more

    async def _fetch_syncs(self, cursor: str) -> tuple[str, bool]:
        async with self._database.transaction() as connection:
            page, found = await store.syncs_since(connection, Cursor.parse(cursor))
        self._apply_syncs(found)
        return str(page.cursor), page.more

    def _apply_syncs(self, syncs: Iterable[Sync]) -> None:
        for sync in syncs:
            device_id = str(sync.device_id)
            served = self._served.get(device_id)
            if served is not None and served.requested_at == sync.requested_at:
                # Served here; the row is about to say so, or says so already.
                if sync.served_at is not None:
                    del self._served[device_id]
                continue
            self._served.pop(device_id, None)
            if sync.served_at is None:
                self._syncs[device_id] = sync.requested_at
            else:
                self._syncs.pop(device_id, None)


def _rfc3339(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")
