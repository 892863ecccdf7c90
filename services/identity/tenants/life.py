"""The life of tenants: archived, restored, deleted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

from contract.events.identity.tenants import TenantArchived, TenantDeletionRequested, TenantRestored
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database
from servicekit.errors import aborted, failed_precondition, not_found
from servicekit.etags import check_etag
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from services.identity.tenants import store
from services.identity.tenants.domain import Objects, Tenant, check_confirmed, check_may_close
from services.identity.tenants.objects import TenantObjects


class TenantLife:
    """What Owners do with a tenant as a whole, and with all below it."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        directory: TenantDirectory,
        objects: TenantObjects,
        keep: timedelta,
        clock: Clock,
    ) -> None:
        """`keep` is how long an archived tenant can be restored."""
        self._database = database
        self._outbox = outbox
        self._directory = directory
        self._objects = objects
        self._keep = keep
        self._clock = clock

    async def archive(
        self, call: Call, tenant_id: UUID, expected: int | None, *, validate_only: bool
    ) -> tuple[Tenant, Objects]:
        """Archives a tenant of the caller's subtree with all below it.

        A tenant that is archived already stays as it is.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION for the root and the caller's own tenant,
                and without a number; ABORTED when the number or its etag is another one by now;
                UNAVAILABLE when a service that counts is away.
        """
        named, below, objects = await self._look(call, tenant_id)
        if named.status == "archived":
            return named, objects
        at = self._clock()
        closing = [tenant.id for tenant in below if tenant.status == "active"]
        after = replace(
            named,
            archived_at=at,
            archived_by=call.caller.name,
            archived_with=named.id,
            purge_at=at + self._keep,
        )
        if validate_only:
            return after, objects
        check_confirmed(objects, expected, always=False)
        scope = await self._directory.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            before = await self._locked(connection, named, below)
            await store.close(
                connection,
                closing,
                together_with=named.id,
                by=after.archived_by,
                at=at,
                purge_at=at + self._keep,
            )
            await self._tell(connection, TenantArchived, before, closing)
        await self._directory.follower.try_refresh()
        return after, objects

    async def restore(
        self, call: Call, tenant_id: UUID, *, validate_only: bool
    ) -> tuple[Tenant, Objects]:
        """Restores an archived tenant with all that was archived together with it.

        A tenant that is not archived stays as it is.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION when the tenant above is archived, too.
        """
        named, below, objects = await self._look(call, tenant_id)
        if named.status == "active":
            return named, objects
        opening = [
            tenant.id
            for tenant in below
            if tenant.status == "archived" and tenant.archived_with == named.archived_with
        ]
        after = replace(named, archived_at=None, archived_by="", archived_with=None, purge_at=None)
        at = self._clock()
        scope = await self._directory.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            parent = (
                await store.tenant(connection, scope, named.parent_id, for_share=True)
                if named.parent_id
                else None
            )
            if parent is not None and parent.status != "active":
                raise failed_precondition(
                    "PARENT_ARCHIVED", f"{parent.name}, above it, is archived; restore that one"
                )
            if validate_only:
                return after, objects
            before = await self._locked(connection, named, below)
            await store.reopen(connection, opening, at)
            await self._tell(connection, TenantRestored, before, opening)
        await self._directory.follower.try_refresh()
        return after, objects

    async def delete(
        self, call: Call, tenant_id: UUID, expected: int | None, *, validate_only: bool
    ) -> tuple[Tenant, Objects]:
        """Has an archived tenant deleted with all below it, by all services.

        Raises:
            DomainError: as `archive`; FAILED_PRECONDITION when it is not archived.
        """
        named, below, objects = await self._look(call, tenant_id)
        if named.status != "archived":
            raise failed_precondition(
                "NOT_ARCHIVED", f"{named.name} is in use; archive it before it is deleted"
            )
        at = self._clock()
        after = replace(named, deletion_requested_at=at, deletion_requested_by=call.caller.name)
        if validate_only:
            return after, objects
        check_confirmed(objects, expected, always=True)
        scope = await self._directory.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            before = await self._locked(connection, named, below)
            await self._request_deletion(connection, before, call.caller.name)
        await self._directory.follower.try_refresh()
        return after, objects

    async def purge(self, moment_seconds: float) -> None:
        """Has tenants deleted whose time in the archive is over.

        Args:
            moment_seconds: how far time may have come since this was done before.
        """
        async with self._database.system_transaction("archives of all tenants end") as connection:
            moment = await store.purge_moment(connection, self._clock(), moment_seconds)
            due = await store.to_purge(connection, moment)
        for tenant_id in due:
            async with self._database.system_transaction(
                "tenants below it go with it"
            ) as connection:
                before = await store.subtree(connection, tenant_id, for_update=True)
                if before and before[0].status == "archived":
                    await self._request_deletion(connection, before, "system")
        if due:
            await self._directory.follower.try_refresh()

    async def _look(self, call: Call, tenant_id: UUID) -> tuple[Tenant, list[Tenant], Objects]:
        """A tenant of the caller's subtree, with it all below it, and what they have."""
        scope = await self._directory.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            named = await store.tenant(connection, scope, tenant_id)
            if named is None:
                raise not_found("tenant", tenant_id)
            check_etag(named.etag)
            check_may_close(named, UUID(call.caller.tenant_id))
            below = await store.subtree(connection, named.id)
            ids = [tenant.id for tenant in below]
            users, credentials = await store.people(connection, ids)
        return named, below, await self._objects.count(ids, users, credentials)

    async def _locked(
        self, connection: Connection, named: Tenant, seen: Sequence[Tenant]
    ) -> list[Tenant]:
        """The tenants as they were looked at, held until the transaction ends.

        Raises:
            DomainError: ABORTED when one of them was changed since, or there is another one.
        """
        found = await store.subtree(connection, named.id, for_update=True)
        if found != seen:
            raise aborted("TENANT_CHANGED", "the tenant changed meanwhile; nothing was changed")
        return found

    async def _tell(
        self,
        connection: Connection,
        event: type[TenantArchived | TenantRestored],
        before: Sequence[Tenant],
        changed: Sequence[UUID],
    ) -> None:
        now = {tenant.id: tenant for tenant in await store.subtree(connection, before[0].id)}
        await self._outbox.append(
            connection,
            *(
                CloudEvent(
                    event(id=tenant.id, before=tenant.standing(), after=now[tenant.id].standing()),
                    tenant.id,
                )
                for tenant in before
                if tenant.id in set(changed)
            ),
        )

    async def _request_deletion(
        self, connection: Connection, before: Sequence[Tenant], by: str
    ) -> None:
        """Told in the log of the tenant above: nothing is added to that of one that goes."""
        named = before[0]
        going = [tenant for tenant in before if tenant.status == "archived"]
        stays = await store.staying_ancestor(connection, named.id)
        at = self._clock()
        await store.request_deletion(connection, [tenant.id for tenant in going], by, at)
        await self._outbox.append(
            connection,
            *(
                CloudEvent(
                    TenantDeletionRequested(
                        id=tenant.id,
                        before=tenant.standing(),
                        after=replace(tenant, deletion_requested_at=at).standing(),
                    ),
                    stays,
                )
                for tenant in going
            ),
        )
