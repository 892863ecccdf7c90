"""Deletions: what the services report, and the tombstone at the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from contract.contexts import CONTEXTS
from contract.events.identity.tenants import TenantDeleted, TenantRemains
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.data.quarantine import ROW_ERRORS, note, place
from servicekit.errors import not_found
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from servicekit.peers.tenants import TenantDirectory, TenantNode
from services.identity.tenants import store
from services.identity.tenants.domain import Tenant
from services.identity.tenants.life import TenantLife
from services.identity.tenants.store import Erasure

log = logs.get(__name__)

_PLACE: Final = place("identity", "deletions")
_LOOK_SECONDS: Final = 30.0
_PURGE_SECONDS: Final = 60.0
_RATE: Final = 7
"""Times as fast as the service runs, at most, do archives' times pass."""
_STRAGGLERS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Deletion:
    """A deletion and how far each service is."""

    tenant: Tenant
    erasures: list[Erasure]


async def erase(connection: Connection, tenant: TenantNode) -> int:
    """Makes the tombstones of the users whose accounts are erased next."""
    await store.bury_users(connection, tenant.id)
    return 0


class Deletions:
    """Brings deletions to their end."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        directory: TenantDirectory,
        life: TenantLife,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._directory = directory
        self._life = life
        self._clock = clock
        self._wake = asyncio.Event()

    async def report(self, tenant_id: str, erasure: Erasure) -> None:
        """Takes a service's word of how far it is."""
        scope = Scope.of(UUID(tenant_id))
        async with self._database.transaction(scope) as connection:
            await store.note_erasure(connection, UUID(tenant_id), erasure)
        if erasure.finished:
            self._wake.set()

    async def get(self, call: Call, tenant_id: UUID) -> Deletion:
        """How far the deletion of a tenant of the caller's subtree is, also after its end.

        Raises:
            DomainError: NOT_FOUND, also of a tenant that is not being deleted.
        """
        node = await self._directory.require(call.caller, tenant_id, deleted=True)
        scope = Scope.of(node.id)
        async with self._database.transaction(scope) as connection:
            tenant = await store.tenant(connection, scope, node.id)
            if tenant is not None and tenant.status == "deleting":
                known = {
                    found.context: found for found in await store.erasures(connection, node.id)
                }
                return Deletion(
                    tenant,
                    [known.get(context, Erasure(context, 0, "", False)) for context in CONTEXTS],
                )
            gone = await store.tombstone(connection, scope, node.id)
            if gone is None:
                raise not_found("deletion", tenant_id)
            rows: dict[str, int] = json.loads(await store.erased_rows(connection, node.id))
        return Deletion(gone, [Erasure(context, rows[context], "", True) for context in rows])

    async def run(self) -> None:
        """Ends deletions that are done everywhere, for as long as the service lives."""
        outage = Repeated(log, "deletions wait")
        while True:
            self._wake.clear()
            try:
                await self._finish()
                outage.worked()
            except Exception as error:
                outage.failed(error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _LOOK_SECONDS)

    async def purge(self) -> None:
        """Begins deletions of what was archived long enough, for as long as the service lives."""
        outage = Repeated(log, "archived tenants wait for their deletion")
        loop = asyncio.get_running_loop()
        seen = loop.time()
        while True:
            ran, seen = loop.time() - seen, loop.time()
            try:
                await self._life.purge(_RATE * ran)
                outage.worked()
            except Exception as error:
                outage.failed(error)
            await asyncio.sleep(_PURGE_SECONDS)

    async def _finish(self) -> None:
        failed: set[UUID] = set()
        while True:
            async with self._database.system_transaction(
                "deletions of all tenants end"
            ) as connection:
                done = await store.erased_by_all(connection, len(CONTEXTS))
            if failed.issuperset(done):
                return
            for tenant_id in done:
                try:
                    await self._bury(tenant_id)
                except ROW_ERRORS as error:
                    # The others go on; this one is tried again at the next look.
                    note(_PLACE, tenant_id, error)
                    failed.add(tenant_id)
            # What stood above one of them may be next.
            await self._directory.follower.try_refresh()

    async def _bury(self, tenant_id: UUID) -> None:
        async with self._database.system_transaction(
            "it is told in the log of the tenant above"
        ) as connection:
            (before, *below) = await store.subtree(connection, tenant_id, for_update=True)
            if below:
                return
            # Whatever came late: nothing is added below the lock.
            await connection.execute("SELECT identity.erase_tenant($1, $2)", tenant_id, _STRAGGLERS)
            rows = {e.context: e.rows for e in await store.erasures(connection, tenant_id)}
            stays = await store.staying_ancestor(connection, tenant_id)
            await store.bury(connection, before, json.dumps(rows), self._clock())
            await self._outbox.append(
                connection,
                CloudEvent(
                    TenantDeleted(
                        id=tenant_id,
                        before=before.standing(),
                        after=TenantRemains(
                            name=before.name,
                            code=before.code,
                            kind=before.kind,
                            parent_id=stays,
                            erased_rows=rows,
                        ),
                    ),
                    stays,
                    actor=before.deletion_requested_by,
                ),
            )
        log.info("a tenant was deleted", tenant=str(tenant_id))
