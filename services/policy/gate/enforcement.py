"""Gives devices that fall short of enforced gates the gates' other policies, and takes them back.

Every process runs it; an organisation is looked at by one at a time. Nothing is decided without a
view of the registry and of attestation that is fresh: while one of them is away, devices keep what
they have.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Final
from uuid import UUID

from prometheus_client import Counter, Gauge

from contract.events.policy import (
    AttestationGateHeld,
    AttestationGateUpdated,
    DevicesReleased,
    DevicesRestricted,
)
from servicekit.call import begin_background_call
from servicekit.data.postgres import Connection, Database
from servicekit.feeds.changes import Changes
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from services.policy.gate import restrictions, store
from services.policy.gate.domain import Mode, gated
from services.policy.gate.restrictions import Moved

log = logs.get(__name__)

RESTRICTED: Final = Gauge(
    "evergreen_policy_restricted_devices",
    "Devices that fall short of an enforced attestation gate and have its other policy.",
)
HELD: Final = Gauge(
    "evergreen_policy_attestation_gates_held",
    "Enforced attestation gates that give no more devices their other policy.",
)
FAILED: Final = Counter(
    "evergreen_policy_attestation_gate_looks_failed_total",
    "Looks at the enforced gates of an organisation that failed.",
)
_LOOK_SECONDS: Final = 60.0
"""Time alone makes devices fall short."""
_AGAIN_SECONDS: Final = 5.0
"""Until the next look after one that failed."""
_PAUSE_SECONDS: Final = 1.0
"""Verdicts that come together are looked at together."""


class Enforcement:
    """Who has the other policy of which gate. The service runs its task."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        changes: Changes,
        clock: Clock,
        ask: Callable[[], Awaitable[bool]],
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._changes = changes
        self._clock = clock
        self._ask = ask
        self._told: set[UUID] = set()
        self._news = asyncio.Event()

    def tell(self, tenant_ids: Iterable[UUID]) -> None:
        """Has organisations looked at soon: of their devices something is new."""
        self._told.update(tenant_ids)
        if self._told:
            self._news.set()

    async def run(self) -> None:
        """Looks at the gates that are enforced, for as long as the service lives."""
        outage = Repeated(log, "attestation gates not enforced")
        loop = asyncio.get_running_loop()
        all_at = loop.time()
        while True:
            begin_background_call()
            everywhere = loop.time() >= all_at
            told, self._told = self._told, set()
            self._news.clear()
            looked = False
            try:
                looked = await self.look(None if everywhere else told)
                outage.worked()
            except Exception as error:
                outage.failed(error)
            if not looked:
                # What was told is not told once more.
                all_at = loop.time() + _AGAIN_SECONDS
            elif everywhere:
                all_at = loop.time() + _LOOK_SECONDS
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), max(0.0, all_at - loop.time()))
            await asyncio.sleep(_PAUSE_SECONDS)

    async def look(self, tenant_ids: Collection[UUID] | None = None) -> bool:
        """Looks at organisations with enforced gates; at all of them without any given.

        Answers whether it could look at each.
        """
        async with self._database.system_transaction(
            "gates of all tenants are enforced"
        ) as connection:
            enforcing = await restrictions.enforcing(connection)
            restricted, held = await restrictions.count_restricted(connection)
        RESTRICTED.set(restricted)
        HELD.set(held)
        wanted = enforcing if tenant_ids is None else enforcing & set(tenant_ids)
        if not wanted:
            return True
        is_fresh = await self._ask()
        if not is_fresh:
            log.info("devices keep what attestation gates gave them")
        changed, looked = False, True
        for tenant_id in sorted(wanted):
            try:
                changed = await self._look_at(tenant_id, is_fresh=is_fresh) or changed
            except Exception:
                # The others go on.
                looked = False
                FAILED.inc()
                log.exception("attestation gates not enforced", tenant=str(tenant_id))
        if changed:
            await self._changes.catch_up()
        return looked

    async def _look_at(self, tenant_id: UUID, *, is_fresh: bool) -> bool:
        async with self._database.system_transaction(
            "an organisation's gates are enforced by no call of its own"
        ) as connection:
            if not await store.try_lock_gates(connection, tenant_id):
                # What is new here may be newer than what whoever has them looks at.
                self.tell([tenant_id])
                return False
            for group_id, held in await restrictions.end_those_off(connection, tenant_id):
                after = await store.find_gate(connection, tenant_id, group_id)
                ended = AttestationGateUpdated(
                    id=tenant_id,
                    before=replace(after, mode=Mode.ENFORCE, held=held).snapshot(),
                    after=after.snapshot(),
                )
                await self._outbox.append(connection, CloudEvent(ended, tenant_id))
            return await self.settle(connection, tenant_id, self._clock(), is_fresh=is_fresh)

    async def settle(
        self, connection: Connection, tenant_id: UUID, now: datetime, *, is_fresh: bool
    ) -> bool:
        """Lets the devices of an organisation have what its gates say; they are locked.

        Without a fresh view only the devices of gates that are enforced no more are moved. Answers
        whether anything changed.
        """
        released = await restrictions.release(connection, tenant_id, now, is_fresh=is_fresh)
        restricted: list[Moved] = []
        holds = False
        if is_fresh:
            restricted, holds = await self._restrict(connection, tenant_id, now)
        # One that another gate restricts was never free.
        stays = {one.device_id for one in restricted}
        released = [one for one in released if one.device_id not in stays]
        for event, moved in ((DevicesReleased, released), (DevicesRestricted, restricted)):
            for (_, group_id), devices in _by_gate(moved).items():
                what = event(id=tenant_id, after=gated(group_id, devices))
                await self._outbox.append(connection, CloudEvent(what, tenant_id))
        return bool(released or restricted or holds)

    async def _restrict(
        self, connection: Connection, tenant_id: UUID, now: datetime
    ) -> tuple[list[Moved], bool]:
        """Restricts devices as far as shares allow; answers them, and whether gates are held."""
        going_on: list[UUID] = []
        holds = False
        for one in await restrictions.shortfalls(connection, tenant_id, now):
            assert one.gate.id is not None
            if one.gate.held or not one.new:
                continue
            if not one.exceeds:
                going_on.append(one.gate.id)
                continue
            holds = True
            await restrictions.hold(connection, one.gate)
            log.warning(
                "attestation gate held", tenant=str(tenant_id), short=one.short, of=one.in_use
            )
            held = AttestationGateHeld(id=tenant_id, after=one.told())
            await self._outbox.append(connection, CloudEvent(held, tenant_id))
        return await restrictions.restrict(connection, tenant_id, going_on, now), holds


def _by_gate(moved: Sequence[Moved]) -> Mapping[tuple[UUID, UUID | None], list[UUID]]:
    found: dict[tuple[UUID, UUID | None], list[UUID]] = defaultdict(list)
    for one in moved:
        found[one.gate_id, one.group_id].append(one.device_id)
    return found
