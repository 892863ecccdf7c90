"""What becomes of a service's rows when a tenant is archived, restored or deleted.

Identity decides, every service hears of it by the feed of tenants and does its own part: in small
steps, each in a transaction of its own, that go on where a killed process stopped. A tenant whose
rows cannot be handled is noted and tried again, while the others go on. Of a deleted tenant the
service keeps a row in `closed_tenant`, so that no device of it comes back, whoever else is down.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from contract.subjects import EVENTS, SUBJECT_ROOT
from evergreen.v1 import identity_pb2, identity_pb2_grpc
from servicekit.call import begin_background_call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.data.quarantine import forget, note, place
from servicekit.errors import DomainError
from servicekit.feeds.feed import ANSWER_SECONDS
from servicekit.ids import now
from servicekit.messaging.jetstream import AUDIT, Messaging
from servicekit.observability import logs
from servicekit.observability.logs import brief
from servicekit.peers.tenants import TenantDirectory, TenantNode

log = logs.get(__name__)

ROWS: Final = 500
"""Rows that a step touches: some tens of milliseconds."""
_PAUSE_SECONDS: Final = 0.02
_AGAIN_SECONDS: Final = 1.0
_LONGEST_DELAY_SECONDS: Final = 60.0
_CLEAN_SECONDS: Final = 2.0
"""So long nothing may be found before a service says that it has nothing: calls that began before
it heard of the deletion have ended by then, and what came later is found by the next look."""
_LOOK_AGAIN_SECONDS: Final = 600.0
_LOOK_FOR: Final = timedelta(days=1)
"""So long after a deletion it is looked for rows that came late."""
_OUTBOX_ROWS: Final = 2_000
_MOST_REPORTED: Final = 2**31 - 1

Step = Callable[[Connection, TenantNode], Awaitable[int]]
"""One small step of a transaction that is bound to the tenant; answers how many rows it touched, 0
when there is nothing (more) to do."""


@dataclass(frozen=True, slots=True)
class TenantWork:
    """What a service does beside what all do."""

    archive: Step | None = None
    restore: Step | None = None
    erase: Step | None = None
    """Before the tables of the catalogue, which all services erase."""
    waits_for: Callable[[Connection, UUID], Awaitable[str]] | None = None
    """Why rows are left that `erase` does not touch yet; empty when none are."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What the service's own table says of a tenant."""

    status: str
    heard_at: datetime
    rows: int = 0
    settled: bool = False


@dataclass(slots=True)
class _Outbox:
    """Published events that go as soon as the audit log has them."""

    ids: Sequence[UUID]
    incarnation: str
    sequence: int


