"""The tree of tenants."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from contract.events.identity.tenants import TenantCodeDropped, TenantCreated, TenantUpdated
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import DomainError, failed_precondition, invalid_field, not_found
from servicekit.etags import check_etag
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import Page
from servicekit.times import zone_of
from services.identity.tenants import store
from services.identity.tenants.domain import (
    Tenant,
    code_from_name,
    kind_below,
    renamed,
    with_suffix,
)
from services.identity.tenants.objects import TenantObjects


class Tenants:
    """The use cases around tenants."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        directory: TenantDirectory,
        objects: TenantObjects,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._directory = directory
        self._objects = objects
        self._clock = clock

    async def list(
        self, call: Call, after: UUID | None, limit: int, *, deleted: bool
    ) -> Page[Tenant, UUID]:
        """The caller's tenant and all below it, behind a position.

        Args:
            deleted: whether to list those, too, that are deleted or about to be.
        """
        scope = await self._directory.query_scope(call.caller)
        if deleted:
            scope = self._directory.log_scope(UUID(call.caller.tenant_id))
        async with self._database.transaction(scope) as connection:
            return await store.list_tenants(connection, scope, after, limit, deleted=deleted)

    async def get(self, call: Call, tenant_id: UUID) -> Tenant:
        """One tenant of the caller's subtree, or what stays of one that was deleted.

        Raises:
            DomainError: NOT_FOUND.
        """
        await self._directory.query_scope(call.caller)
        scope = self._directory.log_scope(UUID(call.caller.tenant_id))
        async with self._database.transaction(scope) as connection:
            found = await store.tenant(connection, scope, tenant_id) or (
                await store.tombstone(connection, scope, tenant_id)
            )
        if found is None:
            raise not_found("tenant", tenant_id)
        try:
            return await self._counted(found)
        except DomainError:
            # Without the numbers, which another service has.
            return found

    async def _counted(self, tenant: Tenant) -> Tenant:
        """The tenant with how many enrollment tokens its old codes have.

        Raises:
            DomainError: UNAVAILABLE when enrollment cannot be asked.
        """
        if not tenant.old_codes:
            return tenant
        counts = [await self._objects.active_tokens(tenant.id, old) for old in tenant.old_codes]
        return replace(
            tenant,
            old_codes=tuple(
                replace(old, active_tokens=count)
                for old, count in zip(tenant.old_codes, counts, strict=True)
            ),
        )

    async def create(
        self, call: Call, name: str, parent_id: UUID | None, reseller: bool, code: str
    ) -> Tenant:
        """Adds a tenant below one of the caller's subtree.

        Raises:
            DomainError: NOT_FOUND for the parent, FAILED_PRECONDITION when it cannot have such
                a child or is archived, ALREADY_EXISTS when the code is taken.
        """
        await self._directory.query_scope(call.caller)
        scope = self._directory.scope(UUID(call.caller.tenant_id))
        wanted_parent = parent_id or UUID(call.caller.tenant_id)
        async with self._database.transaction(scope) as connection:
            parent = await store.tenant(connection, scope, wanted_parent)
        if parent is None or parent.status == "deleting":
            raise not_found("tenant", wanted_parent)
        at = self._clock()
        wanted = code or code_from_name(name)
        tenant = Tenant(
            id=new_id(),
            parent_id=parent.id,
            kind=kind_below(parent, reseller),
            name=name,
            code=wanted,
            created_at=at,
            updated_at=at,
        )
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
        assert tenant.parent_id is not None
        scope = Scope((tenant.parent_id, tenant.id))
        async with self._database.transaction(scope) as connection:
            parent = await store.tenant(connection, scope, tenant.parent_id, for_share=True)
            if parent is None or parent.status != "active":
                raise failed_precondition(
                    "ORGANISATION_ARCHIVED", "parentId: is archived; restore it first"
                )
            await store.insert_tenant(connection, tenant)
            await self._outbox.append(
                connection,
                CloudEvent(TenantCreated(id=tenant.id, after=tenant.snapshot()), tenant.id),
            )

    async def update(
        self,
        call: Call,
        tenant_id: UUID,
        *,
        name: str | None,
        code: str | None,
        reseller: bool | None,
        parent_id: UUID | None,
        language: str | None = None,
        time_zone: str | None = None,
        validate_only: bool,
    ) -> Tenant:
        """Changes name, code and how its people are written to; what changes nothing writes
        nothing.

        The answer's old codes say how many enrollment tokens were handed out with them.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT for a change of kind or parent, and for what is
                no time zone; ALREADY_EXISTS when the code is taken; ABORTED when its etag is
                another; UNAVAILABLE when the code changes and enrollment, which counts tokens, is
                away.
        """
        if time_zone and zone_of(time_zone) is None:
            raise invalid_field("timeZone", "must be a time zone (IANA), as Europe/Berlin")
        scope = await self._directory.query_scope(call.caller)
        at = self._clock()

        async def changed(connection: Connection) -> tuple[Tenant, Tenant]:
            before = await store.tenant(connection, scope, tenant_id, for_update=True)
            if before is None:
                raise not_found("tenant", tenant_id)
            check_etag(before.etag)
            if reseller is not None and reseller != (before.kind == "reseller"):
                raise invalid_field("reseller", "cannot be changed")
            if parent_id is not None and parent_id != before.parent_id:
                raise invalid_field("parentId", "cannot be changed")
            after = renamed(before, name, code, at, language=language, time_zone=time_zone)
            return before, after

        async with self._database.transaction(scope) as connection:
            before, after = await changed(connection)
        # Before anything is written: who changes a code is told what still uses the old one.
        shown = await self._counted(after) if code is not None else after
        if validate_only or after == before:
            return shown
        async with self._database.transaction(scope) as connection:
            before, after = await changed(connection)
            if after != before:
                await store.update_tenant(connection, after)
                happened = TenantUpdated(
                    id=after.id, before=before.snapshot(), after=after.snapshot()
                )
                await self._outbox.append(connection, CloudEvent(happened, after.id))
        await self._directory.follower.try_refresh()
        return shown

    async def drop_code(
        self, call: Call, tenant_id: UUID, code: str, *, validate_only: bool
    ) -> Tenant:
        """Ends an old code of a tenant; with `validate_only` the answer still has it, counted.

        Raises:
            DomainError: NOT_FOUND for the tenant or the code; FAILED_PRECONDITION for the code of
                today; UNAVAILABLE when enrollment is away.
        """
        scope = await self._directory.query_scope(call.caller)

        async def found(connection: Connection) -> Tenant:
            tenant = await store.tenant(connection, scope, tenant_id, for_update=True)
            if tenant is None:
                raise not_found("tenant", tenant_id)
            check_etag(tenant.etag)
            if code == tenant.code:
                raise failed_precondition(
                    "CODE_IN_USE", "code: is the tenant's code of today; give it another one first"
                )
            if code not in {old.code for old in tenant.old_codes}:
                raise not_found("tenant code", code)
            return tenant

        async with self._database.transaction(scope) as connection:
            before = await found(connection)
        counted = await self._counted(before)
        if validate_only:
            return counted
        async with self._database.transaction(scope) as connection:
            before = await found(connection)
            at = self._clock()
            kept = tuple(old for old in before.old_codes if old.code != code)
            after = replace(before, old_codes=kept, updated_at=at)
            await store.drop_code(connection, before.id, code, at)
            happened = TenantCodeDropped(id=after.id, before=before.codes(), after=after.codes())
            await self._outbox.append(connection, CloudEvent(happened, after.id))
        await self._directory.follower.try_refresh()
        return replace(after, old_codes=tuple(old for old in counted.old_codes if old.code != code))
