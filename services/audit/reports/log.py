"""What reports read in the audit log itself: who did what to something."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from auditlog.entries import Entry
from servicekit.data.postgres import Database, Scope
from services.audit.log import store as log_store
from services.audit.log.domain import Bases, Filters
from services.audit.reports import log_store as store
from services.audit.reports.log_store import Act

_PAGE: Final = 200
_LAST_ID: Final = UUID(int=2**128 - 1)


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of the log as it was at one moment, and which of its entries are wanted."""

    tenant_id: UUID
    filters: Filters
    head: int
    """The position of its last entry,"""
    hash: str
    """and that one's hash, in hexadecimal."""
    first: int | None
    """The position of the first entry within the times; `None` when there is none,"""
    last: int | None
    """and of the last one."""


@dataclass(frozen=True, slots=True)
class Recipients:
    """Where entries of a tenant are sent."""

    own: tuple[str, ...] = field(default=())
    """The names of its forwarders."""
    above: int = 0
    """Those of tenants above that send its entries, too."""


class Log:
    """Reads the log for reports.

    Args:
        database: the service's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def acts(
        self,
        tenant_id: UUID,
        actions: Sequence[str],
        resources: Sequence[str],
        start: datetime | None,
        until: datetime | None,
    ) -> Mapping[tuple[str, str], Act]:
        """What was done to some resources within some times, by (resource, action)."""
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            return await store.acts(connection, tenant_id, actions, resources, start, until)

    async def times(
        self, tenant_id: UUID, actions: Sequence[str], resources: Sequence[str]
    ) -> Mapping[str, Sequence[datetime]]:
        """When one of some things was done to some resources, by resource, oldest first."""
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            return await store.times(connection, tenant_id, actions, resources)

    async def role_changes(self, tenant_id: UUID, resources: Sequence[str]) -> Mapping[str, Act]:
        """Who changed the roles of some users last, by resource."""
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            updates = await store.updates_of_users(connection, tenant_id, resources)
        found: dict[str, Act] = {}
        for update in updates:
            if update.resource not in found and _changes_role(update.record):
                found[update.resource] = Act(1, update.actor, update.at)
        return found

    async def chain(
        self, tenant_id: UUID, start: datetime | None, until: datetime | None
    ) -> Chain | None:
        """The chain of a tenant as it is now, and which of its entries are within some times."""
        filters = Filters(occurred_after=start, occurred_before=until)
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            head = await store.head(connection, tenant_id)
            span = await log_store.span(connection, tenant_id, filters)
        return Chain(tenant_id, filters, *head, *(span or (None, None))) if head else None

    async def entries(self, chain: Chain) -> AsyncGenerator[Sequence[Entry], None]:
        """The entries of a chain within its times, in its order, page by page."""
        if chain.first is None or chain.last is None:
            return
        # By positions: a period long ago is found without reading what came later.
        after = (chain.first - 1, _LAST_ID)
        while after[0] < chain.last:
            async with self._database.transaction(Scope.of(chain.tenant_id)) as connection:
                _, page = await log_store.chain_page(
                    connection, chain.tenant_id, Filters(), after, _PAGE
                )
            if not page:
                return
            yield [
                entry
                for entry in page
                if entry.sequence <= chain.last and chain.filters.is_in_time(entry)
            ]
            after = (page[-1].sequence, UUID(page[-1].columns.id))

    async def pruned(self, tenant_ids: Sequence[UUID], start: datetime | None, most: int) -> Bases:
        """Of which chains entries were pruned that happened at or after a time, at most so many."""
        scope = Scope(tuple(tenant_ids))
        async with self._database.transaction(scope) as connection:
            return await log_store.bases(connection, scope, start, most)

    async def size(self, tenant_id: UUID, before: datetime) -> tuple[int, datetime | None]:
        """How many entries a tenant had before a time, and when the oldest of them happened."""
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            return await store.size_of_log(connection, tenant_id, before)

    async def kept_reports(self, tenant_id: UUID, before: datetime) -> tuple[int, datetime | None]:
        """How many reports of before a time a tenant keeps, and of when the oldest is."""
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            return await store.size_of_reports(connection, tenant_id, before)

    async def recipients(self, tenant_id: UUID, above: Sequence[UUID]) -> Recipients:
        """Where entries of a tenant are sent.

        Args:
            tenant_id: the tenant.
            above: the tenants above it.
        """
        async with self._database.system_transaction(
            "forwarders of tenants above send entries of those below"
        ) as connection:
            own, others = await store.forwarders_of(connection, tenant_id, above)
        return Recipients(tuple(own), others)

    async def forwarders(self, tenant_id: UUID) -> Sequence[store.ForwarderFacts]:
        """The forwarders of a tenant."""
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            return await store.list_forwarders(connection, tenant_id)


def _changes_role(record: str) -> bool:
    """Whether an entry of a user's change says that the role is another one."""
    try:
        data = json.loads(record)["data"]
        return bool(data["before"]["role"] != data["after"]["role"])
    except (ValueError, KeyError, TypeError, RecursionError):
        # Somebody damaged it; `evergreen audit verify` says so.
        return False
