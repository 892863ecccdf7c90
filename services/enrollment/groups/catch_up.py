"""Groups that are computed behind a change: large ones, and what the last release's services did.

A change of a group moves the first devices in its own transaction. The others follow here, some in
each transaction, so that devices that enroll meanwhile wait for none of it for long. Devices that a
service of the last release added or changed, and those that a restore brought, are found by what it
left empty.
"""

from __future__ import annotations

import asyncio
from typing import Final
from uuid import UUID

from servicekit.call import SYSTEM_CALL
from servicekit.data.postgres import Database
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from services.enrollment.groups import devices as group_devices
from services.enrollment.groups import membership

log = logs.get(__name__)

_DEVICES: Final = 1_000
"""In a transaction."""
_PAUSE_SECONDS: Final = 0.05
"""Between two transactions: others get their turn."""
_LOOK_SECONDS: Final = 60.0
"""Services of the last release wake nobody."""
_RETRY_SECONDS: Final = 1.0


class CatchUp:
    """Computes what is still to be computed, for as long as the service lives."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self._database = database
        self._outbox = outbox
        self._news = asyncio.Event()
        self._share = 1
        """So many times fewer devices a transaction has after some that failed: those of an
        organisation with many filters may take longer than a statement may."""
        self._tenant_id: UUID | None = None
        """Whose devices are computed."""
        self._later: set[UUID] = set()
        """Organisations that failed: their turn is after all others."""

    def wake(self, state: str = "computing") -> None:
        """Tells that there may be something."""
        if state == "computing":
            self._news.set()

    async def run(self) -> None:
        """Works until nothing is left, and looks again from time to time."""
        outage = Repeated(log, "computing of groups postponed")
        while True:
            self._news.clear()
            try:
                while await self.step():
                    self._share = max(self._share // 2, 1)
                    await asyncio.sleep(_PAUSE_SECONDS)
                if self._later:
                    self._later.clear()
                    pause = _RETRY_SECONDS
                else:
                    outage.worked()
                    pause = _LOOK_SECONDS
            except Exception as error:
                outage.failed(error)
                self._share = min(self._share * 4, _DEVICES)
                if self._tenant_id is not None:
                    self._later.add(self._tenant_id)
                pause = _RETRY_SECONDS
            try:
                await asyncio.wait_for(self._news.wait(), pause)
            except TimeoutError:
                continue

    async def step(self) -> bool:
        """Computes some devices; answers whether there may be more."""
        return await self._devices() or await self._group()

    @property
    def _most(self) -> int:
        return max(_DEVICES // self._share, 1)

    async def _devices(self) -> bool:
        self._tenant_id = None
        async with self._database.system_transaction("groups of all tenants") as connection:
            tenant_id = await group_devices.uncomputed_org(connection, self._later)
            self._tenant_id = tenant_id
            if tenant_id is None:
                return False
            await membership.hold(connection, [tenant_id])
            ids = await group_devices.uncomputed_devices(connection, tenant_id, self._most)
            await group_devices.absorb_expected(connection, ids)
            settled = await membership.settle(connection, {tenant_id: ids})
            if settled.moved:
                await self._outbox.append(
                    connection, *membership.events_of(settled.moved, SYSTEM_CALL)
                )
        # Those that somebody else has locked are theirs.
        return bool(ids)

    async def _group(self) -> bool:
        self._tenant_id = None
        async with self._database.system_transaction("groups of all tenants") as connection:
            tenant_id = await group_devices.computing_org(connection, self._later)
            self._tenant_id = tenant_id
            if tenant_id is None:
                return False
            await membership.hold(connection, [tenant_id])
            group = await group_devices.computing_group(connection, tenant_id)
            if group is None:
                # Another process computes it.
                return False
            behind = group.computing_after or UUID(int=0)
            moved, behind_next = await group_devices.compute(connection, group, behind, self._most)
            await group_devices.note_computed(connection, group.id, behind_next)
            if moved:
                await self._outbox.append(connection, *membership.events_of(moved, SYSTEM_CALL))
        return True
