"""The tree of tenants."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from servicekit.call import Call
from servicekit.errors import DomainError, invalid_field, not_found
from servicekit.events import Event
from servicekit.ids import Clock, new_id
from servicekit.outbox import Outbox
from servicekit.postgres import Database
from servicekit.tenants import TenantDirectory
from services.identity import store
from services.identity.domain import Tenant, code_from_name, kind_below, with_suffix


class Tenants:
    """The use cases around tenants."""

    def __init__(
        self, database: Database, outbox: Outbox, directory: TenantDirectory, clock: Clock
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._directory = directory
        self._clock = clock

    async def list(self, call: Call, after: UUID | None, limit: int) -> list[Tenant]:
        """The caller's tenant and all below it, behind a position."""
        scope = await self._directory.query_scope(call.caller, "")
        async with self._database.transaction(scope) as connection:
            return await store.list_tenants(connection, scope, after, limit)

    async def get(self, call: Call, tenant_id: str) -> Tenant:
        """One tenant of the caller's subtree.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._directory.query_scope(call.caller, "")
        async with self._database.transaction(scope) as connection:
            found = await store.tenant(connection, UUID(tenant_id))
        if found is None:
            raise not_found("tenant", tenant_id)
        return found

    async def create(
        self, call: Call, name: str, parent_id: str, reseller: bool, code: str
    ) -> Tenant:
        """Adds a tenant below one of the caller's subtree.

        Raises:
            DomainError: NOT_FOUND for the parent, FAILED_PRECONDITION when it cannot have such
                a child, ALREADY_EXISTS when the code is taken.
        """
        parent = await self.get(call, parent_id or call.caller.tenant_id)
        at = self._clock()
        wanted = code or code_from_name(name)
        tenant = Tenant(new_id(), parent.id, kind_below(parent, reseller), name, wanted, at, at)
        try:
            await self._insert(tenant)
        except DomainError as error:
            if code or error.reason != "CODE_TAKEN":
                raise
            tenant = replace(tenant, code=with_suffix(wanted))
            await self._insert(tenant)
        await self._directory.follower.try_refresh()
        return tenant

    async def _insert(self, tenant: Tenant) -> None:
        async with self._database.transaction() as connection:
            await store.insert_tenant(connection, tenant)
            await self._outbox.append(
                connection,
                Event(
                    "identity.tenant_created",
                    tenant.id,
                    f"tenants/{tenant.id}",
                    after=tenant.audit(),
                ),
            )

    async def update(
        self,
        call: Call,
        tenant_id: str,
        *,
        name: str | None,
        code: str | None,
        reseller: bool | None,
        parent_id: str | None,
    ) -> Tenant:
        """Changes name and code.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT for a change of kind or parent;
                ALREADY_EXISTS when the code is taken.
        """
        scope = await self._directory.query_scope(call.caller, "")
        async with self._database.transaction(scope) as connection:
            before = await store.tenant(connection, UUID(tenant_id), for_update=True)
            if before is None:
                raise not_found("tenant", tenant_id)
            if reseller is not None and reseller != (before.kind == "reseller"):
                raise invalid_field("reseller", "cannot be changed")
            if parent_id is not None and UUID(parent_id) != before.parent_id:
                raise invalid_field("parentId", "cannot be changed")
            after = replace(
                before,
                name=name if name is not None else before.name,
                code=code if code is not None else before.code,
                updated_at=self._clock(),
            )
            await store.update_tenant(connection, after)
            await self._outbox.append(
                connection,
                Event(
                    "identity.tenant_updated",
                    after.id,
                    f"tenants/{after.id}",
                    before=before.audit(),
                    after=after.audit(),
                ),
            )
        await self._directory.follower.try_refresh()
        return after
