"""Service accounts: programs that call the API, and stay when people leave."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeAlias
from uuid import UUID

from contract.access import Role
from contract.events.identity.programs import (
    ServiceAccountCreated,
    ServiceAccountDeleted,
    ServiceAccountUpdated,
)
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import failed_precondition, invalid_field, not_found
from servicekit.etags import check_etag
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import Page
from services.identity.api_tokens import account_store
from services.identity.api_tokens.domain import MOST_SERVICE_ACCOUNTS, ServiceAccount, check_role

HolderChanged: TypeAlias = Callable[[Connection, UUID], Awaitable[None]]
"""Tells which tokens of a holder have ended in this transaction."""


class ServiceAccounts:
    """The use cases around service accounts."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        directory: TenantDirectory,
        holder_changed: HolderChanged,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._directory = directory
        self._holder_changed = holder_changed
        self._clock = clock

    async def list(
        self, call: Call, org_id: UUID | None, after: UUID | None, limit: int, *, deleted: bool
    ) -> Page[ServiceAccount, UUID]:
        """Service accounts of one tenant or of the caller's subtree, behind a position."""
        scope = await self._directory.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            return await account_store.list_accounts(
                connection, scope, after, limit, deleted=deleted
            )

    async def get(self, call: Call, account_id: UUID) -> ServiceAccount:
        """One service account of the caller's subtree.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._directory.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            return await self._found(connection, scope, account_id)

    async def create(
        self, call: Call, name: str, role: Role, tenant_id: UUID | None
    ) -> ServiceAccount:
        """Adds a service account.

        Raises:
            DomainError: NOT_FOUND for the tenant; PERMISSION_DENIED for a role above the caller's;
                ALREADY_EXISTS for a name that the tenant has; FAILED_PRECONDITION when it has
                enough.
        """
        check_role(role, call.caller.role)
        own = UUID(call.caller.tenant_id)
        tenant = await self._directory.require(call.caller, tenant_id or own, to_add=True)
        account = ServiceAccount(
            id=new_id(),
            tenant_id=tenant.id,
            name=name,
            role=role,
            created_at=self._clock(),
            created_by=call.caller.name,
        )
        async with self._database.transaction(self._directory.scope(own)) as connection:
            most = MOST_SERVICE_ACCOUNTS
            if await account_store.lock_and_count(connection, tenant.id) >= most:
                raise failed_precondition(
                    "TOO_MANY_SERVICE_ACCOUNTS", f"the tenant has {most} of them; delete one first"
                )
            await account_store.insert(connection, account)
            event = ServiceAccountCreated(id=account.id, after=account.snapshot())
            await self._outbox.append(connection, CloudEvent(event, tenant.id))
        return account

    async def update(
        self, call: Call, account_id: UUID, *, name: str | None, role: Role | None
    ) -> ServiceAccount:
        """Changes a service account; tokens that may do more than it from then on end.

        Raises:
            DomainError: NOT_FOUND; PERMISSION_DENIED for a role above the caller's, before or
                after; ALREADY_EXISTS for a name that the tenant has; INVALID_ARGUMENT when nothing
                is to be changed.
        """
        if name is None and role is None:
            raise invalid_field("name", "give what to change: name or role")
        scope = await self._directory.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            before = await self._manageable(connection, scope, call, account_id)
            after = replace(before, name=name or before.name, role=role or before.role)
            check_role(after.role, call.caller.role)
            if after == before:
                return before
            await account_store.update(connection, after)
            event = ServiceAccountUpdated(
                id=after.id, before=before.snapshot(), after=after.snapshot()
            )
            await self._outbox.append(connection, CloudEvent(event, after.tenant_id))
            await self._holder_changed(connection, after.id)
        await self._directory.follower.try_refresh()
        return after

    async def delete(self, call: Call, account_id: UUID) -> ServiceAccount:
        """Deletes a service account; its tokens end, and its name is free.

        Raises:
            DomainError: NOT_FOUND; PERMISSION_DENIED for one whose role is above the caller's.
        """
        scope = await self._directory.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            before = await self._manageable(connection, scope, call, account_id)
            after = replace(before, deleted_at=self._clock(), deleted_by=call.caller.name)
            await account_store.update(connection, after)
            event = ServiceAccountDeleted(id=after.id, before=before.snapshot())
            await self._outbox.append(connection, CloudEvent(event, after.tenant_id))
            await self._holder_changed(connection, after.id)
        await self._directory.follower.try_refresh()
        return after

    async def _manageable(
        self, connection: Connection, scope: Scope, call: Call, account_id: UUID
    ) -> ServiceAccount:
        found = await self._found(connection, scope, account_id, for_update=True)
        check_role(found.role, call.caller.role)
        check_etag(found.etag)
        return found

    async def _found(
        self, connection: Connection, scope: Scope, account_id: UUID, *, for_update: bool = False
    ) -> ServiceAccount:
        found = await account_store.account(connection, scope, account_id, for_update=for_update)
        if found is None:
            raise not_found("service account", account_id)
        return found
