"""How many devices get what a rollout brings within a minute, over all processes.

Only deliveries of rollouts with such a bound ask. A turn that was taken and not used, because a
process died or a device did, makes the rollout slower and never faster. A device has one turn of a
minute in each process, however often it polls: else one that names numbers which bring it nothing
would take all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final
from uuid import UUID

from servicekit.call import Caller
from servicekit.data.postgres import Database, Scope
from servicekit.errors import DomainError
from servicekit.ids import Clock
from servicekit.observability import logs
from services.policy.sightings import store

log = logs.get(__name__)

_MOST_KEPT: Final = 1_000


class Pace:
    """The turns of devices."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._full: dict[UUID, datetime] = {}
        """The minutes in which rollouts have no turn left."""
        self._minute: datetime | None = None
        self._taken: set[tuple[UUID, str]] = set()
        """Rollouts and the devices that took a turn of that minute, so no more than it has."""
        self._asking: set[tuple[UUID, str]] = set()
        """Those that ask for one now."""

    async def late(self, device: Caller, paced: Mapping[UUID, int]) -> tuple[UUID, ...]:
        """The rollouts that bring a device nothing in this minute; of the others it has a turn.

        One that was given it before needs no turn to get it again. While the database is away
        nobody has one.

        Args:
            device: who polls.
            paced: how many devices get it within a minute, by rollout.
        """
        minute = self._clock().replace(second=0, microsecond=0)
        try:
            return tuple(
                [
                    rollout
                    for rollout, most in paced.items()
                    if not await self._has_turn(device, rollout, most, minute)
                ]
            )
        except DomainError as away:
            log.info("rollouts with a pace wait", error=away.message)
            return tuple(paced)

    async def _has_turn(self, device: Caller, rollout: UUID, most: int, minute: datetime) -> bool:
        if self._minute != minute:
            self._taken.clear()
            self._minute = minute
        key = (rollout, device.id)
        if key in self._taken:
            return True
        # Of polls of one device that come at once, one is answered.
        if key in self._asking:
            return False
        self._asking.add(key)
        try:
            return await self._gets_turn(device, rollout, most, minute)
        finally:
            self._asking.discard(key)

    async def _gets_turn(self, device: Caller, rollout: UUID, most: int, minute: datetime) -> bool:
        tenant_id = UUID(device.tenant_id)
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            if await store.was_given(connection, tenant_id, rollout, UUID(device.id)):
                return True
            if self._full.get(rollout) == minute:
                return False
            has_turn = await store.take_turn(connection, tenant_id, rollout, minute, most)
        if has_turn:
            if self._minute == minute:
                self._taken.add((rollout, device.id))
            return True
        if len(self._full) >= _MOST_KEPT:
            self._full.clear()
        self._full[rollout] = minute
        return False
