"""Which organisations are in a freeze."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from servicekit.data.postgres import Connection
from servicekit.ids import Clock
from servicekit.peers.tenants import TenantDirectory
from services.policy.rollouts import store
from services.policy.rollouts.settings import InEffect, Settings


class Freezes:
    """The freezes of organisations, and of tenants above them."""

    def __init__(self, tenants: TenantDirectory, clock: Clock) -> None:
        self._tenants = tenants
        self._clock = clock

    async def among(self, connection: Connection, org_ids: Collection[UUID]) -> set[UUID]:
        """Those of some organisations that are in one now; the transaction sees all tenants."""
        lines = {one: [node.id for node in self._tenants.line(one)] for one in org_ids}
        said = await store.settings(connection, [*{id_ for line in lines.values() for id_ in line}])
        now = self._clock()
        return {
            org_id
            for org_id, line in lines.items()
            if InEffect.of([said.get(id_, Settings(id_)) for id_ in line]).freeze(now) is not None
        }
