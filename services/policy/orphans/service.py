"""Shows and counts the devices that run a policy although none is in force."""

from __future__ import annotations

import asyncio
from typing import Final
from uuid import UUID

from prometheus_client import Gauge

from servicekit.call import Call
from servicekit.data.postgres import SYSTEM, Database
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import Page
from services.policy.orphans import store
from services.policy.orphans.domain import Orphan

log = logs.get(__name__)

ORPHANED: Final = Gauge(
    "evergreen_policy_orphaned_devices",
    "Devices that run a policy although none is in force for their organisation.",
)
_COUNT_SECONDS: Final = 60.0


class Orphans:
    """The devices that nothing tells of a policy, while they run one."""

    def __init__(self, database: Database, tenants: TenantDirectory) -> None:
        self._database = database
        self._tenants = tenants

    async def list(
        self, call: Call, org_id: UUID | None, after: UUID | None, limit: int
    ) -> tuple[Page[Orphan, UUID], int]:
        """Such devices of an org, or of the caller's subtree, and how many there are in all."""
        scope = await self._tenants.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            return (
                await store.list_orphans(connection, scope, after, limit),
                await store.count(connection, scope),
            )

    async def watch(self) -> None:
        """Counts them once a minute, for as long as the service lives."""
        outage = Repeated(log, "orphaned devices are not counted")
        while True:
            try:
                async with self._database.system_transaction(
                    "the metric counts all tenants"
                ) as connection:
                    ORPHANED.set(await store.count(connection, SYSTEM))
                outage.worked()
            except Exception as error:
                outage.failed(error)
            await asyncio.sleep(_COUNT_SECONDS)
