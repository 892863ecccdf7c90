"""What is seen of devices while something is rolled out to them, written behind.

Only devices that a rollout is about are noted. A crash loses what was seen within a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Final
from uuid import UUID

from servicekit.call import Caller
from servicekit.data.postgres import Database
from servicekit.data.quarantine import place, write_readable
from servicekit.errors import DomainError
from servicekit.observability import logs
from services.policy.sightings import store
from services.policy.sightings.store import Seen
from services.policy.stamps.domain import Stage

log = logs.get(__name__)

_PLACE: Final = place("policy", "write_rollout_devices")
_FLUSH_SECONDS: Final = 0.5
_WRITE_AT_ONCE: Final = 5_000
_MOST_UNWRITTEN: Final = 200_000
_MOST_NOTED: Final = 200_000
"""Devices of a rollout of which memory knows what was written."""
_ENDED: Final = timedelta(hours=1)
_AGAIN_SECONDS: Final = 60
"""A device that says the same is written so often."""


@dataclass(slots=True)
class _Waiting:
    """What is to be written of a device."""

    tenant_id: UUID
    seen_at: datetime
    deliveries: int = 0
    applied: bool = False
    returned: bool = False


@dataclass(slots=True)
class _Noted:
    """What was last written of the devices of a rollout."""

    at: datetime
    """When any of them was seen last."""
    devices: dict[str, int] = field(default_factory=dict)
    """By their ids: four times the second, and what they had."""

    def is_news(self, device: str, now: datetime, *, applied: bool, returned: bool) -> bool:
        """Whether something is to be written of a device."""
        self.at = max(self.at, now)
        noted = self.devices.get(device)
        return (
            noted is None
            or noted & 3 != applied + 2 * returned
            or int(now.timestamp()) - (noted >> 2) >= _AGAIN_SECONDS
        )

    def note(self, device: str, now: datetime, *, applied: bool, returned: bool) -> None:
        """Notes what is going to be written."""
        self.devices[device] = int(now.timestamp()) << 2 | applied + 2 * returned


class Sightings:
    """What devices had when they polled, and what they were given. The service runs its task."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._noted: dict[UUID, _Noted] = {}
        self._unwritten: dict[tuple[UUID, str], _Waiting] = {}
        self._something_to_write = asyncio.Event()

    def saw(self, device: Caller, stage: Stage, now: datetime, *, has_it: bool) -> None:
        """Notes a poll.

        Args:
            stage: the rollouts that concern the device.
            now: when.
            has_it: whether it has what it is to have.
        """
        for rollout in stage.watching:
            brings = rollout in stage.brings
            applied, returned = has_it and brings, has_it and not brings
            noted = self._noted.get(rollout)
            if noted is None:
                noted = self._noted[rollout] = _Noted(now)
            if not noted.is_news(device.id, now, applied=applied, returned=returned):
                continue
            waiting = self._waiting((rollout, device.id), device, now)
            if waiting is None:
                return
            if len(noted.devices) >= _MOST_NOTED:
                noted.devices.clear()
            noted.note(device.id, now, applied=applied, returned=returned)
            waiting.applied = waiting.applied or applied
            waiting.returned = returned

    def gave(self, device: Caller, stage: Stage, now: datetime) -> None:
        """Notes that a device was given what rollouts bring it."""
        for rollout in stage.brings:
            if (waiting := self._waiting((rollout, device.id), device, now)) is not None:
                waiting.deliveries += 1
                waiting.returned = False

    async def write_behind(self) -> None:
        """Writes what was seen, for as long as the service lives, and once more after."""
        try:
            while True:
                self._something_to_write.clear()
                if not self._unwritten:
                    await self._something_to_write.wait()
                await asyncio.sleep(_FLUSH_SECONDS)
                await self.flush()
        except asyncio.CancelledError:
            try:
                await self.flush()
            except Exception:
                log.exception("last sightings not written")
            raise

    async def flush(self) -> None:
        """Writes what was seen; it waits in memory while the database is away."""
        self._forget_ended()
        some = dict(islice(self._unwritten.items(), _WRITE_AT_ONCE))
        if not some:
            return
        # What is noted from here on is written the next time.
        for key in some:
            del self._unwritten[key]
        seen = [
            Seen(
                rollout_id=rollout,
                device_id=UUID(device),
                tenant_id=one.tenant_id,
                seen_at=one.seen_at,
                deliveries=one.deliveries,
                applied=one.applied,
                returned=one.returned,
            )
            for (rollout, device), one in some.items()
        ]

        async def write(rows: Sequence[Seen]) -> None:
            async with self._database.system_transaction("a batch spans tenants") as connection:
                await store.write_seen(connection, rows)

        try:
            await write_readable(_PLACE, seen, write, lambda one: one.device_id)
        except DomainError as away:
            log.info("sightings postponed", waiting=len(some), error=away.message)
            for key, one in some.items():
                if (newer := self._unwritten.get(key)) is not None:
                    newer.deliveries += one.deliveries
                    newer.applied = newer.applied or one.applied
                else:
                    self._unwritten[key] = one

    def _forget_ended(self) -> None:
        """Forgets rollouts of which no device was seen lately."""
        latest = max((one.at for one in self._noted.values()), default=None)
        for rollout, one in list(self._noted.items()):
            if latest is not None and one.at < latest - _ENDED:
                del self._noted[rollout]

    def _waiting(self, key: tuple[UUID, str], device: Caller, now: datetime) -> _Waiting | None:
        found = self._unwritten.get(key)
        if found is None:
            if len(self._unwritten) >= _MOST_UNWRITTEN:
                return None
            found = self._unwritten[key] = _Waiting(UUID(device.tenant_id), now)
            self._something_to_write.set()
        found.seen_at = now
        return found