class Closing:
    """Does a service's part for tenants that are archived, restored or deleted."""

    def __init__(
        self,
        context: str,
        database: Database,
        messaging: Messaging,
        tenants: TenantDirectory,
        identity: identity_pb2_grpc.IdentityInternalServiceAsyncStub,
        work: TenantWork,
    ) -> None:
        self._context = context
        self._database = database
        self._messaging = messaging
        self._tenants = tenants
        self._identity = identity
        self._work = work
        self._place = place(context, "closed_tenants")
        self._known: dict[UUID, _Known] = {}
        self._clean_since: dict[UUID, float] = {}
        self._outboxes: dict[UUID, _Outbox] = {}
        self._reported: dict[UUID, tuple[int, bool, str]] = {}
        self._not_before: dict[UUID, tuple[str, float]] = {}
        self._delay: dict[UUID, float] = {}

    async def load(self) -> None:
        """Reads what the service knew before it last stopped; from then on it refuses devices."""
        async with self._database.system_transaction("tenants of all kinds close") as connection:
            rows = await connection.fetch(
                "SELECT tenant_id, status, heard_at, erased_rows, settled_at IS NOT NULL AS settled"
                f" FROM {self._context}.closed_tenant"
            )
        self._known = {
            row["tenant_id"]: _Known(
                row["status"], row["heard_at"], row["erased_rows"], row["settled"]
            )
            for row in rows
        }
        self._tenants.remember_closed(self._known)

    async def run(self) -> None:
        """Does what there is to do, for as long as the service lives."""
        changed = self._tenants.closed_changed
        while True:
            changed.clear()
            begin_background_call()
            busy, waiting = False, False
            for node in self._to_do():
                more, waits = await self._try(node)
                busy, waiting = busy or more, waiting or waits
            if busy:
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    changed.wait(), _AGAIN_SECONDS if waiting else self._until_next()
                )

    def _nodes(self) -> list[TenantNode]:
        """The tenants that are closed, and those that were when the service last looked."""
        closed = {node.id: node for node in self._tenants.closed()}
        restored = (self._tenants.known(found) for found in self._known if found not in closed)
        return [*closed.values(), *(node for node in restored if node is not None)]

    def _due(self, node: TenantNode) -> float:
        """When a tenant may need something; at once when it is no longer what it was."""
        status, not_before = self._not_before.get(node.id, ("", 0.0))
        return not_before if status == node.status else 0.0

    def _to_do(self) -> list[TenantNode]:
        """The tenants that may need something: one after the other, each one step."""
        at = asyncio.get_running_loop().time()
        return [node for node in self._nodes() if self._due(node) <= at]

    def _until_next(self) -> float:
        """Seconds until some tenant may need something."""
        at = asyncio.get_running_loop().time()
        soonest = min(map(self._due, self._nodes()), default=at + _LOOK_AGAIN_SECONDS)
        return max(soonest - at, _PAUSE_SECONDS)

    async def _try(self, node: TenantNode) -> tuple[bool, bool]:
        """One step; answers whether more can be done at once, and whether something is waited for.

        What fails is tried again later, and does not keep other tenants from going on.
        """
        loop = asyncio.get_running_loop()
        try:
            more = await self._step(node)
        except Exception as error:
            delay = min(2 * self._delay.get(node.id, _AGAIN_SECONDS / 2), _LONGEST_DELAY_SECONDS)
            self._delay[node.id] = delay
            self._not_before[node.id] = node.status, loop.time() + delay
            if isinstance(error, DomainError):
                log.info("a closed tenant waits", tenant=str(node.id), error=brief(error))
            else:
                note(self._place, node.id, error)
            return False, True
        self._delay.pop(node.id, None)
        if more is None:
            self._not_before[node.id] = node.status, loop.time() + _LOOK_AGAIN_SECONDS
            return False, False
        self._not_before.pop(node.id, None)
        return more, not more

    async def _step(self, node: TenantNode) -> bool | None:
        """Answers whether there is more to do at once; `None` when there is nothing at all."""
        known = self._known.get(node.id)
        if node.status == "active":
            if self._work.restore and await self._bounded(self._work.restore, node):
                return True
            await self._forget(node.id)
            return None
        if known is None or known.status != node.status:
            known = await self._hear(node, known)
        if node.status == "archived":
            if self._work.archive and await self._bounded(self._work.archive, node):
                return True
            await self._settle(node.id)
            return None
        if known.settled and known.heard_at < now() - _LOOK_FOR and node.status == "deleted":
            return None
        return await self._erase(node)

    async def _bounded(self, step: Step, node: TenantNode) -> int:
        async with self._database.transaction(Scope.of(node.id)) as connection:
            return await step(connection, node)

    async def _erase(self, node: TenantNode) -> bool | None:
        loop = asyncio.get_running_loop()
        if rows := await self._erase_some(node):
            self._clean_since.pop(node.id, None)
            known = self._known[node.id]
            self._known[node.id] = replace(known, rows=known.rows + rows, settled=False)
            await self._report(node)
            return True
        if reason := await self._waits_for(node):
            self._clean_since.pop(node.id, None)
            await self._report(node, waiting_for=reason)
            return False
        since = self._clean_since.setdefault(node.id, loop.time())
        if not self._known[node.id].settled and loop.time() < since + _CLEAN_SECONDS:
            return False
        await self._settle(node.id)
        await self._report(node, finished=True)
        return None

    async def _erase_some(self, node: TenantNode) -> int:
        """One step; counted in the same transaction."""
        async with self._database.transaction(Scope.of(node.id)) as connection:
            rows = await self._work.erase(connection, node) if self._work.erase else 0
            if rows == 0:
                rows = await connection.fetchval(
                    f"SELECT {self._context}.erase_tenant($1, $2)", node.id, ROWS
                )
            if rows:
                await connection.execute(
                    f"UPDATE {self._context}.closed_tenant"
                    " SET erased_rows = erased_rows + $2, settled_at = NULL WHERE tenant_id = $1",
                    node.id,
                    rows,
                )
        return rows

    async def _waits_for(self, node: TenantNode) -> str:
        """Why the service still has something of a tenant; empty when it has nothing."""
        if self._work.waits_for is not None:
            async with self._database.transaction(Scope.of(node.id)) as connection:
                if reason := await self._work.waits_for(connection, node.id):
                    return reason
        return await self._empty_outbox(node.id)

    async def _empty_outbox(self, tenant_id: UUID) -> str:
        """Deletes the tenant's published events that the audit log has."""
        waiting = self._outboxes.pop(tenant_id, None)
        if waiting is not None:
            state = await self._messaging.consumer_state(AUDIT)
            if state is None or state.lost_some or state.incarnation != waiting.incarnation:
                return "the audit log"
            if state.acknowledged < waiting.sequence:
                self._outboxes[tenant_id] = waiting
                return "the audit log"
            async with self._database.transaction(Scope.of(tenant_id)) as connection:
                await connection.execute(
                    f"DELETE FROM {self._context}.outbox WHERE id = ANY ($1)", list(waiting.ids)
                )
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            rows = await connection.fetch(
                f"SELECT id, published_at IS NULL AND quarantined_at IS NULL AS unpublished"
                f" FROM {self._context}.outbox WHERE subject LIKE $1 LIMIT $2",
                f"{SUBJECT_ROOT}.{tenant_id}.%",
                _OUTBOX_ROWS,
            )
        if not rows:
            return ""
        if any(row["unpublished"] for row in rows):
            return "events that are not published yet"
        # Read behind the rows: the stream has had their events by then.
        state = await self._messaging.consumer_state(AUDIT)
        if state is not None:
            sequence = await self._messaging.last_sequence(EVENTS)
            self._outboxes[tenant_id] = _Outbox(
                [row["id"] for row in rows], state.incarnation, sequence
            )
        return "the audit log"

    async def _hear(self, node: TenantNode, known: _Known | None) -> _Known:
        heard = _Known(node.status, now(), known.rows if known else 0)
        async with self._database.transaction(Scope.of(node.id)) as connection:
            await connection.execute(
                f"INSERT INTO {self._context}.closed_tenant AS c (tenant_id, status, heard_at)"
                " VALUES ($1, $2, $3) ON CONFLICT (tenant_id) DO UPDATE SET"
                " status = excluded.status, heard_at = excluded.heard_at, settled_at = NULL"
                " WHERE c.status <> excluded.status",
                node.id,
                node.status,
                heard.heard_at,
            )
        self._known[node.id] = heard
        return heard

    async def _settle(self, tenant_id: UUID) -> None:
        known = self._known[tenant_id]
        if known.settled:
            return
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            await connection.execute(
                f"UPDATE {self._context}.closed_tenant SET settled_at = now() WHERE tenant_id = $1",
                tenant_id,
            )
            # What may have failed before did not fail for ever.
            await forget(connection, self._context, self._place, [tenant_id])
        self._known[tenant_id] = replace(known, settled=True)

    async def _forget(self, tenant_id: UUID) -> None:
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            await connection.execute(
                f"DELETE FROM {self._context}.closed_tenant WHERE tenant_id = $1", tenant_id
            )
        self._known.pop(tenant_id, None)

    async def _report(
        self, node: TenantNode, *, finished: bool = False, waiting_for: str = ""
    ) -> None:
        """Tells identity how far the service is, when that has changed by much or at all."""
        rows = self._known[node.id].rows
        told = self._reported.get(node.id)
        if node.status != "deleting" or told == (rows, finished, waiting_for):
            return
        if not finished and not waiting_for and told and told[0] + 20 * ROWS > rows:
            return
        await self._identity.ReportTenantErasure(
            identity_pb2.ReportTenantErasureRequest(
                tenant_id=str(node.id),
                rows=min(rows, _MOST_REPORTED),
                finished=finished,
                waiting_for=waiting_for,
            ),
            timeout=ANSWER_SECONDS,
        )
        self._reported[node.id] = (rows, finished, waiting_for)
